// The GPUs as the host sees them: those of CUDA, or simulated ones for tests on machines that have none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda/launch.hpp"

namespace fusedstep {

class Devices {
 public:
  virtual ~Devices() = default;

  // The device that memory is of; -1 where it is of none.
  virtual int device_of(const void* memory) = 0;
  virtual int count() = 0;

  // Waits for all that the device has to do. Raises std::runtime_error, as all do, with what CUDA says.
  virtual void wait(int device) = 0;
  // Zeroed memory.
  virtual void* allocate(int device, std::size_t bytes) = 0;
  virtual void free(int device, void* memory) noexcept = 0;
  // Both wait, as allocate does, and are done when they return.
  virtual void write(int device, void* to, const void* from, std::size_t bytes) = 0;
  virtual void read(int device, void* to, const void* from, std::size_t bytes) = 0;
  // Goes onto the stream, and waits for nothing; `from`, of whole words of 8 bytes, is read before it returns.
  virtual void write_in_order(int device, void* to, const void* from, std::size_t bytes, void* stream) = 0;
  // Waits for nothing, and does not go into the graph that some stream is captured for.
  virtual void write_during_capture(int device, void* to, const void* from, std::size_t bytes) = 0;

  // Has all kernels on the device that steps of a rule may need: the driver loads each when it is first asked for,
  // which may wait, and which older ones refuse while a graph is captured. `rule` is the number in the list of rules.
  virtual void load(int device, int rule) = 0;
  virtual void launch(int device, int rule, Kernel kernel, const Launch& launch, void* stream) = 0;
  virtual void launch_order(int device, const OrderPass& pass, void* stream) = 0;
  // Whether what is put on the stream goes into a graph, to run later.
  virtual bool is_capturing(int device, void* stream) = 0;

 protected:
  // What waits begins with this: wait(), in the way that was set. Other threads may give the device more to do
  // meanwhile; what that is, is waited for once more, holding whatever this thread holds.
  void wait_first(int device);
};

// How threads wait for a device from now on: the binding has other threads of Python run meanwhile.
void set_wait(void (*wait)(Devices& of, int device));

// Null where this build or this machine has none; why_no_devices() says why. The first call looks for CUDA's.
Devices* devices();
std::string why_no_devices();

// The number of the GPU that memory is of; 0 where that cannot be known.
int device_of_memory(const void* memory);

// From now on there are simulated ones in the place of CUDA's; CUDA's again for null.
void simulate_devices(std::unique_ptr<Devices> simulation);

// Whether this build has kernels for CUDA: its version, as in "13.0", or empty.
const char* cuda_version();

// What kernels.cu provides: CUDA's devices, or null and why.
std::unique_ptr<Devices> make_cuda_devices(std::string& why_not);

// Memory on a device.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(int device, std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;

  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }
  std::size_t size() const { return size_; }

 private:
  int device_ = 0;
  void* memory_ = nullptr;
  std::size_t size_ = 0;
  std::weak_ptr<Devices> of_;
};

}  // namespace fusedstep
