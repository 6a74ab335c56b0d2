#include "bind/arrays.hpp"

#include "bind/refuse.hpp"

namespace fusedstep {
namespace {

using py::detail::npy_api;

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

PyObject* array_type = nullptr;
int bfloat16_number = -1;

void import_numpy() {
  array_type = reinterpret_cast<PyObject*>(npy_api::get().PyArray_Type_);
}

bool read_array(PyObject* object, ArrayView& view) {
  if (read_plain_array(object, view)) return true;
  if (!npy_api::get().PyArray_Check_(object)) return false;
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != array_type) {  // a subclass: as its memory, unless masked
    const py::object plain = py::handle(object).attr("view")(py::handle(array_type));
    if (PyObject_HasAttrString(object, "mask") || !read_array(plain.ptr(), view)) return false;
    const auto* array = py::detail::array_proxy(object);
    view = {array->data, array->nd, array->dimensions, array->strides, array->flags, view.dtype};
    return true;
  }
  const py::dict modules = py::module_::import("sys").attr("modules");
  if (bfloat16_number >= 0 || !modules.contains("ml_dtypes")) return false;
  if (!py::hasattr(modules["ml_dtypes"], "bfloat16")) return false;
  bfloat16_number = py::dtype::from_args(modules["ml_dtypes"].attr("bfloat16")).num();
  return read_plain_array(object, view);
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
  if (py::hasattr(object, "mask")) {
    refuse_type(what + " is a masked array (" + name_of_type(object) +
                "), whose mask would be ignored; pass a plain array, for example x.filled(0)");
  }
  const py::object dtype = object.attr("dtype");
  if (!dtype.attr("isnative").cast<bool>() && dtype.attr("kind").cast<std::string>() == "f") {
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

}  // namespace fusedstep
