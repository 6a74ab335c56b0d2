// What arrays are taken as gradients, and how: first as what they nearly always are.
#include "bind/gradients.hpp"

#include <algorithm>
#include <utility>

#include "bind/interchange.hpp"
#include "bind/refuse.hpp"
#include "core/slices.hpp"

namespace fusedstep {
namespace {

bool refers_to(PyObject* weak_reference, PyObject* object) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* current = nullptr;
  if (PyWeakref_GetRef(weak_reference, &current) < 0) throw py::error_already_set();
  Py_XDECREF(current);
  return current == object;
#else
  return PyWeakref_GetObject(weak_reference) == object;
#endif
}

}  // namespace

Gradients::Gradients(const Variables& variables, const Options& options, std::string who)
    : variables_(variables),
      options_(options),
      who_(std::move(who)),
      gradients_(variables.count()),
      same_(variables.are_plain_numpy() ? 0 : variables.count()),
      before_(same_.size()),
      cost_before_(variables.count() + 1) {}

int Gradients::visit_kept(visitproc visit, void* arg) const {  // as the macro wants it named
  for (const py::object& gradient : same_) Py_VISIT(gradient.ptr());
  return 0;
}

inline bool Gradients::is_ordinary(PyObject* gradient, std::size_t index, ArrayView& view) {
  return read_plain_array(gradient, view) && variables_.has_shape(index, view) && is_used_in_place(view) &&
         written_.is_apart(index, view.data, bytes_as(view.dtype, index));
}

// Which is checked, and not used. (Not inlined: it would hold up all others.)
[[gnu::noinline]] bool Gradients::is_ordinary_of_frozen(PyObject* gradient, std::size_t index) {
  ArrayView view;
  return is_ordinary(gradient, index, view);
}

// What nearly every array of nearly every step is: a variable in its place, unchanged, with a plain
// gradient if it had one in the call before. Anything else, good or bad, is looked at with care. Many
// threads may be here while the calling one has the GIL: Python's objects are only read, and what is noted of an array
// is in places of its own.
inline bool Gradients::take_ordinary(PyObject* gradient, std::size_t index) {
  ArrayView view;
  if (!read_plain_array(variables_[index].object.ptr(), view) || !variables_.is_unchanged(index, view)) return false;
  const bool had_gradient = gradients_[index].data != nullptr;
  if (gradient == Py_None) return !had_gradient;
  if (variables_[index].frozen) return !had_gradient && is_ordinary_of_frozen(gradient, index);
  if (!had_gradient || !is_ordinary(gradient, index, view)) return false;
  set(index, {view.data, nullptr, view.dtype});
  return true;
}

bool Gradients::take_ordinary(const Call& call, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin; i < end; ++i) {
    // The objects lie all over the memory, and their shapes elsewhere again.
    constexpr std::size_t far = 32, near = 16;
    if (i + far < end) {
      prefetch_array(call.grads[i + far]);
      prefetch_array(variables_[i + far].object.ptr());
    }
    if (i + near < end) {
      prefetch_shape(call.grads[i + near]);
      prefetch_shape(variables_[i + near].object.ptr());
    }
    if (!call.all_built && call.variables[i] != variables_[i].object.ptr()) return false;
    if (!take_ordinary(call.grads[i], i)) return false;
  }
  return true;
}

// The same as for NumPy's arrays, one after another, with the GIL: other libraries' are asked.
bool Gradients::take_ordinary_with_care(PyObject* gradient, std::size_t index, Call& call) {
  const Variables::Built& built = variables_[index];
  HeldView held;
  bool exchanged = false;
  const auto read = [&](PyObject* object, ArrayView& view) {
    exchanged = read_exchanged_array(object, view);
    if (exchanged) return true;
    call.hold_or_raise();  // whatever code of their own does to the lists
    if (!read_array(object, held)) return false;
    view = held;
    return true;
  };
  ArrayView view;
  if (!built.stays_as_it_is && (!read(built.object.ptr(), view) || !variables_.is_unchanged(index, view))) return false;
  const bool had_gradient = gradients_[index].data != nullptr;
  if (gradient == Py_None) return !had_gradient;
  const bool frozen = built.frozen;
  if (had_gradient == frozen) return false;
  py::object& same = same_[index];
  if (same && refers_to(same.ptr(), gradient)) return true;
  held.owner = py::object();
  if (PyTuple_Check(gradient) || !read(gradient, view) || !variables_.has_shape(index, view) ||
      view.device != built.device || !is_used_in_place(view) || held.owner) {
    return false;
  }
  if (!written_.is_apart(index, view.data, bytes_as(view.dtype, index))) return false;
  if (frozen) return true;
  set(index, {given_memory(view), nullptr, view.dtype});
  // To make a reference takes half as long as the look that it saves: only who came in the step before too gets one.
  const bool again = std::exchange(before_[index], gradient) == gradient;
  same = again && !exchanged && is_immutable_view(gradient) ? py::weakref(gradient) : py::object();
  return true;
}

bool Gradients::take_ordinary_with_care(Call& call) {
  for (std::size_t i = 0; i < count(); ++i) {
    prefetch_ahead([&](std::size_t k) { return call.grads[k]; }, i, count());
    prefetch_ahead([&](std::size_t k) { return variables_[k].object.ptr(); }, i, count());
    if (!call.all_built && call.variables[i] != variables_[i].object.ptr()) return false;
    if (!take_ordinary_with_care(call.grads[i], i, call)) return false;
  }
  return true;
}

