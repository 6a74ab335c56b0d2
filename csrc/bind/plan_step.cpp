// A plan's step: look at all that Python passed, refuse or run.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "bind/call.hpp"
#include "bind/items.hpp"
#include "bind/plan.hpp"
#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "core/slices.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/run.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {
namespace {

#if PY_VERSION_HEX >= 0x030D0000
bool python_is_ending() {
  return Py_IsFinalizing() != 0;
}
#else
bool python_is_ending() {
  return _Py_IsFinalizing() != 0;
}
#endif

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Releases the GIL from begin() on until it is destroyed.
class GilRelease {
 public:
  GilRelease() = default;
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  void begin() {
    if (python_is_ending()) return;  // in the thread that ends it: nobody else needs the GIL
    state_ = PyEval_SaveThread();
  }

  ~GilRelease() {
    if (state_ == nullptr) return;
    // When Python ends, daemon threads do not get the GIL back: up to 3.13 it ends them here, by an unwinding
    // of the stack. That must not pass: it would drop references without the GIL. They wait for the end.
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      while (true) pause();
    }
  }

 private:
  PyThreadState* state_ = nullptr;
};

}  // namespace

bool Plan::is_unchanged(std::size_t index, const ArrayView& view) const {
  const Built& built = built_[index];
  return view.data == arrays_[index].variable && view.device == built.device && view.dtype == arrays_[index].dtype &&
         view.has_shape(built.ndim, shape_of(built)) && view.contiguous() && view.aligned() && view.writeable();
}

void Plan::set_gradient(std::size_t index, Gradient gradient) {
  if (!same_gradients_.empty()) same_gradients_[index] = py::object();  // until it is known again
  // Written only where it changes: the other threads have the former ones in their caches.
  Gradient& current = gradients_[index];
  if (current.data == gradient.data && current.dtype == gradient.dtype && current.rows == gradient.rows) return;
  if ((current.data == nullptr) != (gradient.data == nullptr)) costs_known_ = false;
  current = gradient;
}

inline bool Plan::is_ordinary(PyObject* gradient, std::size_t index, ArrayView& view) {
  const Built& built = built_[index];
  return read_plain_array(gradient, view) && view.has_shape(built.ndim, shape_of(built)) && is_used_in_place(view) &&
         written_.is_apart(index, view.data, arrays_[index].size * bytes_of(view.dtype));
}

// Which is checked, and not used. (Not inlined: it would hold up all others.)
[[gnu::noinline]] bool Plan::is_ordinary_of_frozen(PyObject* gradient, std::size_t index) {
  ArrayView view;
  return is_ordinary(gradient, index, view);
}

// What nearly every array of nearly every step is: a variable in its place, unchanged, with a plain
// gradient if it had one in the call before. Anything else, good or bad, is looked at with care. Many
// threads may be here while the calling one has the GIL: Python's objects are only read, and what is noted of an array
// is in places of its own.
inline bool Plan::take_ordinary(PyObject* gradient, std::size_t index) {
  ArrayView view;
  if (!read_plain_array(built_[index].object.ptr(), view) || !is_unchanged(index, view)) return false;
  const bool had_gradient = gradients_[index].data != nullptr;
  if (gradient == Py_None) return !had_gradient;
  if (built_[index].frozen) return !had_gradient && is_ordinary_of_frozen(gradient, index);
  if (!had_gradient || !is_ordinary(gradient, index, view)) return false;
  set_gradient(index, {view.data, nullptr, view.dtype});
  return true;
}

bool Plan::take_ordinary(const Call& call, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin; i < end; ++i) {
    // The objects lie all over the memory, and their shapes elsewhere again.
    constexpr std::size_t far = 32, near = 16;
    if (i + far < end) {
      prefetch_array(call.grads[i + far]);
      prefetch_array(built_[i + far].object.ptr());
    }
    if (i + near < end) {
      prefetch_shape(call.grads[i + near]);
      prefetch_shape(built_[i + near].object.ptr());
    }
    if (!call.all_built && call.variables[i] != built_[i].object.ptr()) return false;
    if (!take_ordinary(call.grads[i], i)) return false;
  }
  return true;
}

void Plan::refuse_unknown(py::handle variable, std::size_t position) const {
  const std::string what = optimizer_ + ".apply: variables[" + std::to_string(position) + "]";
  HeldView view;
  if (!read_array(variable.ptr(), view)) refuse_array(variable, what, "variable");
  if (view.device != on_cpu && devices() == nullptr) refuse_device(variable, what);
  refuse_value(what + " (shape " + text_of(view.ndim, view.shape) + ", dtype " + name_of(view.dtype) +
               ") was never built; `w = w - x` makes a new array, `w -= x` and `w[...] = x` keep the old one; " +
               "build(variables) adds new ones");
}

