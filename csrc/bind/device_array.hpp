// Memory of a plan on a device, as Python sees it: what any array library can take over without a copy.
#pragma once

#include <memory>
#include <vector>

#include "bind/arrays.hpp"
#include "cuda/devices.hpp"

namespace fusedstep {

class DeviceArray {
 public:
  DeviceArray(void* memory, DType dtype, std::vector<py::ssize_t> shape, Device device,
              std::shared_ptr<DeviceMemory> owner);

  // The standards by which libraries take it.
  py::dict cuda_array_interface() const;
  py::capsule dlpack(const py::kwargs& arguments) const;  // raises where they ask for a copy, or another device
  py::tuple dlpack_device() const;

  // Copies that wait.
  py::array to_numpy() const;
  void assign(const py::array& values) const;

  const std::vector<py::ssize_t>& shape() const { return shape_; }
  py::dtype dtype() const;
  Device device() const { return device_; }

 private:
  friend bool read_device_array(PyObject* object, HeldView& view);
  std::size_t bytes() const;

  void* memory_;
  DType dtype_;
  std::vector<py::ssize_t> shape_;
  Device device_;
  std::shared_ptr<DeviceMemory> owner_;
};

// Whether an object is one; then reads it, as read_array does.
bool read_device_array(PyObject* object, HeldView& view);

void bind_device_array(py::module_& module);

}  // namespace fusedstep
