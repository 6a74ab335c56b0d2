// A plan outside of steps: how it is built and looked into.
#include "bind/plan.hpp"

#include <algorithm>

#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "core/gather.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {
namespace {

constexpr std::size_t cache_line = 64, page = 4096;

}  // namespace

// Raises where an array cannot be updated in place.
void Plan::check_updatable(py::handle object, const ArrayView& view, const std::string& what) {
  if (!view.contiguous()) {
    refuse_value(what + " is not contiguous (shape " + text_of(view.ndim, view.shape) + ", strides " +
                 text_of_strides(view) + "); it is updated in place, so pass " + call_for_copy(object) +
                 " once, before training");
  }
  if (!view.aligned()) {
    refuse_value(what + " is not aligned to its dtype (address " + std::to_string(address(view.data)) +
                 "); it is updated in place, so pass numpy.array(w) once, before training");
  }
  if (!view.writeable()) {
    if (is_of_jax(object)) {
      refuse_value(what +
                   " is a jax.Array, and those are immutable, but a variable is updated in place; keep it as a NumPy "
                   "array, w = numpy.array(x), and pass jax.numpy.asarray(w) to the model");
    }
    refuse_value(what + " is read-only, but it is updated in place; pass numpy.array(w) once, before training");
  }
}

Plan::Plan(std::string optimizer, const std::string& rule, bool accumulates, bool averages, const py::list& variables,
           std::vector<std::string> names, const std::unordered_map<std::string, double>& initial,
           const std::vector<std::shared_ptr<Plan>>& others, std::shared_ptr<CustomRule> custom,
           std::shared_ptr<Pace> pace)
    : optimizer_(std::move(optimizer)),
      who_(optimizer_ + ".apply: "),
      rule_(rule_number(rule)),
      custom_(std::move(custom)),
      accumulates_(accumulates),
      averages_(averages),
      names_(std::move(names)),
      pace_(pace ? std::move(pace) : std::make_shared<Pace>()) {
  const std::size_t count = variables.size();
  for (std::size_t i = 0; i < count; ++i) {
    const py::object object = variables[i];
    const std::string what = optimizer_ + ".build: " + label("variables", i, i);
    HeldView view;
    if (!read_array(object.ptr(), view)) refuse_array(object, what, "variable");
    if (view.device != on_cpu && devices() == nullptr) refuse_device(object, what);
    check_updatable(object, view, what);
    ArrayView plain;
    plain_numpy_ &= read_plain_array(object.ptr(), plain);
    built_.push_back({object, view.ndim, shapes_.size(), view.device, is_immutable_view(object.ptr()), false});
    shapes_.insert(shapes_.end(), view.shape, view.shape + view.ndim);
    arrays_.push_back(
        {view.data, view.size(), 0, view.dtype, compute_type_of(view.dtype), 0, static_cast<std::uint32_t>(i)});
    index_by_object_.emplace(object.ptr(), i);
    if (view.size() > 0) index_by_memory_.emplace(view.data, i);
  }
  check_initial(initial);
  make_arena(initial);
  make_parts(initial);
  collect_written();
  check_written(others);
  if (custom_) show_to_custom_rule();
  gradients_.resize(count);
  same_gradients_.resize(plain_numpy_ ? 0 : count);
  gradients_before_.resize(same_gradients_.size());
  cost_before_.resize(count + 1);
  norms_.factors.resize(count);
}

std::string Plan::label(const char* list, std::size_t position, std::size_t index) const {
  return std::string(list) + "[" + (names_.empty() ? std::to_string(position) : "'" + names_[index] + "'") + "]";
}

// Every kind of slot has the same layout, so one offset serves all. A slot starts where its variable does in a vector
// of the compute type: both reach aligned vectors together. Before the first one there is a gap, without which the
// kinds of a variable whose size is a power of two would agree in the low bits of their addresses: processors take a
// load for one of what was just stored where the last 12 bits do, and memory answers slower where the next ones do.
std::size_t Plan::lay_out_slots(Device device) {
  std::size_t end = page + 17 * cache_line;
  for (Array& array : arrays_) {
    if (built_[array.number].device != device) continue;
    const auto bytes = static_cast<std::size_t>(bytes_of(array.compute));
    const std::size_t element = address(array.variable) / static_cast<std::size_t>(bytes_of(array.dtype));
    const std::size_t phase = element * bytes % cache_line;
    end += (phase - end) % cache_line;
    array.slot_offset = end;
    end += static_cast<std::size_t>(array.size) * bytes;
  }
  return (end + cache_line - 1) / cache_line * cache_line;
}

