#include "bind/arrays.hpp"

#include "bind/interchange.hpp"
#include "bind/refuse.hpp"

namespace fusedstep {

using py::detail::npy_api;

namespace {

bool has_contiguous(py::handle array) {  // as PyTorch's tensors
  return py::hasattr(array, "contiguous");
}

// The loaded module of an array's library that has numpy.ascontiguousarray; null where there is none.
py::object library_with_copies(py::handle array) {
  if (npy_api::get().PyArray_Check_(array.ptr())) return py::module_::import("numpy");
  const std::string module = module_of_type(array);
  const py::str library(module.substr(0, module.find('.')));
  const py::dict modules = loaded_modules();
  if (!modules.contains(library) || !py::hasattr(modules[library], "ascontiguousarray")) return py::object();
  return modules[library];
}

bool is_masked(PyObject* array) {
  return reinterpret_cast<PyObject*>(Py_TYPE(array)) != array_type && PyObject_HasAttrString(array, "mask") != 0;
}

// A subclass is read as its memory, whatever its methods do.
bool read_numpy(PyObject* object, HeldView& view) {
  if (is_masked(object)) return false;
  return read_numpy_array(object, view) || (learn_bfloat16() && read_numpy_array(object, view));
}

}  // namespace

std::string module_of_type(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__module__"));
}

py::dict loaded_modules() {
  return py::module_::import("sys").attr("modules");
}

std::string name_of_type(py::handle object) {
  const std::string module = module_of_type(object);
  const std::string name = py::str(py::type::handle_of(object).attr("__qualname__"));
  return module == "builtins" ? name : module + "." + name;
}

std::string name_of(Device device) {
  return device == on_cpu ? "the CPU" : "cuda:" + std::to_string(device);
}

std::int64_t ArrayView::size() const {
  std::int64_t size = 1;
  for (int i = 0; i < ndim; ++i) size *= shape[i];
  return size;
}

PyObject* array_type = nullptr;
int bfloat16_number = -2;

void import_numpy() {
  array_type = reinterpret_cast<PyObject*>(npy_api::get().PyArray_Type_);
}

bool learn_bfloat16() {
  if (bfloat16_number >= 0) return false;
  const py::dict modules = loaded_modules();
  if (!modules.contains("ml_dtypes")) return false;
  if (!py::hasattr(modules["ml_dtypes"], "bfloat16")) return false;
  bfloat16_number = py::dtype::from_args(modules["ml_dtypes"].attr("bfloat16")).num();
  return true;
}

bool read_array(PyObject* object, HeldView& view) {
  if (read_plain_array(object, view)) return true;
  if (npy_api::get().PyArray_Check_(object)) return read_numpy(object, view);
  return read_shown_array(object, view);
}

bool is_array(PyObject* object) {
  HeldView view;
  return read_array(object, view);
}

bool is_on_device(PyObject* object) {
  HeldView view;
  return !PyFloat_Check(object) && read_array(object, view) && view.device != on_cpu;
}

bool read_scalar(PyObject* object, HeldView& view) {
  const py::module_ numpy = py::module_::import("numpy");
  if (!py::isinstance(object, numpy.attr("generic"))) return false;
  view.owner = numpy.attr("asarray")(py::handle(object));
  return read_array(view.owner.ptr(), view);
}

std::string call_for_copy(py::handle w) {
  if (has_contiguous(w)) return "w.contiguous()";
  const py::object library = library_with_copies(w);
  return library ? std::string(py::str(library.attr("__name__"))) + ".ascontiguousarray(w)" : "a contiguous copy";
}

py::object contiguous_copy(py::handle array, const ArrayView& view, const std::string& what) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(array.ptr())) == array_type) {
    constexpr int row_major = 0;  // NPY_CORDER
    const auto copy = py::reinterpret_steal<py::object>(npy_api::get().PyArray_NewCopy_(array.ptr(), row_major));
    if (!copy) throw py::error_already_set();
    return copy;
  }
  if (npy_api::get().PyArray_Check_(array.ptr())) {
    return py::module_::import("numpy").attr("array")(array, py::arg("order") = "C");
  }
  if (has_contiguous(array)) return array.attr("contiguous")();
  const py::object library = library_with_copies(array);
  if (!library) {
    refuse_value(what + " (" + name_of_type(array) + ") is not contiguous (shape " + text_of(view.ndim, view.shape) +
                 ", strides " + text_of_strides(view) + "); pass a contiguous copy");
  }
  return py::module_::import("fusedstep.device_arrays").attr("contiguous_copy")(library, array);
}

void read_contiguous_copy(PyObject* object, HeldView& view, const std::string& what) {
  const py::object copy = contiguous_copy(object, view, what);
  view.owner = copy;
  const py::object kept = copy;  // reading may put something else into the view
  if (!read_array(copy.ptr(), view)) refuse_array(copy, what, "gradient");
  if (!view.owner.is(kept)) view.owner = py::make_tuple(kept, view.owner);
}

std::string text_of(int count, const py::ssize_t* values) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + (count == 1 ? ",)" : ")");
}

std::string text_of_strides(const ArrayView& view) {
  return view.strides == nullptr ? "of a contiguous array" : text_of(view.ndim, view.strides);
}

}  // namespace fusedstep