// The index of a variable that does not stand where it stood in build, or is another array over the
// same memory.
std::size_t Gradients::look_up(PyObject* variable, std::size_t position, Call& call) const {
  const std::size_t index = variables_.find(variable);
  if (index == count()) variables_.refuse_unknown(variable, position);
  const Variables::Built& built = variables_[index];
  if (variable != built.object.ptr()) {
    const std::string what = who_ + variables_.label("variables", position, index);
    HeldView view;
    if (!read_array(variable, view)) refuse_array(variable, what, "variable");
    Variables::check_updatable(variable, view, what);
    if (!variables_.has_shape(index, view)) {
      refuse_value(what + " has shape " + text_of(view.ndim, view.shape) + ", but the same memory was built with " +
                   variables_.text_of_shape(index));
    }
  }
  if (call.seen.empty()) {  // all before came in order
    call.seen.resize(count());
    std::fill_n(call.seen.begin(), position, true);
  }
  return index;
}

bool Gradients::may_read(const char* data, std::int64_t bytes, std::size_t index, bool may_be_variable) {
  if (bytes == 0 || written_.is_apart(index, data, bytes)) return true;
  const WrittenMemory::Piece& other = written_.met_by(index);
  return may_be_variable && other.variable == static_cast<std::ptrdiff_t>(index) && other.begin == address(data) &&
         other.end - other.begin == static_cast<std::uintptr_t>(bytes);
}

void Gradients::refuse_overlap(std::size_t index, const std::string& what, bool may_be_variable) const {
  const std::ptrdiff_t variable = written_.met_by(index).variable;
  const auto other = static_cast<std::size_t>(variable);
  refuse_value(what + " shares memory with " +
               (variable == WrittenMemory::slots ? std::string("a slot")
                : other == index                 ? std::string(may_be_variable ? "a part of " : "") + "its own variable"
                                                 : variables_.label("variables", other, other)) +
               ", which this step writes; pass g.copy()");
}

Gradient Gradients::take(PyObject* gradient, std::size_t index, std::size_t position, const char* list, Call& call) {
  if (PyTuple_Check(gradient)) return take_rows(gradient, index, position, list, call);
  const auto what = [&] { return who_ + variables_.label(list, position, index); };  // takes longer than all the rest
  const Variables::Built& built = variables_[index];
  HeldView view;
  if (!read_array(gradient, view)) {
    if (!(built.ndim == 0 && read_scalar(gradient, view))) refuse_array(gradient, what(), "gradient");
  }
  if (!variables_.has_shape(index, view)) {
    refuse_value(what() + " has shape " + text_of(view.ndim, view.shape) + ", its variable has " +
                 variables_.text_of_shape(index));
  }
  if (view.device != built.device) {
    const char* const advice = built.device == on_cpu ? "cupy.asnumpy(g)" : "a gradient on the variable's device";
    refuse_value(who_ + variables_.label("variables", index, index) + " is on " + name_of(built.device) +
                 " but its gradient on " + name_of(view.device) + "; pass " + advice);
  }
  const bool clears = options_.clears_gradients;
  if (clears && !view.writeable()) refuse_value(what() + " is read-only, but this step sets it to zero; pass g.copy()");
  if (!view.contiguous() || !view.aligned()) {
    read_contiguous_copy(gradient, view, what());
    if (clears) call.copied.push_back(py::reinterpret_borrow<py::object>(gradient));
  } else if (!may_read(view.data, bytes_as(view.dtype, index), index, !clears)) {
    refuse_overlap(index, what(), !clears);
  }
  if (view.owner) call.copies.push_back(view.owner);
  return {given_memory(view), nullptr, view.dtype};
}

// Reads and checks everything; raises before anything is written.
void Gradients::take_all(Call& call, std::vector<Items>& others) {
  call.hold_or_raise();  // some objects are read by code of their own
  const std::size_t given = call.grads.size();
  for (std::size_t position = 0; position < given; ++position) {
    const bool in_place =
        position < count() && (call.all_built || call.variables[position] == variables_[position].object.ptr());
    const std::size_t index = in_place ? position : look_up(call.variables[position], position, call);
    if (!call.seen.empty()) {
      if (call.seen[index]) refuse_value(who_ + variables_.label("variables", position, index) + " comes twice");
      call.seen[index] = true;
    }
    variables_.check_unchanged(index, position, who_);
    Gradient gradient = {nullptr, nullptr, DType::float32};
    if (call.grads[position] != Py_None) {
      gradient = take(call.grads[position], index, position, "grads", call);
      ++call.given;
    }
    set(index, variables_[index].frozen ? Gradient{nullptr, nullptr, DType::float32} : gradient);
    call.index_of_position.push_back(index);
  }
  for (std::size_t index = call.seen.empty() ? given : 0; index < count(); ++index) {
    if (!call.seen.empty() && call.seen[index]) continue;
    if (visits_all()) variables_.check_unchanged(index, index, who_);
    set(index, {nullptr, nullptr, DType::float32});
  }
  if (call.replicas > 1) take_replicas(call, others);
  if (call.given == 0) {
    refuse_value(who_ + "all " + std::to_string(given) + " gradients are None; at least one variable must have one");
  }
  if (costs_known_) return;
  for (std::size_t i = 0; i < count(); ++i) {
    const bool visited = gradients_[i].data != nullptr || visits_all();
    cost_before_[i + 1] = cost_before_[i] + (visited ? cost_of(variables_.arrays_on_cpu()[i]) : 0);
  }
  costs_known_ = true;
}

}  // namespace fusedstep
