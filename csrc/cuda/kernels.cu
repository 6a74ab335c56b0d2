// CUDA's side: the kernels, a block of them as a team, and the devices. The only file that knows CUDA.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "cuda/custom.hpp"
#include "cuda/devices.hpp"
#include "cuda/sweep.hpp"
#include "rules/all.hpp"

namespace fusedstep {
namespace FUSEDSTEP_TARGET {

// A block of a grid.
class Block {
 public:
  static constexpr std::uint32_t warps = block_threads / warp_threads;

  __device__ std::uint32_t block() const { return blockIdx.x; }
  __device__ std::uint32_t blocks() const { return gridDim.x; }

  template <class F>
  __device__ void each(const F& work) {
    work(static_cast<int>(threadIdx.x));
  }
  template <class F>
  __device__ void once(const F& work) {
    __syncthreads();
    if (threadIdx.x == 0) work();
    __syncthreads();
  }
  __device__ void wait() { __syncthreads(); }
  // Whether all other blocks of the grid are done; what they wrote can be seen then. What one thread's fences order is
  // ordered for all that a barrier puts before and after it.
  __device__ bool is_last(std::uint32_t& blocks_done) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      last = atomicInc(&blocks_done, gridDim.x - 1) == gridDim.x - 1;
      __threadfence();
    }
    __syncthreads();
    return last;
  }

  template <class F>
  __device__ void each_warp(const F& work) {
    work(threadIdx.x / warp_threads);
  }
  template <class F>
  __device__ void each_of_warp(const F& work) {
    work(thread_of_warp());
  }
  template <class F>
  __device__ void by_one_of_warp(const F& work) {
    if (thread_of_warp() == 0) work();
  }
  __device__ void wait_in_warp() { __syncwarp(); }

  template <class F>
  __device__ double sum_lanes(const F& add) {
    double lane[lanes_of_thread] = {};
    add(thread_of_warp(), lane);
    return sum_of_warp(lane);
  }
  template <class F>
  __device__ void sum_two_lanes(const F& add, double* first_sum, double* second_sum) {
    double first[lanes_of_thread] = {}, second[lanes_of_thread] = {};
    add(thread_of_warp(), first, second);
    const double of_first = sum_of_warp(first), of_second = sum_of_warp(second);
    if (thread_of_warp() == 0) {
      *first_sum = of_first;
      *second_sum = of_second;
    }
  }

  __device__ void raise(std::uint32_t* flag) { atomicOr(flag, 1u); }
  // A value that another block has written: past this multiprocessor's own cache.
  __device__ double fresh(const double* value) { return __ldcg(value); }

 private:
  __device__ static int thread_of_warp() { return static_cast<int>(threadIdx.x % warp_threads); }

  // The tree of core/tree.hpp over the lanes of a warp: halves onto halves, first between threads.
  __device__ static double sum_of_warp(double* lane) {
    static_assert(lanes_of_thread == 4);
    constexpr unsigned all = 0xffffffffu;
    for (int h = warp_threads / 2; h > 0; h /= 2) {
      for (int i = 0; i < lanes_of_thread; ++i) lane[i] += __shfl_down_sync(all, lane[i], static_cast<unsigned>(h));
    }
    lane[0] += lane[2];
    lane[1] += lane[3];
    return __shfl_sync(all, lane[0] + lane[1], 0);
  }
};

// How many blocks a multiprocessor shall have room for: of three, some compute while others wait for memory. The
// stages, and pow, need more registers than a thread has then.
template <template <class> class R, Kernel kernel>
constexpr int blocks_at_once = kernel == Kernel::bare && !requires { requires R<float>::calls_pow; } ? 3 : 2;

template <template <class> class R, Kernel kernel>
__global__ void __launch_bounds__(block_threads, blocks_at_once<R, kernel>)
    sweep_kernel(const __grid_constant__ Launch launch) {
  __shared__ Made made[is_first_pass<R, kernel> ? Block::warps : 1];
  Block team;
  sweep_block<R, kernel>(team, launch, made);
}

template <Kernel kernel>
__global__ void __launch_bounds__(block_threads, kernel == Kernel::norms ? 3 : 2)
    norms_kernel(const __grid_constant__ Launch launch) {
  Block team;
  norms_block<kernel>(team, launch);
}

template <Kernel kernel>
__global__ void __launch_bounds__(block_threads, 2) custom_kernel(const __grid_constant__ Launch launch) {
  __shared__ Made made;
  Block team;
  custom_block<kernel>(team, launch, made);
}

