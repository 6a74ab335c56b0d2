#include "bind/interchange.hpp"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "bind/attribute_reader.hpp"
#include "bind/device_array.hpp"
#include "bind/refuse.hpp"
#include "cuda/devices.hpp"

namespace fusedstep {

using py::detail::npy_api;

namespace {

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

}  // namespace

bool read_shown_array(PyObject* object, HeldView& view) {
  dlpack::DataType dtype;
  return read_shown(object, view, dtype) && dtype_of(dtype, view.dtype);
}

bool shows_memory(py::handle object) {
  return py::hasattr(object, "__cuda_array_interface__") || py::hasattr(object, "__dlpack__");
}

bool is_of_jax(py::handle object) {
  return module_of_type(object).starts_with("jax");
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

bool stands_for_negative(PyObject* object) {
  HeldView view;
  dlpack::DataType dtype;
  dlpack::Tensor tensor;
  return exchange(object, tensor) && read_tensor(tensor, true, view, dtype) && is_negated(object, view);
}

bool lacks_memory(PyObject* object) {
  HeldView view;
  dlpack::DataType dtype;
  return read_described(object, view, dtype) && !has_memory(view);
}

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

}  // namespace fusedstep
