// Arrays as seen from C++: NumPy's, read through pybind11's NumPy API, and those of any library that shows its
// memory, on the CPU or a GPU. Never converted or copied.
#pragma once

#include <pybind11/numpy.h>

#include <array>
#include <cstdint>
#include <string>

#include "core/step.hpp"

namespace fusedstep {

namespace py = pybind11;

inline std::uintptr_t address(const void* memory) {
  return reinterpret_cast<std::uintptr_t>(memory);
}

// Where memory is: a GPU's number, or the CPU.
using Device = std::int32_t;
constexpr Device on_cpu = -1;
std::string name_of(Device device);  // "the CPU", "cuda:1"

// An array of a supported dtype in native byte order. Valid while the array is.
struct ArrayView {
  char* data;
  int ndim;
  const py::ssize_t* shape;
  const py::ssize_t* strides;  // in bytes; null where it is contiguous
  int flags;                   // as NumPy's
  DType dtype;
  Device device;

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

// A view with what it points to, where its library does not keep that.
struct HeldView : ArrayView {
  py::object owner;
  static constexpr int most_dimensions = 64;
  std::array<py::ssize_t, 2 * most_dimensions> numbers;
};

extern PyObject* array_type;  // numpy.ndarray
extern int bfloat16_number;   // NumPy's number for ml_dtypes.bfloat16, once that package was seen; before, a
                              // number that no dtype has (NumPy's -1 is that of some dtypes of other packages)
void import_numpy();

// Of NumPy's own dtype object; false for those that no variable has, or that were not seen before.
inline bool read_dtype(const PyObject* object, DType& dtype) {
  const auto* read = py::detail::array_descriptor_proxy(object);
  constexpr int float16_number = 23;  // NPY_HALF, which pybind11 does not name
  switch (read->type_num) {
    case py::detail::npy_api::NPY_FLOAT_: dtype = DType::float32; break;
    case py::detail::npy_api::NPY_DOUBLE_: dtype = DType::float64; break;
    case float16_number: dtype = DType::float16; break;
    default:
      if (read->type_num != bfloat16_number) return false;
      dtype = DType::bfloat16;
  }
  return read->byteorder != '>';  // the machines that this is made for are little-endian
}

// Reads what is of numpy.ndarray or a subclass; false where its dtype was not seen before. (Always inlined: as a call
// it would cost a step of many small arrays 4 %.)
[[gnu::always_inline]] inline bool read_numpy_array(PyObject* object, ArrayView& view) {
  const auto* array = py::detail::array_proxy(object);
  view = {array->data, array->nd, array->dimensions, array->strides, array->flags, DType::float32, on_cpu};
  return read_dtype(array->descr, view.dtype);
}

// Reads an array that is of numpy.ndarray itself and of a dtype seen before; false for all others.
// Only memory is read, so that any thread may do this while another one has the GIL.
inline bool read_plain_array(PyObject* object, ArrayView& view) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object)) == array_type && read_numpy_array(object, view);
}

// False where the object is no array, masked (its mask would be ignored), or of another dtype. NumPy's arrays, and
// whatever has DLPack's exchange API (PyTorch's tensors), is of CuPy, or has __cuda_array_interface__ or __dlpack__.
bool read_array(PyObject* object, HeldView& view);

// Whether read_array takes the object, and whether it is on a GPU.
bool is_array(PyObject* object);
bool is_on_device(PyObject* object);

// Whether NumPy's number for ml_dtypes.bfloat16 became known just now.
bool learn_bfloat16();

std::string module_of_type(py::handle object);
py::dict loaded_modules();

// The name of an object's type, with its module where that is not Python's own.
std::string name_of_type(py::handle object);

// Fetches what read_plain_array will read. An object's shape lies elsewhere, and is known once it is here. (Always
// inlined, as the next one: GCC drops calls of functions that do nothing else.)
[[gnu::always_inline]] inline void prefetch_array(PyObject* object) {
  __builtin_prefetch(object);
  __builtin_prefetch(reinterpret_cast<const char*>(object) + 64);
}
[[gnu::always_inline]] inline void prefetch_shape(PyObject* object) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) == array_type) {
    __builtin_prefetch(py::detail::array_proxy(object)->dimensions);
  }
}

// Raises the sentence for an object that read_array refused. `what` names it: "Adam.apply: grads[3]".
[[noreturn]] void refuse_array(py::handle object, const std::string& what, const char* kind);

// The same for indices that read_indices refused, of a variable on this device.
[[noreturn]] void refuse_indices(py::handle object, const std::string& what, Device device);

// The same for an array on a device that steps cannot run on.
[[noreturn]] void refuse_device(py::handle object, const std::string& what);

// Like read_array, but also takes a NumPy scalar; the view keeps it.
bool read_scalar(PyObject* object, HeldView& view);

// What a user calls to have `w` contiguous.
std::string call_for_copy(py::handle w);

// An equal array that is contiguous and aligned, of the same library.
py::object contiguous_copy(py::handle array, const ArrayView& view, const std::string& what);

// Makes the view that of an equal array, which it keeps, that is contiguous and aligned.
void read_contiguous_copy(PyObject* object, HeldView& view, const std::string& what);

std::string text_of(int count, const py::ssize_t* values);  // "(512, 10)"
std::string text_of_strides(const ArrayView& view);

}  // namespace fusedstep