void Plan::fill_slot(const Array& array, void* slot, double value) {
  if (array.compute == compute_float64) {
    std::fill_n(static_cast<double*>(slot), array.size, value);
  } else {
    std::fill_n(static_cast<float*>(slot), array.size, pinned(static_cast<float>(pinned(value))));
  }
}

void Plan::widen_variable(const Array& array, const void* variable, void* slot) {
  if (array.compute == compute_float64) {
    baseline::load(variable, array.dtype, 0, static_cast<double*>(slot), array.size);
  } else {
    baseline::load(variable, array.dtype, 0, static_cast<float*>(slot), array.size);
  }
}

void Plan::check_initial(const std::unordered_map<std::string, double>& initial) const {
  const std::vector<std::string> slots = slot_names();
  for (const auto& [name, value] : initial) {
    if (std::ranges::find(slots, name) == slots.end()) {
      refuse_value(optimizer_ + ": there is an initial value of '" + name + "', which is no slot of the rule '" +
                   this->rule().name + "'");
    }
  }
}

void Plan::make_arena(const std::unordered_map<std::string, double>& initial) {
  const DefaultFloatEnvironment environment;  // initial values are rounded as kernels would
  slot_stride_ = lay_out_slots(on_cpu);
  const Rule& rule = this->rule();
  const std::size_t kinds = all_slot_names(rule).size();
  try {
    arena_ = std::make_shared<Arena>(slot_stride_ * kinds);
  } catch (const std::bad_alloc&) {
    refuse_memory(optimizer_ + ".build: there is no memory for slots of " + std::to_string(slot_stride_ * kinds) +
                  " bytes; free some, or choose an optimizer or options with fewer slots");
  }
  for (const Array& array : arrays_) {
    if (built_[array.number].device != on_cpu) continue;
    for (int k = 0; k < rule.slot_count; ++k) {
      const auto value = initial.find(rule.slots[k]);
      if (value == initial.end()) continue;
      fill_slot(array, slot_kind(static_cast<std::size_t>(k)) + array.slot_offset, value->second);
    }
    if (averages_) widen_variable(array, array.variable, slot_kind(kinds - 1) + array.slot_offset);
  }
}

std::vector<std::string> Plan::all_slot_names(const Rule& rule) const {
  std::vector<std::string> all(rule.slots, rule.slots + rule.slot_count);
  if (accumulates_) all.push_back("gradient_accumulator");
  if (averages_) all.push_back("average");
  return all;
}

void Plan::show_to_custom_rule() {
  custom_->variables.resize(count());
  for (const auto& part : parts_) show_to_custom_rule(*part);
  for (std::size_t i = 0; i < count(); ++i) {
    if (built_[i].device != on_cpu) continue;
    const Array& array = arrays_[i];
    CustomRule::Variable& variable = custom_->variables[i];
    variable.shape = shape(i);
    if (bytes_of(array.dtype) == bytes_of(array.compute)) {
      variable.array = py::array(py::dtype(name_of(array.dtype)), py::array::ShapeContainer(variable.shape),
                                 array.variable, built_[i].object);
    }
    for (int k = 0; k < rule().slot_count; ++k) variable.slots.push_back(slot(i, rule().slots[k]));
  }
}

void Plan::collect_written() {
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    const Array& array = arrays_[i];
    written_.add(array.variable, static_cast<std::size_t>(array.size * bytes_of(array.dtype)),
                 static_cast<std::ptrdiff_t>(i));
  }
  written_.add(arena_->data(), arena_->size(), WrittenMemory::slots);
  for (const auto& part : parts_) {
    written_.add(part->slots(), part->slots_size(), WrittenMemory::slots);
    if (const auto handed = part->share_handed()) {
      written_.add(handed->as<void>(), handed->size(), WrittenMemory::slots);
    }
  }
  written_.finish(count());
}

