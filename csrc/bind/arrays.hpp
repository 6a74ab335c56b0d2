// NumPy arrays as seen from C++: read through pybind11's NumPy API, never converted or copied.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>

#include "core/step.hpp"

namespace fusedstep {

namespace py = pybind11;

// An array of a supported dtype in native byte order. Valid while the array is.
struct ArrayView {
  char* data;
  int ndim;
  const py::ssize_t* shape;
  const py::ssize_t* strides;
  int flags;
  DType dtype;

  bool contiguous() const { return (flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_) != 0; }
  bool aligned() const { return (flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0; }
  bool writeable() const { return (flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0; }
  std::int64_t size() const;
  bool has_shape(int other_ndim, const py::ssize_t* other) const;
};

// False where the object is not such an array.
bool read_array(PyObject* object, ArrayView& view);

// Raises the sentence for an object that read_array refused. `what` names it: "Adam.apply: grads[3]".
[[noreturn]] void refuse_array(py::handle object, const std::string& what, const char* kind);

// Like read_array, but also takes a NumPy scalar; `owner` keeps what the view sees.
bool read_scalar(PyObject* object, ArrayView& view, py::object& owner);

// An equal array that is contiguous and aligned.
py::object contiguous_copy(PyObject* object, ArrayView& view);

std::string text_of(int count, const py::ssize_t* values);  // "(512, 10)"
std::string text_of_shape(py::handle array);

}  // namespace fusedstep
