// The gradients or variables of a call, as Python passed them.
#pragma once

#include <pybind11/numpy.h>

#include <string>

#include "bind/refuse.hpp"

namespace fusedstep {

namespace py = pybind11;

// The items of a list, a tuple, or another iterable, which is read once.
class Items {
 public:
  Items(const py::object& iterable, const std::string& who, const char* name) {
    if (PyList_CheckExact(iterable.ptr()) || PyTuple_CheckExact(iterable.ptr())) {
      sequence_ = iterable;
    } else if (py::isinstance<py::array>(iterable)) {
      refuse_type(who + name + " is one numpy.ndarray, but must be a list of them; pass [x]");
    } else {
      sequence_ = py::reinterpret_steal<py::object>(PySequence_Tuple(iterable.ptr()));
      if (!sequence_) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
        PyErr_Clear();
        refuse_type(who + name + " is of type " + std::string(py::str(py::type::handle_of(iterable).attr("__name__"))) +
                    ", but must be a list of arrays");
      }
    }
    size_ = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence_.ptr()));
    items_ = PySequence_Fast_ITEMS(sequence_.ptr());
  }

  std::size_t size() const { return size_; }
  PyObject* operator[](std::size_t position) const { return items_[position]; }

  // Keeps the items alive whatever happens to the list: needed before other Python code may run.
  void hold() {
    if (PyTuple_CheckExact(sequence_.ptr())) return;
    sequence_ = py::reinterpret_steal<py::object>(PyList_AsTuple(sequence_.ptr()));
    if (!sequence_) throw py::error_already_set();
    items_ = PySequence_Fast_ITEMS(sequence_.ptr());
  }

 private:
  py::object sequence_;
  std::size_t size_ = 0;
  PyObject* const* items_ = nullptr;
};

}  // namespace fusedstep