void Plan::check_unchanged(std::size_t index, std::size_t position, const std::string& who) const {
  const Built& built = built_[index];
  HeldView view;
  const bool is_array = read_array(built.object.ptr(), view);
  if (is_array && is_unchanged(index, view)) return;
  const std::string what = who + label("variables", position, index);
  if (is_array && !view.has_shape(built.ndim, shape_of(built))) {
    refuse_value(what + " has shape " + text_of(view.ndim, view.shape) + ", but had " + text_of_shape(built) +
                 " when it was built; forget(variables) and build again");
  }
  if (is_array && view.data == arrays_[index].variable && !view.writeable()) {
    refuse_value(what + " is read-only now, but it is updated in place; w.flags.writeable = True allows that");
  }
  refuse_value(what + " has other memory, dtype or layout than when it was built; forget(variables) and build again");
}

// The index of a variable that does not stand where it stood in build, or is another array over the
// same memory.
std::size_t Plan::look_up(PyObject* variable, std::size_t position, Call& call) const {
  const std::size_t index = find(variable);
  if (index == count()) refuse_unknown(variable, position);
  const Built& built = built_[index];
  if (variable != built.object.ptr()) {
    const std::string what = who_ + label("variables", position, index);
    HeldView view;
    if (!read_array(variable, view)) refuse_array(variable, what, "variable");
    check_updatable(variable, view, what);
    if (!view.has_shape(built.ndim, shape_of(built))) {
      refuse_value(what + " has shape " + text_of(view.ndim, view.shape) + ", but the same memory was built with " +
                   text_of_shape(built));
    }
  }
  if (call.seen.empty()) {  // all before came in order
    call.seen.resize(count());
    std::fill_n(call.seen.begin(), position, true);
  }
  return index;
}

bool Plan::may_read(const char* data, std::int64_t bytes, std::size_t index, bool may_be_variable) {
  if (bytes == 0 || written_.is_apart(index, data, bytes)) return true;
  const WrittenMemory::Piece& other = written_.met_by(index);
  return may_be_variable && other.variable == static_cast<std::ptrdiff_t>(index) && other.begin == address(data) &&
         other.end - other.begin == static_cast<std::uintptr_t>(bytes);
}

void Plan::refuse_overlap(std::size_t index, const std::string& what, bool may_be_variable) const {
  const std::ptrdiff_t variable = written_.met_by(index).variable;
  const auto other = static_cast<std::size_t>(variable);
  refuse_value(what + " shares memory with " +
               (variable == WrittenMemory::slots ? std::string("a slot")
                : other == index                 ? std::string(may_be_variable ? "a part of " : "") + "its own variable"
                                                 : label("variables", other, other)) +
               ", which this step writes; pass g.copy()");
}

Gradient Plan::take_gradient(PyObject* gradient, std::size_t index, std::size_t position, const char* list,
                             Call& call) {
  if (PyTuple_Check(gradient)) return take_rows(gradient, index, position, list, call);
  const auto what = [&] { return who_ + label(list, position, index); };  // takes longer than all the rest
  const Built& built = built_[index];
  HeldView view;
  if (!read_array(gradient, view)) {
    if (!(built.ndim == 0 && read_scalar(gradient, view))) refuse_array(gradient, what(), "gradient");
  }
  if (!view.has_shape(built.ndim, shape_of(built))) {
    refuse_value(what() + " has shape " + text_of(view.ndim, view.shape) + ", its variable has " +
                 text_of_shape(built));
  }
  if (view.device != built.device) {
    const char* const advice = built.device == on_cpu ? "cupy.asnumpy(g)" : "a gradient on the variable's device";
    refuse_value(who_ + label("variables", index, index) + " is on " + name_of(built.device) + " but its gradient on " +
                 name_of(view.device) + "; pass " + advice);
  }
  const bool clears = options_.clears_gradients;
  if (clears && !view.writeable()) refuse_value(what() + " is read-only, but this step sets it to zero; pass g.copy()");
  if (!view.contiguous() || !view.aligned()) {
    read_contiguous_copy(gradient, view, what());
    if (clears) call.copied.push_back(py::reinterpret_borrow<py::object>(gradient));
  } else if (!may_read(view.data, arrays_[index].size * bytes_of(view.dtype), index, !clears)) {
    refuse_overlap(index, what(), !clears);
  }
  if (view.owner) call.copies.push_back(view.owner);
  return {given_memory(view), nullptr, view.dtype};
}

