#include "cuda/devices.hpp"

#include <utility>

namespace fusedstep {
namespace {

struct Known {
  std::shared_ptr<Devices> cuda, simulation;
  std::string why_not;
  bool looked = false;
  void (*wait)(Devices& of, int device) = [](Devices& of, int device) { of.wait(device); };
};

Known& known() {
  static Known* const all = new Known;  // never destroyed: CUDA may be gone before
  return *all;
}

std::shared_ptr<Devices> shared_devices() {
  Known& all = known();
  if (all.simulation) return all.simulation;
  if (!all.looked) {
    all.looked = true;
    all.cuda = make_cuda_devices(all.why_not);
  }
  return all.cuda;
}

}  // namespace

void Devices::wait_first(int device) {
  known().wait(*this, device);
}

void set_wait(void (*wait)(Devices& of, int device)) {
  known().wait = wait;
}

Devices* devices() {
  return shared_devices().get();
}

std::string why_no_devices() {
  devices();
  return known().why_not;
}

int device_of_memory(const void* memory) {
  Devices* const all = devices();
  const int device = all == nullptr ? 0 : all->device_of(memory);
  return device < 0 ? 0 : device;
}

void simulate_devices(std::unique_ptr<Devices> simulation) {
  known().simulation = std::move(simulation);
}

#if !defined(FUSEDSTEP_CUDA)
const char* cuda_version() {
  return "";
}

std::unique_ptr<Devices> make_cuda_devices(std::string& why_not) {
  why_not = "this build has no CUDA kernels (no nvcc was found, or FUSEDSTEP_CUDA=OFF was asked for)";
  return nullptr;
}
#endif

DeviceMemory::DeviceMemory(int device, std::size_t bytes)
    : device_(device), memory_(devices()->allocate(device, bytes)), size_(bytes), of_(shared_devices()) {}

DeviceMemory::~DeviceMemory() {
  const std::shared_ptr<Devices> all = of_.lock();
  if (memory_ != nullptr && all) all->free(device_, memory_);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept {
  *this = std::move(other);
}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(memory_, other.memory_);
  std::swap(size_, other.size_);
  std::swap(of_, other.of_);
  return *this;
}

}  // namespace fusedstep
