// NumPy arrays as seen from C++: read through pybind11's NumPy API, never converted or copied.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>

#include "core/step.hpp"

namespace fusedstep {

namespace py = pybind11;

inline std::uintptr_t address(const void* memory) {
  return reinterpret_cast<std::uintptr_t>(memory);
}

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
  bool has_shape(int other_ndim, const py::ssize_t* other) const {
    if (ndim != other_ndim) return false;
    for (int i = 0; i < ndim; ++i) {
      if (shape[i] != other[i]) return false;
    }
    return true;
  }
};

extern PyObject* array_type;  // numpy.ndarray
extern int bfloat16_number;   // NumPy's number for ml_dtypes.bfloat16, once that package was seen; -1 before
void import_numpy();

// Reads an array that is of numpy.ndarray itself and of a dtype seen before; false for all others.
// Only memory is read, so that any thread may do this while another one has the GIL.
inline bool read_plain_array(PyObject* object, ArrayView& view) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != array_type) return false;
  const auto* array = py::detail::array_proxy(object);
  view = {array->data, array->nd, array->dimensions, array->strides, array->flags, DType::float32};
  const auto* dtype = py::detail::array_descriptor_proxy(array->descr);
  constexpr int float16_number = 23;  // NPY_HALF, which pybind11 does not name
  switch (dtype->type_num) {
    case py::detail::npy_api::NPY_FLOAT_: view.dtype = DType::float32; break;
    case py::detail::npy_api::NPY_DOUBLE_: view.dtype = DType::float64; break;
    case float16_number: view.dtype = DType::float16; break;
    default:
      if (dtype->type_num != bfloat16_number) return false;
      view.dtype = DType::bfloat16;
  }
  return dtype->byteorder != '>';  // the machines that this is made for are little-endian
}

// False where the object is no array, masked (its mask would be ignored), or of another dtype.
bool read_array(PyObject* object, ArrayView& view);

// Fetches what read_plain_array will read. An object's shape lies elsewhere, and is known once it is here.
inline void prefetch_array(PyObject* object) {
  __builtin_prefetch(object);
  __builtin_prefetch(reinterpret_cast<const char*>(object) + 64);
}
inline void prefetch_shape(PyObject* object) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) == array_type) {
    __builtin_prefetch(py::detail::array_proxy(object)->dimensions);
  }
}

// Raises the sentence for an object that read_array refused. `what` names it: "Adam.apply: grads[3]".
[[noreturn]] void refuse_array(py::handle object, const std::string& what, const char* kind);

// Like read_array, but also takes a NumPy scalar; `owner` keeps what the view sees.
bool read_scalar(PyObject* object, ArrayView& view, py::object& owner);

// An equal array that is contiguous and aligned.
py::object contiguous_copy(PyObject* object, ArrayView& view);

std::string text_of(int count, const py::ssize_t* values);  // "(512, 10)"

}  // namespace fusedstep
