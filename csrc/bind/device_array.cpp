#include "bind/device_array.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "bind/dlpack.hpp"
#include "bind/refuse.hpp"
#include "core/dtypes.hpp"

namespace fusedstep {
namespace {

// What a consumer of DLPack holds on to.
struct Exported {
  dlpack::Managed managed;
  std::vector<std::int64_t> shape;
  std::shared_ptr<DeviceMemory> owner;
};

}  // namespace

DeviceArray::DeviceArray(void* memory, DType dtype, std::vector<py::ssize_t> shape, Device device,
                         std::shared_ptr<DeviceMemory> owner)
    : memory_(memory), dtype_(dtype), shape_(std::move(shape)), device_(device), owner_(std::move(owner)) {}

py::dict DeviceArray::cuda_array_interface() const {
  py::dict described;
  described["shape"] = py::tuple(py::cast(shape_));
  described["typestr"] = dtype().attr("str");
  described["data"] = py::make_tuple(address(memory_), false);
  described["strides"] = py::none();
  described["version"] = 3;
  return described;
}

py::capsule DeviceArray::dlpack(const py::kwargs& arguments) const {
  const auto given = [&](const char* name) {
    return arguments.contains(name) ? py::object(arguments[name]) : py::object(py::none());
  };
  const py::object copy = given("copy"), device = given("dl_device");
  if (!copy.is_none() && py::bool_(copy)) {
    throw py::buffer_error("this array gives its memory and no copy; leave out copy=True and copy what you get");
  }
  if (!device.is_none() && !device.equal(dlpack_device())) {
    throw py::buffer_error("this array is on " + name_of(device_) + " and stays there; copy() gives a NumPy array");
  }
  auto* const exported = new Exported{{}, {shape_.begin(), shape_.end()}, owner_};
  const auto ndim = static_cast<std::int32_t>(shape_.size());
  exported->managed.tensor = {
      memory_, {dlpack::cuda, device_}, ndim, dlpack::type_of(dtype_), exported->shape.data(), nullptr, 0};
  exported->managed.context = exported;
  exported->managed.deleter = [](dlpack::Managed* managed) { delete static_cast<Exported*>(managed->context); };
  // Whoever takes it over gives it another name, and calls the deleter.
  return py::capsule(&exported->managed, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;
    auto* const managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

py::tuple DeviceArray::dlpack_device() const {
  return py::make_tuple(dlpack::cuda, device_);
}

py::dtype DeviceArray::dtype() const {
  return py::dtype(name_of(dtype_));
}

std::size_t DeviceArray::bytes() const {
  const py::ssize_t size = std::accumulate(shape_.begin(), shape_.end(), py::ssize_t{1}, std::multiplies<>());
  return static_cast<std::size_t>(size * bytes_of(dtype_));
}

py::array DeviceArray::to_numpy() const {
  py::array copy(dtype(), shape_);
  if (bytes() > 0) devices()->read(device_, copy.mutable_data(), memory_, bytes());
  return copy;
}

void DeviceArray::assign(const py::array& values) const {
  const py::array given = py::module_::import("numpy").attr("asarray")(values, dtype(), py::arg("order") = "C");
  const bool same_shape = given.ndim() == static_cast<py::ssize_t>(shape_.size()) &&
                          std::equal(shape_.begin(), shape_.end(), given.shape());
  if (!same_shape) {
    refuse_value("DeviceArray.assign: values have shape " + text_of(static_cast<int>(given.ndim()), given.shape()) +
                 ", the array has " + text_of(static_cast<int>(shape_.size()), shape_.data()));
  }
  if (bytes() > 0) devices()->write(device_, memory_, given.data(), bytes());
}

bool read_device_array(PyObject* object, HeldView& view) {
  if (!py::isinstance<DeviceArray>(object)) return false;
  const auto& array = py::cast<const DeviceArray&>(py::handle(object));
  const auto ndim = static_cast<int>(array.shape_.size());
  std::ranges::copy(array.shape_, view.numbers.data());
  constexpr int flags = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_WRITEABLE_ |
                        py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  static_cast<ArrayView&>(view) = {
      static_cast<char*>(array.memory_), ndim, view.numbers.data(), nullptr, flags, array.dtype_, array.device_};
  return true;
}

void bind_device_array(py::module_& module) {
  py::class_<DeviceArray>(module, "DeviceArray")
      .def_property_readonly("__cuda_array_interface__", &DeviceArray::cuda_array_interface)
      .def("__dlpack__", &DeviceArray::dlpack)
      .def("__dlpack_device__", &DeviceArray::dlpack_device)
      .def("copy", &DeviceArray::to_numpy)
      .def("assign", &DeviceArray::assign, py::arg("values"))
      .def_property_readonly("shape", [](const DeviceArray& array) { return py::tuple(py::cast(array.shape())); })
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("device", &DeviceArray::device);
}

}  // namespace fusedstep