// Reads and checks everything; raises before anything is written.
void Plan::take_all(Call& call, std::vector<Items>& others) {
  call.hold_or_raise();  // some objects are read by code of their own
  const std::size_t given = call.grads.size();
  for (std::size_t position = 0; position < given; ++position) {
    const bool in_place =
        position < count() && (call.all_built || call.variables[position] == built_[position].object.ptr());
    const std::size_t index = in_place ? position : look_up(call.variables[position], position, call);
    if (!call.seen.empty()) {
      if (call.seen[index]) refuse_value(who_ + label("variables", position, index) + " comes twice");
      call.seen[index] = true;
    }
    check_unchanged(index, position, who_);
    Gradient gradient = {nullptr, nullptr, DType::float32};
    if (call.grads[position] != Py_None) {
      gradient = take_gradient(call.grads[position], index, position, "grads", call);
      ++call.given;
    }
    set_gradient(index, built_[index].frozen ? Gradient{nullptr, nullptr, DType::float32} : gradient);
    call.index_of_position.push_back(index);
  }
  for (std::size_t index = call.seen.empty() ? given : 0; index < count(); ++index) {
    if (!call.seen.empty() && call.seen[index]) continue;
    if (visits_all()) check_unchanged(index, index, who_);
    set_gradient(index, {nullptr, nullptr, DType::float32});
  }
  if (call.replicas > 1) take_replicas(call, others);
  if (call.given == 0) {
    refuse_value(who_ + "all " + std::to_string(given) + " gradients are None; at least one variable must have one");
  }
  if (costs_known_) return;
  for (std::size_t i = 0; i < count(); ++i) {
    const bool visited = gradients_[i].data != nullptr || visits_all();
    cost_before_[i + 1] = cost_before_[i] + (visited ? cost_of((has_devices() ? arrays_here_ : arrays_)[i]) : 0);
  }
  costs_known_ = true;
}

// (Not inlined: its arithmetic must stay in the mode that is set.)
[[gnu::noinline]] void Plan::describe_settings(double learning_rate, std::size_t replicas, bool mean) {
  const baseline::CallSettings call =
      baseline::describe_call(options_, counts_, static_cast<std::uint32_t>(replicas), mean);
  settings_.clear();
  for (const Group& group : groups_) {
    settings_.push_back(baseline::settings_of(options_, counts_, call, group, hyperparameters_, learning_rate));
  }
  norms_.clip = call.clips ? options_.clip : Clip::none;
  norms_.largest = options_.largest_norm;
  norms_.scale = call.scale;
  norms_.sign = call.sign;
  norms_.skips_not_finite = options_.skips_not_finite;
}

Step Plan::describe_step(double learning_rate, std::size_t replicas, bool mean) {
  const DefaultFloatEnvironment environment;
  describe_settings(learning_rate, replicas, mean);
  Step step = {};
  step.rule = rule_;
  step.settings = settings_.data();
  step.settings_count = settings_.size();
  step.arrays = has_devices() ? arrays_here_.data() : arrays_.data();
  step.gradients = gradients_.data();
  step.replicas = 1;
  step.cost_before = cost_before_.data();
  step.count = count();
  step.factors = norms_.clip != Clip::none ? norms_.factors.data() : nullptr;
  std::size_t kind = 0;
  for (; kind < static_cast<std::size_t>(rule().slot_count); ++kind) {
    if (!custom_) step.slots[kind] = slot_kind(kind);
  }
  if (accumulates_) step.accumulator = slot_kind(kind++);
  if (averages_) step.average = slot_kind(kind++);
  return step;
}

// Runs a step, on the clock; with arrays that were not looked at yet if `check`. False, with nothing changed,
// where one of them is not ordinary.
bool Plan::run_timed(Step step, Call& call, bool check) {
  struct Context {
    Plan& plan;
    Call& call;
    std::optional<GilRelease> gil;
    std::optional<CustomStep> custom;
  } context{*this, call, {}, {}};
  Before before = {nullptr, nullptr, &context};
  if (check) {
    before.is_good = [](void* from, std::size_t begin, std::size_t end) {
      const Context& context = *static_cast<Context*>(from);
      return context.plan.take_ordinary(context.call, begin, end);
    };
  }
  const std::uint64_t cost = step.cost_before[step.count];
  if (calls_python()) {
    step.custom = &context.custom.emplace(*custom_);
    before.all_good = [](void* from) {
      Context& context = *static_cast<Context*>(from);
      context.call.hold_or_raise();
      context.custom->gradients = context.call.held();
    };
  }
  // A smaller step is not worth a look at the clock: it runs on one thread, with the GIL.
  const bool is_timed = !step.custom && cost * step.replicas >= cost_per_thread;
  const bool release_gil = is_timed && pace_->is_long(cost);
  if (release_gil) {
    before.all_good = [](void* from) {
      Context& context = *static_cast<Context*>(from);
      if (context.call.hold()) {
        context.gil.emplace().begin();
      } else {  // no memory: the step goes on with the GIL
        PyErr_Clear();
      }
    };
  }
  const double begin = is_timed ? now() : 0;
  const int threads = is_timed ? pace_->choose(cost, threads_for(cost), begin) : 1;
  const Outcome outcome = run(step, current_target(), before, norms_, threads);
  const double end = is_timed ? now() : 0;
  context.gil.reset();
  if (is_timed && outcome != Outcome::not_good) pace_->measured(cost, begin, end, !release_gil);
  if (outcome == Outcome::not_good) return false;
  norm_ = norms_.wanted() ? std::optional(norms_.norm) : std::nullopt;
  skipped_ = outcome == Outcome::skipped;
  count_call();
  return true;
}