__global__ void __launch_bounds__(block_threads) order_kernel(const __grid_constant__ OrderPass pass) {
  __shared__ std::uint64_t tile[block_threads];
  Block team;
  order_block(team, pass, tile);
}

__global__ void __launch_bounds__(block_threads) write_kernel(const __grid_constant__ WordsToWrite written) {
  for (std::uint32_t i = threadIdx.x; i < written.count; i += block_threads) written.to[i] = written.words[i];
}

}  // namespace FUSEDSTEP_TARGET

namespace {

using namespace FUSEDSTEP_TARGET;

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(code));
}

// Makes a device the current one, and the former again.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&former_), "cudaGetDevice");
    if (device != former_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != former_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(former_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};

template <class Parameter>
using Function = void (*)(Parameter);

using KernelsOfRule = std::array<Function<Launch>, 3>;  // by Kernel

template <template <class> class R>
KernelsOfRule kernels_of_rule() {
  if constexpr (takes_two_passes<R<float>>) {
    return {nullptr, sweep_kernel<R, Kernel::staged>, sweep_kernel<R, Kernel::second>};
  } else {
    return {sweep_kernel<R, Kernel::bare>, sweep_kernel<R, Kernel::staged>, nullptr};
  }
}

template <template <class> class... R>
std::vector<KernelsOfRule> kernels_of_rules(List<R...>) {
  return {kernels_of_rule<R>()...};
}

Function<Launch> function_of(const KernelsOfRule& of_rule, Kernel kernel) {
  switch (kernel) {
    case Kernel::norms: return norms_kernel<Kernel::norms>;
    case Kernel::norms_of_any: return norms_kernel<Kernel::norms_of_any>;
    case Kernel::hand_over: return custom_kernel<Kernel::hand_over>;
    case Kernel::take_back: return custom_kernel<Kernel::take_back>;
    default: return of_rule[static_cast<std::size_t>(kernel)];
  }
}

class CudaDevices : public Devices {
 public:
  explicit CudaDevices(int count) : count_(count), most_blocks_(static_cast<std::size_t>(count)) {}

  int device_of(const void* memory) override {
    cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
      cudaGetLastError();
      return -1;
    }
    const bool on_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    return on_device ? attributes.device : -1;
  }

  int count() override { return count_; }

  void wait(int device) override {
    const OnDevice on(device);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  void* allocate(int device, std::size_t bytes) override {
    wait_first(device);
    const OnDevice on(device);
    void* memory = nullptr;
    const cudaError_t code = cudaMalloc(&memory, bytes);
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw std::runtime_error("cuda:" + std::to_string(device) + " has no " + std::to_string(bytes) +
                               " bytes left for the optimizer's arrays; free some, for example with"
                               " cupy.get_default_memory_pool().free_all_blocks() or torch.cuda.empty_cache()");
    }
    check(code, "cudaMalloc");
    try {
      check(cudaMemset(memory, 0, bytes), "cudaMemset");
      check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // any stream may use it now
    } catch (...) {
      cudaFree(memory);
      throw;
    }
    return memory;
  }

  // A plan may end while its thread captures a graph, in which nothing may be freed by default.
  void free(int, void* memory) noexcept override {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaFree(memory);
    cudaThreadExchangeStreamCaptureMode(&mode);
  }

  void write(int device, void* to, const void* from, std::size_t bytes) override {
    wait_first(device);
    const OnDevice on(device);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  void read(int device, void* to, const void* from, std::size_t bytes) override {
    wait_first(device);
    const OnDevice on(device);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

  void write_in_order(int device, void* to, const void* from, std::size_t bytes, void* stream) override {
    const OnDevice on(device);
    WordsToWrite written = {};
    const std::size_t words = bytes / sizeof(written.words[0]);
    for (std::size_t begin = 0; begin < words; begin += most_words) {
      written.to = static_cast<std::uint64_t*>(to) + begin;
      written.count = static_cast<std::uint32_t>(std::min<std::size_t>(words - begin, most_words));
      std::memcpy(written.words, static_cast<const std::uint64_t*>(from) + begin,
                  written.count * sizeof(written.words[0]));
      put_on_stream<WordsToWrite>(device, write_kernel, 1, written, stream);
    }
  }

  void write_during_capture(int device, void* to, const void* from, std::size_t bytes) override {
    const OnDevice on(device);
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
    cudaStream_t beside = nullptr;
    cudaError_t code = cudaStreamCreateWithFlags(&beside, cudaStreamNonBlocking);
    if (code == cudaSuccess) code = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, beside);
    if (code == cudaSuccess) code = cudaStreamSynchronize(beside);
    if (beside != nullptr) cudaStreamDestroy(beside);
    check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
    check(code, "a copy beside a captured stream");
  }

  void load(int device, int rule) override {
    const OnDevice on(device);
    const KernelsOfRule& of_rule = kernels_.at(static_cast<std::size_t>(rule));
    for (const Kernel kernel : all_kernels) {
      const Function<Launch> function = function_of(of_rule, kernel);
      if (function != nullptr) most_blocks(device, function);
    }
    most_blocks(device, order_kernel);
    most_blocks(device, write_kernel);
  }

  void launch(int device, int rule, Kernel kernel, const Launch& launch, void* stream) override {
    const OnDevice on(device);
    const KernelsOfRule& of_rule = kernels_.at(static_cast<std::size_t>(rule));
    // Where a warp takes a slice, a block takes several.
    const bool by_warp = is_of_norms(kernel) || (kernel == Kernel::staged && of_rule[0] == nullptr);
    const std::uint32_t at_once = by_warp ? Block::warps : 1;
    put_on_stream(device, function_of(of_rule, kernel), (launch.slices + at_once - 1) / at_once, launch, stream);
  }

  void launch_order(int device, const OrderPass& pass, void* stream) override {
    const OnDevice on(device);
    put_on_stream<OrderPass>(device, order_kernel, tiles_of(pass), pass, stream);
  }

  bool is_capturing(int device, void* stream) override {
    const OnDevice on(device);  // whose the stream is where it is null
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

 private:
  // A kernel of so many blocks as are wanted, or as the device runs at once; one at least.
  template <class Parameter>
  void put_on_stream(int device, Function<Parameter> function, std::int64_t wanted, const Parameter& parameter,
                     void* stream) {
    const std::int64_t most = most_blocks(device, function);
    const auto blocks = static_cast<unsigned>(wanted == 0 ? 1 : wanted < most ? wanted : most);
    void* parameters[] = {const_cast<Parameter*>(&parameter)};
    check(
        cudaLaunchKernel(function, dim3(blocks), dim3(block_threads), parameters, 0, static_cast<cudaStream_t>(stream)),
        "the launch of a kernel");
  }

  // As many blocks as the device runs at once, for each kernel. Who asks for the first time has it loaded.
  template <class Parameter>
  std::uint32_t most_blocks(int device, Function<Parameter> function) {
    const std::lock_guard lock(mutex_);
    const auto* const number = reinterpret_cast<const void*>(function);
    auto& known = most_blocks_.at(static_cast<std::size_t>(device));
    for (const auto& [of, blocks] : known) {
      if (of == number) return blocks;
    }
    int multiprocessors = 0, each = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, function, block_threads, 0),
          "the occupancy of a kernel");
    known.emplace_back(number, static_cast<std::uint32_t>(multiprocessors * (each > 0 ? each : 1)));
    return known.back().second;
  }

  int count_;
  std::vector<KernelsOfRule> kernels_ = kernels_of_rules(AllRules());
  std::mutex mutex_;
  std::vector<std::vector<std::pair<const void*, std::uint32_t>>> most_blocks_;
};

// As CUDA numbers them: 13.0 is 13000.
std::string text_of_version(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

const char* cuda_version() {
  static const std::string version = text_of_version(CUDART_VERSION);
  return version.c_str();
}

std::unique_ptr<Devices> make_cuda_devices(std::string& why_not) {
  constexpr int oldest_driver = 12010;  // the first that gives a kernel 32 764 bytes of parameters
  int count = 0, driver = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  cudaDriverGetVersion(&driver);
  if (code == cudaSuccess && count > 0) {
    if (driver >= oldest_driver) return std::make_unique<CudaDevices>(count);
    why_not = "the driver here is for CUDA " + text_of_version(driver) + ", but must be for " +
              text_of_version(oldest_driver) + " or newer";
    return nullptr;
  }
  cudaGetLastError();
  const char* const why = code == cudaSuccess ? "there is none" : driver == 0 ? "no driver" : cudaGetErrorString(code);
  why_not = std::string("CUDA ") + cuda_version() + " finds no device here (" + why + ")";
  return nullptr;
}

}  // namespace fusedstep
