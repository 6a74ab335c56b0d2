// Arrays of other libraries, read by what these show: DLPack's exchange API (PyTorch), attributes (CuPy), __dlpack__ or
// __cuda_array_interface__.
#pragma once

#include <string>

#include "bind/arrays.hpp"
#include "bind/dlpack.hpp"

namespace fusedstep {

// Integers that a device reads; `dtype` says nothing.
struct IndexView : HeldView {
  bool narrow;  // of 32 bits, else of 64
};

// What read_array does for all that is not NumPy's.
bool read_shown_array(PyObject* object, HeldView& view);

// The same for integers; false where they are of another dtype than int32 and int64.
bool read_indices(PyObject* object, IndexView& view);

// The same for variables and gradients with DLPack's exchange API alone, and without strides; false for one element,
// which has to be asked for more. No code of others runs. Valid until the array changes.
bool read_exchanged_array(PyObject* object, ArrayView& view);

// Whether the object, which is not NumPy's, is an array of some library by what it shows; of any dtype.
bool shows_memory(py::handle object);

// Whether an array is of JAX, whose arrays are immutable.
bool is_of_jax(py::handle object);

// Whether an object's array cannot change its memory, dtype or layout: who has seen it once need not look again.
bool is_immutable_view(PyObject* object);

// The stream on which the library of this GPU array puts its work now.
void* current_stream(PyObject* object, Device device);

// Why such an object is not taken: it stands for the negative of its memory, it stands for what lies elsewhere, or its
// __dlpack__ raises ("BufferError: this array was deleted"; empty where that raises nothing, or is not asked).
bool stands_for_negative(PyObject* object);
bool lacks_memory(PyObject* object);
std::string raised_by_dlpack(py::handle array);

// Fetches what these will read, ahead of object i in a loop over `object_at` of [0, count). An object of PyTorch's
// begins with a pointer to all that a view is made of; of another library's something else is fetched, which does no
// harm.
template <class ObjectAt>
[[gnu::always_inline]] inline void prefetch_ahead(const ObjectAt& object_at, std::size_t i, std::size_t count) {
  constexpr std::size_t far = 16, near = 8;
  if (i + far < count) prefetch_array(object_at(i + far));
  if (i + near >= count) return;
  PyObject* const object = object_at(i + near);
  if (Py_TYPE(object)->tp_basicsize < static_cast<py::ssize_t>(sizeof(PyObject) + sizeof(char*))) return;
  const char* const behind = *reinterpret_cast<char* const*>(object + 1);
  for (int line = 0; line < 3; ++line) __builtin_prefetch(behind + line * 64);
}

}  // namespace fusedstep
