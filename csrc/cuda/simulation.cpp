#include "cuda/simulation.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "cpu/float_environment.hpp"
#include "cuda/custom.hpp"
#include "cuda/sweep.hpp"
#include "rules/all.hpp"

namespace fusedstep {
namespace {

using namespace FUSEDSTEP_TARGET;

// A block whose threads take turns. Where kernels.cu has the same names, threads are threads.
class SimulatedBlock {
 public:
  static constexpr std::uint32_t warps = block_threads / warp_threads;

  SimulatedBlock(std::uint32_t block, std::uint32_t blocks) : block_(block), blocks_(blocks) {}

  std::uint32_t block() const { return block_; }
  std::uint32_t blocks() const { return blocks_; }

  template <class F>
  void each(const F& work) {
    for (int thread = 0; thread < block_threads; ++thread) work(thread);
  }
  template <class F>
  void once(const F& work) {
    work();
  }
  void wait() {}
  bool is_last(std::uint32_t& blocks_done) {
    if (++blocks_done < blocks_) return false;
    blocks_done = 0;
    return true;
  }

  template <class F>
  void each_warp(const F& work) {
    for (std::uint32_t warp = 0; warp < warps; ++warp) work(warp);
  }
  template <class F>
  void each_of_warp(const F& work) {
    for (int thread = 0; thread < warp_threads; ++thread) work(thread);
  }
  template <class F>
  void by_one_of_warp(const F& work) {
    work();
  }
  void wait_in_warp() {}

  // Each thread of a warp adds to lanes of its own; the tree's sum of them all.
  template <class F>
  double sum_lanes(const F& add) {
    double lane[lanes] = {};
    each_of_warp([&](int thread) { add(thread, lane + thread * lanes_of_thread); });
    return sum_of_lanes(lane);
  }
  template <class F>
  void sum_two_lanes(const F& add, double* first_sum, double* second_sum) {
    double first[lanes] = {}, second[lanes] = {};
    each_of_warp([&](int thread) { add(thread, first + thread * lanes_of_thread, second + thread * lanes_of_thread); });
    *first_sum = sum_of_lanes(first);
    *second_sum = sum_of_lanes(second);
  }

  void raise(std::uint32_t* flag) { *flag = 1; }
  double fresh(const double* value) { return *value; }

 private:
  std::uint32_t block_, blocks_;
};

template <template <class> class R, Kernel kernel>
void run_grid(const Launch& launch, std::uint32_t blocks) {
  for (std::uint32_t block = 0; block < blocks; ++block) {
    SimulatedBlock team(block, blocks);
    Made made[SimulatedBlock::warps] = {};  // not what the block before has left
    sweep_block<R, kernel>(team, launch, made);
  }
}

template <Kernel kernel>
void run_norms(const Launch& launch, std::uint32_t blocks) {
  for (std::uint32_t block = 0; block < blocks; ++block) {
    SimulatedBlock team(block, blocks);
    norms_block<kernel>(team, launch);
  }
}

template <Kernel kernel>
void run_custom(const Launch& launch, std::uint32_t blocks) {
  for (std::uint32_t block = 0; block < blocks; ++block) {
    SimulatedBlock team(block, blocks);
    Made made = {};
    custom_block<kernel>(team, launch, made);
  }
}

void run_order(const OrderPass& pass, std::uint32_t blocks) {
  for (std::uint32_t block = 0; block < blocks; ++block) {
    SimulatedBlock team(block, blocks);
    std::uint64_t tile[block_threads];
    order_block(team, pass, tile);
  }
}

using RunGrid = void (*)(const Launch&, std::uint32_t);

struct SimulatedRule {
  RunGrid kernels[3];
};

template <template <class> class R>
constexpr SimulatedRule simulated_rule() {
  if constexpr (takes_two_passes<R<float>>) {
    return {{nullptr, run_grid<R, Kernel::staged>, run_grid<R, Kernel::second>}};
  } else {
    return {{run_grid<R, Kernel::bare>, run_grid<R, Kernel::staged>, nullptr}};
  }
}

template <template <class> class... R>
std::vector<SimulatedRule> simulated_rules(List<R...>) {
  return {simulated_rule<R>()...};
}

const char* name_of(Kernel kernel) {
  constexpr const char* names[] = {"bare", "staged", "second", "norms", "norms of any", "hand over", "take back"};
  return names[static_cast<int>(kernel)];
}

}  // namespace

Simulation::Simulation(int devices, std::uint32_t blocks) : count_(devices), blocks_(blocks) {}

Simulation::~Simulation() {
  for (const auto& [address, of] : memory_) std::free(reinterpret_cast<void*>(address));
}

int Simulation::device_of(const void* memory) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  auto after = memory_.upper_bound(address);
  if (after == memory_.begin()) return -1;
  const auto& [begin, of] = *--after;
  return address < begin + of.first ? of.second : -1;
}

