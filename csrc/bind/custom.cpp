#include "bind/custom.hpp"

#include <algorithm>

#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "core/primitives.hpp"
#include "cpu/sweep.hpp"

namespace fusedstep {
namespace {

// An array over memory that `owner` keeps.
template <class C>
py::array array_over(const std::vector<py::ssize_t>& shape, const C* memory, const py::object& owner) {
  return py::array(py::dtype::of<C>(), py::array::ShapeContainer(shape), memory, owner);
}

py::array read_only(py::array array) {
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

// The stages before the rule, for elements [begin, end): h becomes the gradient, and p decays.
template <class C>
void prepare_elements(const Step& step, std::size_t index, std::int64_t begin, std::int64_t end, C* p, C* h) {
  const Array& array = step.arrays[index];
  const Stages& stages = step.settings[array.settings].stages;
  const double factor = baseline::factor_of(step, index, stages);
  const baseline::Preparation<C> prepared(stages, factor);
  const baseline::PrepareAll<C> prepare_all = baseline::choose_prepare_all<C>(stages, factor);
  for (std::int64_t size; begin < end; begin += size, p += size, h += size) {
    size = std::min(end - begin, baseline::tile_size);
    baseline::gather_sum(step, stages, index, begin, h, size);
    if (prepare_all != nullptr) prepare_all(prepared, p, h, h, size);
    baseline::decay(stages, p, size);
  }
}

// The stages after it: p is stored, and averaged.
template <class C>
void finish_elements(const Step& step, std::size_t index, std::int64_t begin, std::int64_t end, C* p) {
  const Array& array = step.arrays[index];
  const Stages& stages = step.settings[array.settings].stages;
  const bool in_place = array.dtype == baseline::dtype_of(C());
  const std::int64_t size = end - begin;
  const auto slot = [&](std::byte* kind) { return reinterpret_cast<C*>(kind + array.slot_offset) + begin; };
  if (!in_place) baseline::store(p, array.variable, array.dtype, begin, size);
  if (stages.accumulation == Accumulation::flush) std::fill_n(slot(step.accumulator), size, C(0));
  if (stages.average == Average::off) return;
  if (!in_place) baseline::load(array.variable, array.dtype, begin, p, size);  // as stored
  const bool overwritten = baseline::take_average(stages, slot(step.average), p, size);
  if (overwritten && !in_place) baseline::store(p, array.variable, array.dtype, begin, size);
}

// What a step runs in the place of a compiled rule. Arrays come whole.
template <class C>
void sweep(const void*, const Step& step, const Run& run) {
  const auto& of_step = static_cast<const CustomStep&>(*step.custom);
  const Stages& stages = step.settings[step.arrays[run.begin].settings].stages;
  const bool without_gradient = baseline::visits_without_gradient(stages);
  const std::size_t end = run.begin + run.count;
  for (std::size_t i = run.begin; i < end; ++i) {
    const Array& array = step.arrays[i];
    if (array.size == 0) continue;
    if (const Rows* const rows = baseline::touched_rows(step, i)) {
      if (rows->count > 0) of_step.custom.update_rows<C>(step, i, *rows);
    } else if (step.gradients[i].data != nullptr) {
      of_step.custom.update<C>(step, i, of_step.gradients);
    } else if (without_gradient) {
      baseline::sweep_staged<baseline::Pass::only, C>({}, nullptr, step, i, nullptr, 0, 0, array.size);
    }
  }
}

[[noreturn]] void refuse_lazy(const std::string& who, const std::string& why) {
  const std::string sentence = who + ".apply: a gradient is sparse and lazy is True, but " + why +
                               " pass lazy=False, which updates all rows with update";
  PyErr_SetString(PyExc_NotImplementedError, sentence.c_str());
  throw py::error_already_set();
}

void no_coefficients(const double*, double, std::uint64_t, double, void*) {}

}  // namespace

PythonContext::PythonContext(py::object manager) : manager_(std::move(manager)) {
  manager_.attr("__enter__")();
}

PythonContext::~PythonContext() {
  try {
    manager_.attr("__exit__")(py::none(), py::none(), py::none());
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("the end of a step on a GPU");
  }
}

CustomRule::CustomRule(std::vector<std::string> slots, py::object optimizer, bool has_rows)
    : slots_(std::move(slots)), optimizer_(std::move(optimizer)), has_rows_(has_rows) {
  for (const std::string& slot : slots_) slots_of_rule_.push_back(slot.c_str());
  rule_ = {"custom",
           slots_of_rule_.data(),
           static_cast<int>(slots_.size()),
           nullptr,
           0,
           nullptr,
           {{no_coefficients, sweep<float>, nullptr}, {no_coefficients, sweep<double>, nullptr}}};
}

CustomStep::CustomStep(CustomRule& custom) : Rule(custom.rule()), custom(custom) {}

std::string CustomRule::name_of_class() const {
  return py::str(py::type::handle_of(optimizer_()).attr("__name__"));
}

void CustomRule::check_rows() const {
  if (!has_rows_) refuse_lazy(name_of_class(), name_of_class() + " has no update_rows; define it, or");
}

void CustomRule::refuse_rows_on_device() const {
  refuse_lazy(name_of_class(), "a rule in Python does not update rows of arrays on a GPU alone;");
}

// Memory for so many elements, the same in every step.
template <class C>
C* CustomRule::scratch(std::size_t number, std::int64_t size) {
  const auto bytes = static_cast<py::ssize_t>(size * static_cast<std::int64_t>(sizeof(C)));
  py::array& memory = scratch_[number];
  if (memory.nbytes() < bytes) memory = py::array_t<std::byte>(bytes);
  return static_cast<C*>(memory.mutable_data());
}

template <class C>
void CustomRule::update(const Step& step, std::size_t index, const py::object& gradients) {
  const Array& array = step.arrays[index];
  const Gradient& gradient = step.gradients[index];
  const Variable& variable = variables[index];
  const bool in_place = array.dtype == baseline::dtype_of(C());
  C* const p = in_place ? static_cast<C*>(array.variable) : scratch<C>(0, array.size);
  if (!in_place) baseline::load(array.variable, array.dtype, 0, p, array.size);
  // A gradient that is the variable's own memory is copied: the method changes that.
  const bool direct = in_place && gradient.dtype == array.dtype && gradient.rows == nullptr && step.replicas == 1 &&
                      gradient.data != array.variable && !baseline::any_stage(step.settings[array.settings].stages);
  const C* h = static_cast<const C*>(gradient.data);
  if (!direct) {
    C* const copy = scratch<C>(1, array.size);
    prepare_elements(step, index, 0, array.size, p, copy);
    h = copy;
  }
  call("update",
       py::make_tuple(in_place ? variable.array : array_over(variable.shape, p, scratch_[0]),
                      read_only(array_over(variable.shape, h, direct ? gradients : scratch_[1]))),
       step, array);
  finish_elements(step, index, 0, array.size, p);
}

template <class C>
void CustomRule::update_rows(const Step& step, std::size_t index, const Rows& rows) {
  const Array& array = step.arrays[index];
  const Variable& variable = variables[index];
  const bool in_place = array.dtype == baseline::dtype_of(C());
  C* const p = in_place ? static_cast<C*>(array.variable) : scratch<C>(0, array.size);
  if (!in_place) baseline::load(array.variable, array.dtype, 0, p, array.size);
  std::vector<py::ssize_t> shape = variable.shape;
  shape[0] = static_cast<py::ssize_t>(rows.count);
  const py::array indices(shape[0], rows.indices);
  py::array_t<C> values(shape);
  const auto for_rows = [&](const auto& work) {
    for (std::int64_t k = 0; k < rows.count; ++k) {
      const std::int64_t begin = rows.indices[k] * rows.size;
      work(k, begin, begin + rows.size);
    }
  };
  C* const h = values.mutable_data();
  for_rows([&](std::int64_t k, std::int64_t begin, std::int64_t end) {
    prepare_elements(step, index, begin, end, p + begin, h + k * rows.size);
  });
  call("update_rows",
       py::make_tuple(in_place ? variable.array : array_over(variable.shape, p, scratch_[0]), read_only(indices),
                      read_only(values)),
       step, array);
  for_rows(
      [&](std::int64_t, std::int64_t begin, std::int64_t end) { finish_elements(step, index, begin, end, p + begin); });
}

void CustomRule::update_on_device(const Step& step, std::size_t index) const {
  const Variable& variable = variables[index];
  call("update", py::make_tuple(variable.array, variable.gradient), step, step.arrays[index]);
}

// Calls a method with some arrays and, after them, what all methods get.
void CustomRule::call(const char* method, const py::tuple& arrays, const Step& step, const Array& array) const {
  const std::vector<py::object>& kept = variables[array.number].slots;
  py::dict slots;
  for (std::size_t k = 0; k < kept.size(); ++k) slots[slots_of_rule_[k]] = kept[k];
  const Settings& settings = step.settings[array.settings];
  const py::object optimizer = optimizer_();
  const py::object returned = optimizer.attr(method)(*arrays, slots, settings.learning_rate, settings.t);
  const auto who = [&] { return name_of_class() + "." + method; };
  if (!returned.is_none()) {
    refuse_type(who() + " returned an object of type " +
                std::string(py::str(py::type::handle_of(returned).attr("__name__"))) +
                ", but must return None; change the variable in place, as in variable -= x");
  }
  // What was assigned to a slot's name is written to the slot; of several, those are copied first
  // that may lie in another slot.
  std::vector<std::pair<std::size_t, py::object>> assigned;
  for (std::size_t k = 0; k < kept.size(); ++k) {
    if (slots.size() != kept.size() || !slots.contains(slots_of_rule_[k])) {
      refuse_value(who() + " left slots with the names " +
                   std::string(py::str(py::module_::import("builtins").attr("sorted")(slots))) +
                   ", but they must be those of slot_names; declare them there");
    }
    const py::object now = slots[slots_of_rule_[k]];
    if (!now.is(kept[k])) assigned.emplace_back(k, now);
  }
  for (auto& [k, now] : assigned) {
    if (assigned.size() == 1 || !py::hasattr(now, "flags")) continue;
    // (CuPy says of a slot, whose memory is another's, that it owns it.)
    const bool is_a_slot = std::ranges::any_of(kept, [&](const py::object& slot) { return now.is(slot); });
    if (is_a_slot || !now.attr("flags").attr("owndata").cast<bool>()) now = now.attr("copy")();
  }
  for (const auto& [k, now] : assigned) {
    try {
      kept[k][py::ellipsis()] = now;
    } catch (py::error_already_set& error) {
      const bool is_of_type = error.matches(PyExc_TypeError);
      if (!is_of_type && !error.matches(PyExc_ValueError)) throw;
      const std::string sentence = who() + " assigned to slots['" + slots_of_rule_[k] +
                                   "'] what it cannot hold: " + std::string(py::str(error.value())) +
                                   "; assign what has its shape";
      py::raise_from(error, is_of_type ? PyExc_TypeError : PyExc_ValueError, sentence.c_str());
      throw py::error_already_set();
    }
  }
}

}  // namespace fusedstep