void Plan::check_written(const std::vector<std::shared_ptr<Plan>>& others) const {
  const std::string who = optimizer_ + ".build: ";
  const std::vector<WrittenMemory::Piece>& written = written_.in_order();
  for (std::size_t k = 1; k < written.size(); ++k) {
    if (written[k].begin >= written[k - 1].end) continue;
    const auto [first, second] = std::minmax(written[k - 1].variable, written[k].variable);
    const auto i = static_cast<std::size_t>(first), j = static_cast<std::size_t>(second);
    refuse_value(who + label("variables", i, i) + " and " + label("variables", j, j) +
                 " share memory; every variable must have its own");
  }
  for (std::size_t i = 0; i < built_.size(); ++i) {  // empty arrays have no memory to tell them apart
    const std::size_t first = index_by_object_.at(built_[i].object.ptr());
    if (first != i) {
      refuse_value(who + label("variables", first, first) + " and " + label("variables", i, i) +
                   " are the same array; every variable must come once");
    }
  }
  for (const auto& other : others) {
    for (const WrittenMemory::Piece& here : written) {
      const WrittenMemory::Piece* const there = other->written_.find(here);
      if (here.variable == WrittenMemory::slots || there == nullptr) continue;
      const auto i = static_cast<std::size_t>(here.variable);
      refuse_value(who + label("variables", i, i) +
                   (there->variable == WrittenMemory::slots
                        ? " is a slot of an earlier build; variables must be arrays of your own"
                        : " shares memory with a variable of an earlier build; forget(variables) drops that build"));
    }
  }
}

Plan::Exclusive::Exclusive(Plan& plan) : plan_(plan) {
  if (!plan.stepping_.exchange(true)) return;
  refuse_now(plan.optimizer_ + ": these variables are in the middle of another step, or their state is being copied; " +
             "threads take turns with a lock or have an optimizer each, and what a step calls cannot step");
}

int Plan::visit_kept(visitproc visit, void* arg) const {  // as the macro wants it named
  for (const Built& built : built_) Py_VISIT(built.object.ptr());
  for (const py::object& gradient : same_gradients_) Py_VISIT(gradient.ptr());
  for (const py::object& copy : kept_for_graphs_) Py_VISIT(copy.ptr());
  Py_VISIT(rate_of_graphs_.ptr());
  if (custom_ != nullptr && custom_.use_count() == 1) {
    for (const CustomRule::Variable& variable : custom_->variables) {
      PyObject* const array = variable.array.ptr();
      Py_VISIT(array);
      // NumPy's arrays are not collected themselves: what this one is a view of is kept by this one alone.
      if (array != nullptr && Py_REFCNT(array) == 1 && py::detail::npy_api::get().PyArray_Check_(array)) {
        Py_VISIT(py::detail::array_proxy(array)->base);
      }
      Py_VISIT(variable.gradient.ptr());
    }
  }
  return 0;
}

void Plan::forget_kept() {
  for (Built& built : built_) built.object = py::none();
  same_gradients_.clear();
  kept_for_graphs_.clear();
  rate_of_graphs_ = py::none();
  if (custom_ != nullptr) custom_->variables.clear();
}

std::size_t Plan::find(PyObject* variable) const {
  const auto by_object = index_by_object_.find(variable);
  if (by_object != index_by_object_.end()) return by_object->second;
  HeldView view;
  if (!read_array(variable, view)) return count();
  const auto by_memory = index_by_memory_.find(view.data);
  if (by_memory == index_by_memory_.end()) return count();
  const Array& array = arrays_[by_memory->second];
  return array.dtype == view.dtype && array.size == view.size() ? by_memory->second : count();
}

bool Plan::owns(py::handle variable) const {
  return find(variable.ptr()) != count();
}

std::size_t Plan::index_of(py::handle variable) const {
  const std::size_t index = find(variable.ptr());
  if (index == count()) throw py::key_error(optimizer_ + ": this array was never built");
  return index;
}

std::vector<std::string> Plan::slot_names() const {
  return all_slot_names(rule());
}

std::vector<py::ssize_t> Plan::shape(std::size_t index) const {
  const Built& built = built_.at(index);
  return {shape_of(built), shape_of(built) + built.ndim};
}

py::object Plan::slot(std::size_t index, const std::string& name) const {
  const std::vector<std::string> all = slot_names();
  const auto found = std::ranges::find(all, name);
  if (found == all.end()) throw py::key_error(optimizer_ + ": no slot is named '" + name + "'");
  const auto kind = static_cast<std::size_t>(found - all.begin());
  const Array& array = arrays_.at(index);
  const Built& built = built_[index];
  const std::vector<py::ssize_t> shape = this->shape(index);
  if (built.device != on_cpu) return py::cast(slot_on_device(index, kind));
  const py::capsule owner(new std::shared_ptr<Arena>(arena_),
                          [](void* pointer) { delete static_cast<std::shared_ptr<Arena>*>(pointer); });
  return py::array(py::dtype(name_of(array.compute)), py::array::ShapeContainer(shape),
                   slot_kind(kind) + array.slot_offset, owner);
}

}  // namespace fusedstep