void Simulation::wait(int) {
  if (capturing_) throw std::runtime_error("a captured stream cannot be waited for");
  if (wait_seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(wait_seconds));
  read_by_kernels_.clear();
}

void* Simulation::allocate(int device, std::size_t bytes) {
  wait_first(device);
  events.push_back({"allocate", device, 0});
  constexpr std::size_t alignment = 256;  // as CUDA's
  void* const memory =
      std::aligned_alloc(alignment, (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  memory_[reinterpret_cast<std::uintptr_t>(memory)] = {bytes, device};
  return memory;
}

void Simulation::free(int device, void* memory) noexcept {
  events.push_back({"free", device, 0});
  memory_.erase(reinterpret_cast<std::uintptr_t>(memory));
  std::free(memory);
}

void Simulation::write(int device, void* to, const void* from, std::size_t bytes) {
  wait_first(device);
  if (refuses_writes) throw std::runtime_error("CUDA: cudaMemcpy failed: simulated");
  events.push_back({"write", device, 0});
  std::memcpy(to, from, bytes);
}

void Simulation::read(int device, void* to, const void* from, std::size_t bytes) {
  wait_first(device);
  events.push_back({"read", device, 0});
  std::memcpy(to, from, bytes);
}

void Simulation::write_in_order(int device, void* to, const void* from, std::size_t bytes, void* stream) {
  if (capturing_) throw std::runtime_error("a copy would be made anew by each replay, from memory that is gone");
  events.push_back({"write in order", device, reinterpret_cast<std::uintptr_t>(stream)});
  std::memcpy(to, from, bytes);
}

void Simulation::write_during_capture(int, void* to, const void* from, std::size_t bytes) {
  if (read_by_kernels_.contains(to)) throw std::runtime_error("kernels that run may still read what is written");
  std::memcpy(to, from, bytes);
}

void Simulation::launch(int device, int rule, Kernel kernel, const Launch& launch, void* stream) {
  events.push_back({name_of(kernel), device, reinterpret_cast<std::uintptr_t>(stream)});
  if (capturing_) {
    captured_.emplace_back([=, this] { this->launch(device, rule, kernel, launch, stream); });
    return;
  }
  read_by_kernels_.insert(launch.table.groups);
  static const std::vector<SimulatedRule> rules = simulated_rules(AllRules());
  const DefaultFloatEnvironment environment;
  const std::uint32_t blocks = std::clamp<std::uint32_t>(launch.slices, 1, blocks_);
  if (kernel == Kernel::norms) return run_norms<Kernel::norms>(launch, blocks);
  if (kernel == Kernel::hand_over) return run_custom<Kernel::hand_over>(launch, blocks);
  if (kernel == Kernel::take_back) return run_custom<Kernel::take_back>(launch, blocks);
  if (kernel == Kernel::norms_of_any) return run_norms<Kernel::norms_of_any>(launch, blocks);
  rules.at(static_cast<std::size_t>(rule)).kernels[static_cast<int>(kernel)](launch, blocks);
}

void Simulation::launch_order(int device, const OrderPass& pass, void* stream) {
  events.push_back({"order", device, reinterpret_cast<std::uintptr_t>(stream)});
  if (capturing_) {
    captured_.emplace_back([=, this] { launch_order(device, pass, stream); });
    return;
  }
  run_order(pass, static_cast<std::uint32_t>(std::clamp<std::int64_t>(tiles_of(pass), 1, blocks_)));
}

void Simulation::begin_capture() {
  captured_.clear();
  capturing_ = true;
}

void Simulation::end_capture() {
  capturing_ = false;
}

void Simulation::replay() {
  for (const auto& launch_again : captured_) launch_again();
}

}  // namespace fusedstep
