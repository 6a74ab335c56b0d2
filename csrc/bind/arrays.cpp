#include "bind/arrays.hpp"

#include "bind/refuse.hpp"

namespace fusedstep {
namespace {

using py::detail::npy_api;

constexpr int float16_number = 23;  // NPY_HALF, which pybind11 does not name

// NumPy's number for ml_dtypes.bfloat16: given when that package is imported, so unknown before.
int bfloat16_number = -1;

bool is_bfloat16(int type_number) {
  constexpr int first_user_type = 256;
  if (type_number < first_user_type) return false;
  if (bfloat16_number < 0) {
    const py::dict modules = py::module_::import("sys").attr("modules");
    if (!modules.contains("ml_dtypes")) return false;
    bfloat16_number = py::dtype::from_args(modules["ml_dtypes"].attr("bfloat16")).num();
  }
  return type_number == bfloat16_number;
}

bool read_dtype(PyObject* descriptor, DType& dtype) {
  const auto* proxy = py::detail::array_descriptor_proxy(descriptor);
  switch (proxy->type_num) {
    case npy_api::NPY_FLOAT_: dtype = DType::float32; break;
    case npy_api::NPY_DOUBLE_: dtype = DType::float64; break;
    case float16_number: dtype = DType::float16; break;
    default:
      if (!is_bfloat16(proxy->type_num)) return false;
      dtype = DType::bfloat16;
  }
  return proxy->byteorder != '>';  // the machines that this is made for are little-endian
}

// Its mask would be ignored: not an array that may be read or written as plain memory.
bool is_masked(PyObject* array) {
  const npy_api& numpy = npy_api::get();
  return reinterpret_cast<PyObject*>(Py_TYPE(array)) != reinterpret_cast<PyObject*>(numpy.PyArray_Type_) &&
         PyObject_HasAttrString(array, "mask") == 1;
}

std::string name_of_type(py::handle object) {
  const py::handle type = py::type::handle_of(object);
  const std::string module = py::str(type.attr("__module__"));
  const std::string name = py::str(type.attr("__qualname__"));
  return module == "builtins" ? name : module + "." + name;
}

}  // namespace

std::int64_t ArrayView::size() const {
  std::int64_t size = 1;
  for (int i = 0; i < ndim; ++i) size *= shape[i];
  return size;
}

bool ArrayView::has_shape(int other_ndim, const py::ssize_t* other) const {
  if (ndim != other_ndim) return false;
  for (int i = 0; i < ndim; ++i) {
    if (shape[i] != other[i]) return false;
  }
  return true;
}

bool read_array(PyObject* object, ArrayView& view) {
  if (!npy_api::get().PyArray_Check_(object) || is_masked(object)) return false;
  const auto* proxy = py::detail::array_proxy(object);
  view = {proxy->data, proxy->nd, proxy->dimensions, proxy->strides, proxy->flags, DType::float32};
  return read_dtype(proxy->descr, view.dtype);
}

void refuse_array(py::handle object, const std::string& what, const char* kind) {
  if (py::hasattr(object, "__cuda_array_interface__")) {
    refuse_now(what + " is a GPU array (" + name_of_type(object) +
               "), but this build has no CUDA kernels; pass NumPy arrays, for example cupy.asnumpy(x)");
  }
  if (!npy_api::get().PyArray_Check_(object.ptr())) {
    refuse_type(what + " is of type " + name_of_type(object) + ", but a " + kind +
                " must be a numpy.ndarray; convert it once with numpy.asarray(x)");
  }
  if (is_masked(object.ptr())) {
    refuse_type(what + " is a masked array (" + name_of_type(object) +
                "), whose mask would be ignored; pass a plain array, for example x.filled(0)");
  }
  const py::handle dtype = object.attr("dtype");
  DType ignored;
  if (!dtype.attr("isnative").cast<bool>() && read_dtype(dtype.attr("newbyteorder")("=").ptr(), ignored)) {
    refuse_type(what + " has the byte-swapped dtype " + std::string(py::str(dtype.attr("str"))) + ", but a " + kind +
                " must be in native byte order; convert it once with x.astype(x.dtype.newbyteorder('='))");
  }
  refuse_type(what + " has dtype " + std::string(py::str(dtype)) + ", but a " + kind +
              " must be float32, float64, float16 or bfloat16 (of ml_dtypes); convert it with x.astype(numpy.float32)");
}

bool read_scalar(PyObject* object, ArrayView& view, py::object& owner) {
  if (!py::isinstance(object, py::module_::import("numpy").attr("generic"))) return false;
  owner = py::module_::import("numpy").attr("asarray")(py::handle(object));
  return read_array(owner.ptr(), view);
}

py::object contiguous_copy(PyObject* object, ArrayView& view) {
  py::object copy = py::module_::import("numpy").attr("array")(py::handle(object), py::arg("order") = "C");
  read_array(copy.ptr(), view);
  return copy;
}

std::string text_of(int count, const py::ssize_t* values) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + (count == 1 ? ",)" : ")");
}

std::string text_of_shape(py::handle array) { return py::str(array.attr("shape")); }

}  // namespace fusedstep
