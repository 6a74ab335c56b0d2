#include "bind/arrays.hpp"

#include <algorithm>
#include <string_view>
#include <vector>

#include "bind/attribute_reader.hpp"
#include "bind/device_array.hpp"
#include "bind/dlpack.hpp"
#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "cuda/devices.hpp"

namespace fusedstep {
namespace {

using py::detail::npy_api;

std::string module_of_type(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__module__"));
}

py::dict loaded_modules() {
  return py::module_::import("sys").attr("modules");
}

bool is_row_major(int ndim, const py::ssize_t* shape, const py::ssize_t* strides, py::ssize_t itemsize) {
  if (std::find(shape, shape + ndim, 0) != shape + ndim) return true;
  for (int i = ndim - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != itemsize) return false;
    itemsize *= shape[i];
  }
  return true;
}

// NumPy's flags for memory that another library described. Strides, in `unit`s for each element, may be null.
int flags_of(const ArrayView& view, py::ssize_t itemsize, const py::ssize_t* strides, py::ssize_t unit,
             bool writeable) {
  int flags = writeable ? npy_api::NPY_ARRAY_WRITEABLE_ : 0;
  if (address(view.data) % static_cast<std::uintptr_t>(itemsize) == 0) flags |= npy_api::NPY_ARRAY_ALIGNED_;
  if (strides == nullptr || is_row_major(view.ndim, view.shape, strides, unit)) {
    flags |= npy_api::NPY_ARRAY_C_CONTIGUOUS_;
  }
  return flags;
}

int flags_of(const ArrayView& view, py::ssize_t itemsize, bool writeable) {
  return flags_of(view, itemsize, view.strides, itemsize, writeable);
}

bool are_equal(const dlpack::DataType& a, const dlpack::DataType& b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

constexpr DType all_dtypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16};

bool dtype_of(const dlpack::DataType& type, DType& result) {
  for (const DType one : all_dtypes) {
    if (!are_equal(type, dlpack::type_of(one))) continue;
    result = one;
    return true;
  }
  return false;
}

constexpr dlpack::DataType of_int32 = {dlpack::int_code, 32, 1}, of_int64 = {dlpack::int_code, 64, 1};

// What follows reads an array of any dtype that is known here: all of the view but `dtype`, and the type apart.

// Without strides; the shape is the tensor's own.
bool read_tensor_in_place(const dlpack::Tensor& tensor, bool writeable, ArrayView& view, dlpack::DataType& dtype) {
  static_assert(std::is_same_v<std::int64_t, py::ssize_t>);
  dtype = tensor.dtype;
  if (dtype.bits == 0 || dtype.bits % 8 != 0) return false;
  const std::int32_t type = tensor.device.type;
  const bool on_gpu = type == dlpack::cuda || type == dlpack::cuda_managed;
  if (!on_gpu && type != dlpack::cpu && type != dlpack::cuda_host) return false;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.ndim = tensor.ndim;
  view.shape = tensor.shape;
  view.strides = nullptr;
  view.device = on_gpu ? tensor.device.id : on_cpu;
  view.flags = flags_of(view, dtype.bits / 8, tensor.strides, 1, writeable);
  return true;
}

bool read_tensor(const dlpack::Tensor& tensor, bool writeable, HeldView& view, dlpack::DataType& dtype) {
  if (tensor.ndim > HeldView::most_dimensions || !read_tensor_in_place(tensor, writeable, view, dtype)) return false;
  // Copied: PyTorch's tensors can change theirs in place.
  py::ssize_t* const strides = view.numbers.data() + HeldView::most_dimensions;
  std::copy_n(tensor.shape, tensor.ndim, view.numbers.data());
  view.shape = view.numbers.data();
  view.strides = tensor.strides == nullptr ? nullptr : strides;
  for (int i = 0; tensor.strides != nullptr && i < tensor.ndim; ++i) strides[i] = tensor.strides[i] * (dtype.bits / 8);
  return true;
}

// The exchange API of an object's type; null where it has none. Those of the types seen so far are remembered, and
// the last type without, which is taken not to get one later.
const dlpack::ExchangeApi* exchange_api_of(PyObject* object) {
  static std::vector<std::pair<PyTypeObject*, const dlpack::ExchangeApi*>> seen;
  static PyTypeObject* without = nullptr;
  PyTypeObject* const type = Py_TYPE(object);
  if (type == without) return nullptr;
  for (const auto& [known, api] : seen) {
    if (known == type) return api;
  }
  const dlpack::ExchangeApi* api = nullptr;
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  if (py::hasattr(handle, "__dlpack_c_exchange_api__")) {
    const py::object capsule = handle.attr("__dlpack_c_exchange_api__");
    api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) PyErr_Clear();
    while (api != nullptr && api->version.major != 1) api = api->older;
  }
  if (api != nullptr && api->tensor_of == nullptr) api = nullptr;
  handle.inc_ref();  // types that are remembered stay
  if (api != nullptr) {
    seen.emplace_back(type, api);
  } else {
    Py_XSETREF(without, type);
  }
  return api;
}

