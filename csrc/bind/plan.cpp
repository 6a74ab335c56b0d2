// A plan outside of steps: how it is built and looked into.
#include "bind/plan.hpp"

#include <algorithm>

#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {

Plan::Plan(std::string optimizer, const std::string& rule, bool accumulates, bool averages, const py::list& variables,
           std::vector<std::string> names, const InitialValues& initial,
           const std::vector<std::shared_ptr<Plan>>& others, std::shared_ptr<CustomRule> custom,
           std::shared_ptr<Pace> pace)
    : optimizer_(std::move(optimizer)),
      who_(optimizer_ + ".apply: "),
      rule_(rule_number(rule)),
      custom_(std::move(custom)),
      variables_(optimizer_, variables, std::move(names)),
      gradients_(variables_, options_, who_),
      kinds_(this->rule(), accumulates, averages),
      pace_(pace ? std::move(pace) : std::make_shared<Pace>()) {
  kinds_.set_initial(initial, this->rule(), optimizer_);
  make_arena();
  make_parts();
  collect_written();
  check_written(others);
  if (custom_) show_to_custom_rule();
  norms_.factors.resize(count());
}

void Plan::make_arena() {
  slot_stride_ = variables_.lay_out_slots(on_cpu);
  try {
    arena_ = std::make_shared<Arena>(slot_stride_ * kinds_.count());
  } catch (const std::bad_alloc&) {
    refuse_memory(optimizer_ + ".build: there is no memory for slots of " +
                  std::to_string(slot_stride_ * kinds_.count()) +
                  " bytes; free some, or choose an optimizer or options with fewer slots");
  }
  for (const Array& array : variables_.arrays_on_cpu()) {
    for (std::size_t kind = 0; kind < kinds_.count(); ++kind) {
      kinds_.write_initial(kind, array, array.variable, slot_kind(kind) + array.slot_offset);
    }
  }
}

void Plan::show_to_custom_rule() {
  custom_->variables.resize(count());
  for (const auto& part : parts_) show_to_custom_rule(*part);
  for (std::size_t i = 0; i < count(); ++i) {
    if (variables_[i].device != on_cpu) continue;
    const Array& array = variables_.array(i);
    CustomRule::Variable& variable = custom_->variables[i];
    variable.shape = variables_.shape(i);
    if (bytes_of(array.dtype) == bytes_of(array.compute)) {
      variable.array = py::array(py::dtype(name_of(array.dtype)), py::array::ShapeContainer(variable.shape),
                                 array.variable, variables_[i].object);
    }
    for (int k = 0; k < rule().slot_count; ++k) variable.slots.push_back(slot(i, rule().slots[k]));
  }
}

void Plan::collect_written() {
  WrittenMemory& written = gradients_.written();
  for (const Array& array : variables_.arrays()) {
    written.add(array.variable, static_cast<std::size_t>(array.size * bytes_of(array.dtype)),
                static_cast<std::ptrdiff_t>(array.number));
  }
  written.add(arena_->data(), arena_->size(), WrittenMemory::slots);
  for (const auto& part : parts_) {
    written.add(part->slots(), part->slots_size(), WrittenMemory::slots);
    if (const auto handed = part->share_handed()) {
      written.add(handed->as<void>(), handed->size(), WrittenMemory::slots);
    }
  }
  written.finish(count());
}

void Plan::check_written(const std::vector<std::shared_ptr<Plan>>& others) const {
  const std::string who = optimizer_ + ".build: ";
  const std::vector<WrittenMemory::Piece>& written = gradients_.written().in_order();
  for (std::size_t k = 1; k < written.size(); ++k) {
    if (written[k].begin >= written[k - 1].end) continue;
    const auto [first, second] = std::minmax(written[k - 1].variable, written[k].variable);
    const auto i = static_cast<std::size_t>(first), j = static_cast<std::size_t>(second);
    refuse_value(who + variables_.label("variables", i, i) + " and " + variables_.label("variables", j, j) +
                 " share memory; every variable must have its own");
  }
  for (std::size_t i = 0; i < count(); ++i) {  // empty arrays have no memory to tell them apart
    const py::object& object = variables_[i].object;
    const std::size_t first = variables_.find(object.ptr());
    if (first != i) {
      refuse_value(who + variables_.label("variables", first, first) + " and " + variables_.label("variables", i, i) +
                   " are the same array; every variable must come once");
    }
    if (variables_.array(i).size > 0) continue;
    if (std::ranges::any_of(others, [&](const auto& other) { return other->owns(object); })) {
      refuse_value(who + variables_.label("variables", i, i) +
                   " is a variable of an earlier build; forget(variables) drops that build");
    }
  }
  for (const auto& other : others) {
    for (const WrittenMemory::Piece& here : written) {
      const WrittenMemory::Piece* const there = other->gradients_.written().find(here);
      if (here.variable == WrittenMemory::slots || there == nullptr) continue;
      const auto i = static_cast<std::size_t>(here.variable);
      refuse_value(who + variables_.label("variables", i, i) +
                   (there->variable == WrittenMemory::slots
                        ? " is a slot of an earlier build; variables must be arrays of your own"
                        : " shares memory with a variable of an earlier build; forget(variables) drops that build"));
    }
  }
}

Plan::Exclusive::Exclusive(Plan& plan) : plan_(plan) {
  if (!plan.stepping_.exchange(true)) return;
  refuse_now(plan.optimizer_ + ": these variables are in the middle of another step, or their state is being copied; " +
             "use a lock between threads, or an optimizer for each (and what a step calls cannot step)");
}

int Plan::visit_kept(visitproc visit, void* arg) const {  // as the macro wants it named
  if (const int result = variables_.visit_kept(visit, arg)) return result;
  if (const int result = gradients_.visit_kept(visit, arg)) return result;
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
  variables_.forget_kept();
  gradients_.forget_kept();
  kept_for_graphs_.clear();
  rate_of_graphs_ = py::none();
  if (custom_ != nullptr) custom_->variables.clear();
}

std::size_t Plan::index_of(py::handle variable) const {
  const std::size_t index = variables_.find(variable.ptr());
  if (index == count()) throw py::key_error(optimizer_ + ": this array was never built");
  return index;
}

py::object Plan::slot(std::size_t index, const std::string& name) const {
  const std::vector<std::string>& all = kinds_.names();
  const auto found = std::ranges::find(all, name);
  if (found == all.end()) throw py::key_error(optimizer_ + ": no slot is named '" + name + "'");
  const auto kind = static_cast<std::size_t>(found - all.begin());
  if (variables_.at(index).device != on_cpu) return py::cast(slot_on_device(index, kind));
  const Array& array = variables_.array(index);
  const py::capsule owner(new std::shared_ptr<Arena>(arena_),
                          [](void* pointer) { delete static_cast<std::shared_ptr<Arena>*>(pointer); });
  return py::array(py::dtype(name_of(array.compute)), py::array::ShapeContainer(variables_.shape(index)),
                   slot_kind(kind) + array.slot_offset, owner);
}

}  // namespace fusedstep
