// The gradients or variables of a call, as Python passed them.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fusedstep {

namespace py = pybind11;

inline bool is_list_or_tuple(const py::object& object) {
  return PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr());
}

// A list or tuple of what an iterable gives; it is read once. `what` names it: "Adam.apply: grads". Errors
// of the iterable itself pass through.
py::object items_of(const py::object& iterable, const std::string& what);

// The items of such a list or tuple.
class Items {
 public:
  explicit Items(py::object list_or_tuple) : sequence_(std::move(list_or_tuple)) { look(); }

  std::size_t size() const { return size_; }
  PyObject* operator[](std::size_t position) const { return items_[position]; }

  // Keeps the items alive and in place, whatever happens to the list: needed before Python code may run. False,
  // with a Python error set, where there is no memory for it.
  bool hold() {
    if (PyTuple_CheckExact(sequence_.ptr())) return true;
    const auto tuple = py::reinterpret_steal<py::object>(PyList_AsTuple(sequence_.ptr()));
    if (!tuple) return false;
    sequence_ = tuple;
    look();
    return true;
  }
  const py::object& sequence() const { return sequence_; }

 private:
  void look() {
    size_ = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence_.ptr()));
    items_ = PySequence_Fast_ITEMS(sequence_.ptr());
  }

  py::object sequence_;
  std::size_t size_;
  PyObject* const* items_;
};

// The gradients and the variables of (gradient, variable) pairs, from any iterable, which is read once.
py::tuple unzip(const py::object& pairs, const std::string& who);

// The leaves of nested dicts, lists and tuples, and what another tree has in their places; None where that has other
// keys, or where not all is plain.
std::optional<std::pair<py::list, py::list>> pair_up(const py::object& tree, const py::object& other);

// An attribute of each of some arrays, None where it is, and which of them have None.
std::pair<py::list, std::vector<std::size_t>> attributes_of(const py::list& arrays, const py::str& name);

}  // namespace fusedstep