bool exchange(PyObject* object, dlpack::Tensor& tensor) {
  const dlpack::ExchangeApi* const api = exchange_api_of(object);
  if (api == nullptr) return false;
  if (api->tensor_of(object, &tensor) == 0) return true;
  PyErr_Clear();
  return false;
}

// Tensors without elements have no memory, and those that are something else in fact, as PyTorch's distributed and
// fake ones, have elements and none.
bool has_memory(const ArrayView& view) {
  return view.data != nullptr || view.size() == 0;
}

// PyTorch's tensors can have in memory the negative of what they stand for, where they are the imaginary part of a
// conjugate: with a stride, which only one element hides.
bool may_be_negated(const ArrayView& view) {
  return view.size() == 1;
}

bool is_negated(PyObject* object, const ArrayView& view) {
  static PyObject* const ask = PyUnicode_InternFromString("is_neg");
  if (!may_be_negated(view) || PyObject_HasAttr(object, ask) == 0) return false;
  const auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, ask));
  if (!answer) throw py::error_already_set();
  return answer.is(py::bool_(true));
}

bool read_exchanged(PyObject* object, HeldView& view, dlpack::DataType& dtype) {
  dlpack::Tensor tensor;
  return exchange(object, tensor) && read_tensor(tensor, true, view, dtype) && !is_negated(object, view);
}

// Whether NumPy's number for ml_dtypes.bfloat16 became known just now.
bool learn_bfloat16() {
  if (bfloat16_number >= 0) return false;
  const py::dict modules = loaded_modules();
  if (!modules.contains("ml_dtypes")) return false;
  if (!py::hasattr(modules["ml_dtypes"], "bfloat16")) return false;
  bfloat16_number = py::dtype::from_args(modules["ml_dtypes"].attr("bfloat16")).num();
  return true;
}

bool type_of(const py::dtype& dtype, dlpack::DataType& result) {
  DType known;
  if (read_dtype(dtype.ptr(), known) || (learn_bfloat16() && read_dtype(dtype.ptr(), known))) {
    result = dlpack::type_of(known);
    return true;
  }
  const int number = dtype.normalized_num();
  if (number != npy_api::NPY_INT32_ && number != npy_api::NPY_INT64_) return false;
  result = number == npy_api::NPY_INT32_ ? of_int32 : of_int64;
  return dtype.byteorder() != '>';
}