// Counts a call that was made or, where it was skipped, left out.
void Plan::count_call() {
  if (skipped_) return baseline::count_left_out(options_, counts_);
  baseline::count_made(options_, counts_);
  if (counts_.calls % options_.accumulation_steps != 0) return;
  ++counts_.updates;
  const auto carry = rule().carry;
  if (carry == nullptr) return;
  const DefaultFloatEnvironment environment;
  for (std::size_t k = 0; k < groups_.size(); ++k) {
    const Settings& settings = settings_[k];
    (groups_[k].apart ? groups_[k].carried : counts_.carried) =
        carry(settings.hyperparameters, settings.t, settings.carried);
  }
}

std::int64_t Plan::step(const py::object& grads, const py::object& variables, const py::object& learning_rate,
                        const py::object& replicas, bool mean) {
  const Exclusive exclusive(*this);
  // All are read before any is looked at: iterables run code of their own.
  // (Of a list no name is put together: that takes as long as the rest of a short call.)
  const auto read = [&](const py::object& given, const char* list) {
    return is_list_or_tuple(given) ? given : items_of(given, who_ + list);
  };
  const py::object gradient_items = read(grads, "grads");
  const py::object variable_items = variables.is_none() ? variables : read(variables, "variables");
  std::vector<Items> others;
  if (!replicas.is_none()) {
    for (const py::handle list : replicas) {
      const std::string what = who_ + "replicas[" + std::to_string(others.size() + 1) + "]";
      others.emplace_back(items_of(py::reinterpret_borrow<py::object>(list), what));
    }
  }
  Call call(gradient_items, variable_items, others.size() + 1);
  const std::size_t expected = call.all_built ? count() : call.variables.size();
  if (call.grads.size() != expected) {
    refuse_value(who_ + "grads has " + std::to_string(call.grads.size()) + " items, variables " +
                 std::to_string(expected) + "; pass one gradient for each variable, None where there is none");
  }
  if (expected == 0) return counts_.calls;
  const bool has_number = PyFloat_Check(learning_rate.ptr()) != 0;
  const bool looks_up = !has_number && learning_rate.is_none() && rates_left_ > 0;
  Rate rate = {has_number ? PyFloat_AS_DOUBLE(learning_rate.ptr()) : 0, nullptr, DType::float64};
  if (has_number) {
    check_learning_rate(rate.number);
  } else if (!looks_up) {
    call.hold_or_raise();  // it is read by code of its own
    rate = take_rate_on_device(learning_rate);
  }

  Step step = describe_step(rate.number, call.replicas, mean);
  const bool may_be_ordinary = costs_known_ && expected == count() && call.replicas == 1;
  if (may_be_ordinary && plain_numpy_ && run_timed(step, call, true)) return counts_.calls;
  if (!(may_be_ordinary && !plain_numpy_ && take_ordinary_with_care(call))) take_all(call, others);
  // Nothing can be refused from here on.
  if (call.replicas > 1) {
    step.gradients = call.gradients.data();
    step.replicas = call.replicas;
  }
  if (options_.lazy && !call.rows.empty()) {
    update_touched_rows(step, call);
    const auto is_touched = [](const Rows* rows) { return rows != nullptr; };
    if (custom_ && std::ranges::any_of(call.touched, is_touched)) custom_->check_rows();
  }
  if (has_devices()) {
    step_on_devices(step, call, rate, rate.array != nullptr ? learning_rate : py::none(), looks_up, mean);
  } else {
    run_timed(step, call, false);
  }
  for (const py::object& gradient : call.copied) gradient.attr("fill")(0);
  return counts_.calls;
}

}  // namespace fusedstep
