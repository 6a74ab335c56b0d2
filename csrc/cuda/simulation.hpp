// GPUs of which there are none: memory of the host, and the kernels' own functions, thread after thread, over a grid.
// What is tested so is all that the host does for a step and all that a kernel computes; not CUDA.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cuda/devices.hpp"

namespace fusedstep {

class Simulation : public Devices {
 public:
  // So many devices, whose grids have so many blocks.
  Simulation(int devices, std::uint32_t blocks);
  ~Simulation() override;

  int device_of(const void* memory) override;
  int count() override { return count_; }
  void wait(int device) override;
  void* allocate(int device, std::size_t bytes) override;
  void free(int device, void* memory) noexcept override;
  void write(int device, void* to, const void* from, std::size_t bytes) override;
  void read(int device, void* to, const void* from, std::size_t bytes) override;
  void write_in_order(int device, void* to, const void* from, std::size_t bytes, void* stream) override;
  void write_during_capture(int device, void* to, const void* from, std::size_t bytes) override;
  void load(int, int) override {}
  void launch(int device, int rule, Kernel kernel, const Launch& launch, void* stream) override;
  void launch_order(int device, const OrderPass& pass, void* stream) override;
  bool is_capturing(int, void*) override { return capturing_; }

  // What was done, in order: "allocate", "write", "write in order", "read", "free", "order", "bare" and the other
  // kernels, with the device.
  struct Event {
    std::string what;
    int device;
    std::uintptr_t stream;
  };
  std::vector<Event> events;

  bool refuses_writes = false;  // those that wait
  double wait_seconds = 0;      // what waiting takes

  void begin_capture();
  void end_capture();
  void replay();  // what was captured last

 private:
  int count_;
  std::uint32_t blocks_;
  std::map<std::uintptr_t, std::pair<std::size_t, int>> memory_;  // size and device by address
  // What a kernel reads at any time until the device was waited for.
  std::set<const void*> read_by_kernels_;
  bool capturing_ = false;
  std::vector<std::function<void()>> captured_;  // launches
};

}  // namespace fusedstep