// Of a tuple, or of a list in its place; false for what is neither, too long, or not of integers.
bool read_numbers(py::handle given, py::ssize_t* to, int& count) {
  if (!PyTuple_Check(given.ptr()) && !PyList_Check(given.ptr())) return false;
  const py::tuple items(py::reinterpret_borrow<py::object>(given));
  if (items.size() > HeldView::most_dimensions) return false;
  count = static_cast<int>(items.size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    to[i] = PyNumber_AsSsize_t(items[i].ptr(), PyExc_OverflowError);
    if (to[i] == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
  }
  return true;
}

bool read_shape(py::handle shape, HeldView& view) {
  view.shape = view.numbers.data();
  view.strides = nullptr;
  return read_numbers(shape, view.numbers.data(), view.ndim);
}

// After the shape: one for each dimension.
bool read_strides(py::handle strides, HeldView& view) {
  py::ssize_t* const numbers = view.numbers.data() + HeldView::most_dimensions;
  view.strides = numbers;
  int count = 0;
  return read_numbers(strides, numbers, count) && count == view.ndim;
}

PyTypeObject* cupy_type = nullptr;  // cupy.ndarray, once that package was seen

bool is_of_cupy(PyObject* object) {
  if (cupy_type == nullptr) {
    const py::dict modules = loaded_modules();
    if (!modules.contains("cupy") || !py::hasattr(modules["cupy"], "ndarray")) return false;
    cupy_type = reinterpret_cast<PyTypeObject*>(py::object(modules["cupy"].attr("ndarray")).release().ptr());
  }
  return PyObject_TypeCheck(object, cupy_type) != 0;
}

// What a view is made of, of CuPy's arrays.
class CuPyReader {
 public:
  bool read(PyObject* array, HeldView& view, dlpack::DataType& dtype) {
    if (!type_of(dtype_.of(array), dtype)) return false;
    if (!read_shape(shape_.of(array), view)) return false;
    const py::object memory = memory_.of(array);
    view.data = reinterpret_cast<char*>(address_.of(memory.ptr()).cast<std::uintptr_t>());
    view.device = device_.of(memory.ptr()).cast<Device>();
    const bool is_contiguous = tells_contiguity_ && contiguous_.of(array).is(py::bool_(true));
    if (!is_contiguous && !read_strides(strides_.of(array), view)) return false;
    view.flags = flags_of(view, dtype.bits / 8, true);
    return true;
  }

 private:
  AttributeReader dtype_{"dtype"}, shape_{"shape"}, strides_{"strides"}, memory_{"data"};
  AttributeReader contiguous_{"_c_contiguous"};  // not promised to others, and a fifth of the time that strides take
  const bool tells_contiguity_ = py::hasattr(reinterpret_cast<PyObject*>(cupy_type), "_c_contiguous");
  AttributeReader address_{"ptr"}, device_{"device_id"};  // of the memory
};

bool read_cupy(PyObject* array, HeldView& view, dlpack::DataType& dtype) {
  static CuPyReader& reader = *new CuPyReader;  // stays: Python ends before such variables do
  return reader.read(array, view, dtype);
}

bool read_cuda_array_interface(py::handle array, HeldView& view, dlpack::DataType& dtype) {
  const auto described = array.attr("__cuda_array_interface__").cast<py::dict>();
  if (!type_of(py::dtype::from_args(described["typestr"]), dtype)) return false;
  if (described.contains("mask") && !described["mask"].is_none()) return false;
  if (!read_shape(described["shape"], view)) return false;
  const bool has_strides = described.contains("strides") && !described["strides"].is_none();
  if (has_strides && !read_strides(described["strides"], view)) return false;
  const auto data = described["data"].cast<py::tuple>();
  view.data = reinterpret_cast<char*>(data[0].cast<std::uintptr_t>());
  view.device = device_of_memory(view.data);
  view.flags = flags_of(view, dtype.bits / 8, !data[1].cast<bool>());
  return true;
}

// Tensors of PyTorch before 2.10 do not tell its stream, and a step beside that would be no error, but wrong.
void refuse_without_stream(py::handle array) {
  if (!module_of_type(array).starts_with("torch")) return;
  const std::string version = py::str(py::module_::import("torch").attr("__version__"));
  refuse_now("PyTorch is " + version +
             ", but its tensors on a GPU need 2.10 or newer, which tells its current stream; update it");
}

// False, where an error was caught; but an interrupt is raised again.
bool pass_on_interrupt(const py::error_already_set& error) {
  if (!error.matches(PyExc_Exception)) throw;
  return false;
}

py::object capsule_of(py::handle array, const py::dict& arguments) {
  const py::object method = array.attr("__dlpack__");
  try {
    return method(py::arg("max_version") = py::make_tuple(1, 0), **arguments);
  } catch (py::error_already_set& error) {  // of an older version it takes fewer arguments
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method(**arguments);
}

bool read_dlpack(py::handle array, HeldView& view, dlpack::DataType& dtype) {
  py::object capsule;
  py::tuple device;
  try {
    device = array.attr("__dlpack_device__")().cast<py::tuple>();
  } catch (py::error_already_set& error) {  // it is nowhere, as PyTorch's meta tensors are
    return pass_on_interrupt(error);
  }
  const bool is_jax = is_of_jax(array);
  // The step runs on the library's own stream. (JAX has several, tells of none, and waits where it is not asked.)
  py::dict no_waiting;
  if (device[0].cast<std::int32_t>() == dlpack::cuda && !is_jax) {
    refuse_without_stream(array);
    no_waiting["stream"] = -1;
  }
  try {
    capsule = capsule_of(array, no_waiting);
  } catch (py::error_already_set& error) {
    return pass_on_interrupt(error);
  }
  view.owner = capsule;
  const bool immutable = is_jax;  // whose memory is handed out without saying so
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* managed =
        static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    return managed->version.major == 1 &&
           read_tensor(managed->tensor, !immutable && (managed->flags & dlpack::read_only_flag) == 0, view, dtype);
  }
  if (!PyCapsule_IsValid(capsule.ptr(), "dltensor")) return false;
  return read_tensor(static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor, !immutable,
                     view, dtype);
}

// "BufferError: this array was deleted"; empty where it raises nothing, or is not asked.
std::string raised_by_dlpack(py::handle array) {
  const bool is_asked = exchange_api_of(array.ptr()) == nullptr && !is_of_cupy(array.ptr());
  if (!is_asked || !py::hasattr(array, "__dlpack__")) return "";
  try {
    capsule_of(array, py::dict());
  } catch (py::error_already_set& error) {
    pass_on_interrupt(error);
    return std::string(py::str(error.type().attr("__name__"))) + ": " + std::string(py::str(error.value()));
  }
  return "";
}

bool read_described(PyObject* object, HeldView& view, dlpack::DataType& dtype) {
  if (exchange_api_of(object) != nullptr) return read_exchanged(object, view, dtype);
  if (is_of_cupy(object)) return read_cupy(object, view, dtype);
  if (read_device_array(object, view)) {
    dtype = dlpack::type_of(view.dtype);
    return true;
  }
  const py::handle handle(object);
  if (PyType_Check(object) || py::isinstance(handle, py::module_::import("numpy").attr("generic"))) return false;
  if (py::hasattr(handle, "__dlpack__")) return read_dlpack(handle, view, dtype);
  return py::hasattr(handle, "__cuda_array_interface__") && read_cuda_array_interface(handle, view, dtype);
}

bool read_shown(PyObject* object, HeldView& view, dlpack::DataType& dtype) {
  return read_described(object, view, dtype) && has_memory(view);
}

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

std::string name_of_type(py::handle object) {
  const std::string module = module_of_type(object);
  const std::string name = py::str(py::type::handle_of(object).attr("__qualname__"));
  return module == "builtins" ? name : module + "." + name;
}

bool shows_memory(py::handle object) {
  return py::hasattr(object, "__cuda_array_interface__") || py::hasattr(object, "__dlpack__");
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

bool is_of_jax(py::handle object) {
  return module_of_type(object).starts_with("jax");
}

bool read_array(PyObject* object, HeldView& view) {
  if (read_plain_array(object, view)) return true;
  if (npy_api::get().PyArray_Check_(object)) return read_numpy(object, view);
  dlpack::DataType dtype;
  return read_shown(object, view, dtype) && dtype_of(dtype, view.dtype);
}

bool read_indices(PyObject* object, IndexView& view) {
  dlpack::DataType dtype;
  if (npy_api::get().PyArray_Check_(object) || !read_shown(object, view, dtype)) return false;
  view.narrow = are_equal(dtype, of_int32);
  return view.narrow || are_equal(dtype, of_int64);
}

bool read_exchanged_array(PyObject* object, ArrayView& view) {
  dlpack::Tensor tensor;
  dlpack::DataType dtype;
  return exchange(object, tensor) && read_tensor_in_place(tensor, true, view, dtype) && dtype_of(dtype, view.dtype) &&
         has_memory(view) && !may_be_negated(view);
}

bool is_array(PyObject* object) {
  HeldView view;
  return read_array(object, view);
}

bool is_on_device(PyObject* object) {
  HeldView view;
  return !PyFloat_Check(object) && read_array(object, view) && view.device != on_cpu;
}

bool is_immutable_view(PyObject* object) {
  return (cupy_type != nullptr && PyObject_TypeCheck(object, cupy_type) != 0) || py::isinstance<DeviceArray>(object);
}

void* current_stream(PyObject* object, Device device) {
  const dlpack::ExchangeApi* const api = exchange_api_of(object);
  if (api != nullptr && api->current_stream != nullptr) {
    void* stream = nullptr;
    if (api->current_stream(dlpack::cuda, device, &stream) != 0) throw py::error_already_set();
    return stream;
  }
  const auto pointer = [](py::handle number) { return reinterpret_cast<void*>(number.cast<std::uintptr_t>()); };
  if (is_of_cupy(object)) {
    static const py::handle ask =
        py::object(py::module_::import("cupy").attr("cuda").attr("get_current_stream")).release();
    return pointer(ask(device).attr("ptr"));
  }
  const py::handle handle(object);
  if (py::hasattr(handle, "__cuda_array_interface__")) {
    const auto described = handle.attr("__cuda_array_interface__").cast<py::dict>();
    if (described.contains("stream") && !described["stream"].is_none()) return pointer(described["stream"]);
  }
  return nullptr;
}

void refuse_array(py::handle object, const std::string& what, const char* kind) {
  if (!npy_api::get().PyArray_Check_(object.ptr())) {
    if (shows_memory(object) && !py::isinstance(object, py::module_::import("numpy").attr("generic"))) {
      const std::string of_type = what + " is of type " + name_of_type(object);
      const std::string layout = py::str(py::getattr(object, "layout", py::str("torch.strided")));
      if (layout.starts_with("torch.") && layout != "torch.strided") {
        const bool is_gradient = std::string_view(kind) == "gradient";
        refuse_type(of_type + " and layout " + layout + ", but a " + kind + " must be dense; pass x.to_dense()" +
                    (is_gradient ? ", or the tuple (indices, values) where it has some rows alone" : ""));
      }
      HeldView view;
      dlpack::DataType dtype;
      dlpack::Tensor tensor;
      if (exchange(object.ptr(), tensor) && read_tensor(tensor, true, view, dtype) && is_negated(object.ptr(), view)) {
        refuse_value(of_type + " and stands for the negative of its memory; pass x.resolve_neg()");
      }
      if (read_described(object.ptr(), view, dtype) && !has_memory(view)) {
        refuse_value(of_type + ", which has no memory of its own; pass the tensor that it stands for, for example " +
                     "x.to_local() of a distributed one");
      }
      const std::string raised = raised_by_dlpack(object);
      if (!raised.empty()) {
        refuse_type(of_type + ", whose __dlpack__ raises " + raised + "; pass an array whose memory can be shared");
      }
      const std::string device =
          py::hasattr(object, "device") ? " on " + std::string(py::str(object.attr("device"))) : "";
      refuse_type(of_type + " and dtype " + std::string(py::str(py::getattr(object, "dtype", py::str("unknown")))) +
                  device + ", but a " + kind +
                  " must be float32, float64, float16 or bfloat16, in native byte order, on the CPU or a CUDA device");
    }
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

void refuse_indices(py::handle object, const std::string& what, Device device) {
  if (npy_api::get().PyArray_Check_(object.ptr()) || !shows_memory(object)) {
    refuse_value(what + " has indices on the CPU (" + name_of_type(object) + "), but its variable is on " +
                 name_of(device) + "; pass them there, for example cupy.asarray(indices)");
  }
  refuse_type(what + " has indices of dtype " + std::string(py::str(py::getattr(object, "dtype", py::str("unknown")))) +
              ", but on a GPU they must be int32 or int64; convert them, for example with indices.astype('int64')");
}

void refuse_device(py::handle object, const std::string& what) {
  refuse_now(what + " is a GPU array (" + name_of_type(object) + "), but " + why_no_devices() +
             "; pass NumPy arrays, for example cupy.asnumpy(x)");
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
