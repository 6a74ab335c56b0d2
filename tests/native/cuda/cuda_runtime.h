// As much of CUDA as csrc/cuda/kernels.cu asks for, on the host: that file is compiled and run where there is no GPU.
//
// Kernels run on the grid of grid.hpp. Of streams there is their order, which is that of the calls, and what may not be
// done while one is captured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "grid.hpp"

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x;
  explicit dim3(unsigned of_x) : x(of_x) {}
};

namespace on_the_host {

struct Index {
  unsigned (*value)();
  NOT_OF_A_KERNEL operator unsigned() const { return value(); }
};

inline NOT_OF_A_KERNEL unsigned number_of_thread() {
  return block->current;
}
inline NOT_OF_A_KERNEL unsigned number_of_block() {
  return block->number;
}
inline NOT_OF_A_KERNEL unsigned count_of_blocks() {
  return block->blocks;
}

}  // namespace on_the_host

inline struct {
  on_the_host::Index x = {on_the_host::number_of_thread};
} const threadIdx;
inline struct {
  on_the_host::Index x = {on_the_host::number_of_block};
} const blockIdx;
inline struct {
  on_the_host::Index x = {on_the_host::count_of_blocks};
} const gridDim;

inline void __syncthreads() {
  on_the_host::wait_for(on_the_host::block->of_block, true);
}
inline void __syncwarp() {
  on_the_host::wait_for(on_the_host::warp_of_current(), true);
}
inline NOT_OF_A_KERNEL double __shfl_down_sync(unsigned, double value, unsigned by) {
  return on_the_host::exchange(value, on_the_host::block->current % on_the_host::threads_of_warp + by);
}
inline double __shfl_sync(unsigned, double value, int from) {
  return on_the_host::exchange(value, static_cast<unsigned>(from));
}

inline void __threadfence() {
  on_the_host::fence();
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  on_the_host::before_atomic(address);
  unsigned value = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &value, value >= last ? 0 : value + 1, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return value;
}
inline unsigned atomicOr(unsigned* address, unsigned bits) {
  on_the_host::before_atomic(address);
  return __atomic_fetch_or(address, bits, __ATOMIC_RELAXED);
}
inline double __ldcg(const double* value) {
  return *value;
}

// The host's side.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDevice = 101,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureImplicit = 906,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2
};
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
#define CUDART_VERSION 13000

struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};

namespace on_the_host {

using Graph = std::vector<std::function<void()>>;

struct Stream {
  Stream(int of_device, bool is_blocking) : device(of_device), blocking(is_blocking) {}

  int device;
  bool blocking;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  Graph captured;
};

struct Devices {
  static constexpr int count = 2, multiprocessors = 3;
  std::map<std::uintptr_t, std::pair<std::size_t, int>> memory;  // size and device by address
  std::set<Stream*> streams;
  std::size_t left = std::size_t{16} << 30;
  int current = 0, driver = CUDART_VERSION;
  cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;
  cudaError_t last_error = cudaSuccess;
};

inline Devices& devices() {
  static Devices all;
  return all;
}

inline cudaError_t answer(cudaError_t code) {
  if (code != cudaSuccess) devices().last_error = code;
  return code;
}

// What must not be called while a stream is captured ends the capture, unless the thread says that it knows better;
// `legacy` also waits for every blocking stream, and no thread can know better than that.
inline cudaError_t refuse_in_capture(bool legacy) {
  cudaError_t code = cudaSuccess;
  for (Stream* stream : devices().streams) {
    if (stream->status == cudaStreamCaptureStatusNone) continue;
    if (legacy && stream->blocking) {
      code = cudaErrorStreamCaptureImplicit;
    } else if (stream->mode == cudaStreamCaptureModeGlobal && devices().mode_of_thread == cudaStreamCaptureModeGlobal) {
      code = cudaErrorStreamCaptureUnsupported;
    } else {
      continue;
    }
    stream->status = cudaStreamCaptureStatusInvalidated;
  }
  return answer(code);
}

inline bool has_memory(const void* begin, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  auto after = devices().memory.upper_bound(address);
  if (after == devices().memory.begin()) return false;
  const auto& [first, of] = *--after;
  return address + bytes <= first + of.first;
}

// Puts work on a stream: it is done at once, or when the graph is that the stream is captured for.
inline cudaError_t enqueue(Stream* stream, std::function<void()> work) {
  if (stream == nullptr) {
    if (const cudaError_t code = refuse_in_capture(true)) return code;
  } else if (stream->status == cudaStreamCaptureStatusInvalidated) {
    return answer(cudaErrorStreamCaptureInvalidated);
  } else if (stream->status == cudaStreamCaptureStatusActive) {
    stream->captured.push_back(std::move(work));
    return cudaSuccess;
  }
  work();
  return cudaSuccess;
}

// Its own parameter for each thread, as a kernel has: in much less time than where the sanitizer looks at the copies.
template <class Parameter>
NOT_OF_A_KERNEL void call(void (*kernel)(Parameter), const Parameter& parameter) {
  kernel(parameter);
}

template <class Parameter>
cudaError_t launch(void (*kernel)(Parameter), unsigned blocks, unsigned threads, void** parameters, Stream* stream) {
  if (blocks == 0 || threads != most_threads) return answer(cudaErrorInvalidValue);
  if (stream != nullptr && stream->device != devices().current) return answer(cudaErrorInvalidValue);
  const auto copy = std::make_shared<Parameter>(*static_cast<const Parameter*>(parameters[0]));
  return enqueue(stream, [=] { run_grid(blocks, [&] { call(kernel, *copy); }); });
}

}  // namespace on_the_host

using cudaStream_t = on_the_host::Stream*;

inline cudaError_t cudaGetLastError() {
  return std::exchange(on_the_host::devices().last_error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t code) {
  return code == cudaErrorMemoryAllocation           ? "out of memory"
         : code >= cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing"
                                                     : "invalid argument";
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = on_the_host::devices().driver;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = on_the_host::Devices::count;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = on_the_host::devices().current;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= on_the_host::Devices::count) return on_the_host::answer(cudaErrorInvalidDevice);
  on_the_host::devices().current = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = on_the_host::Devices::multiprocessors;
  return cudaSuccess;
}
template <class Parameter>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameter), int, std::size_t) {
  *blocks = 1;
  return cudaSuccess;
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
  const auto& known = on_the_host::devices().memory;
  *attributes = {cudaMemoryTypeUnregistered, -2};
  auto after = known.upper_bound(reinterpret_cast<std::uintptr_t>(memory));
  if (after == known.begin()) return cudaSuccess;
  --after;
  if (on_the_host::has_memory(memory, 1)) *attributes = {cudaMemoryTypeDevice, after->second.second};
  return cudaSuccess;
}

// Memory is not zero at first.
inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  on_the_host::Devices& all = on_the_host::devices();
  if (const cudaError_t code = on_the_host::refuse_in_capture(false)) return code;
  if (bytes > all.left) return on_the_host::answer(cudaErrorMemoryAllocation);
  constexpr std::size_t alignment = 256;
  *memory = std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
  std::memset(*memory, 0xa5, bytes);
  all.memory[reinterpret_cast<std::uintptr_t>(*memory)] = {bytes, all.current};
  all.left -= bytes;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  on_the_host::Devices& all = on_the_host::devices();
  if (const cudaError_t code = on_the_host::refuse_in_capture(false)) return code;
  const auto found = all.memory.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == all.memory.end()) return on_the_host::answer(cudaErrorInvalidValue);
  all.left += found->second.first;
  all.memory.erase(found);
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  if (const cudaError_t code = on_the_host::refuse_in_capture(true)) return code;
  if (!on_the_host::has_memory(memory, bytes)) return on_the_host::answer(cudaErrorInvalidValue);
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (const cudaError_t code = on_the_host::refuse_in_capture(true)) return code;
  if (!on_the_host::has_memory(kind == cudaMemcpyHostToDevice ? to : from, bytes)) {
    return on_the_host::answer(cudaErrorInvalidValue);
  }
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
// A graph reads the host's memory anew each time it is run.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
  if (!on_the_host::has_memory(kind == cudaMemcpyHostToDevice ? to : from, bytes)) {
    return on_the_host::answer(cudaErrorInvalidValue);
  }
  return on_the_host::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
inline cudaError_t cudaDeviceSynchronize() {
  for (on_the_host::Stream* stream : on_the_host::devices().streams) {
    if (stream->status == cudaStreamCaptureStatusNone || stream->device != on_the_host::devices().current) continue;
    stream->status = cudaStreamCaptureStatusInvalidated;
    return on_the_host::answer(cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new on_the_host::Stream(on_the_host::devices().current, flags != cudaStreamNonBlocking);
  on_the_host::devices().streams.insert(*stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  on_the_host::devices().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->status == cudaStreamCaptureStatusNone) return cudaSuccess;
  stream->status = cudaStreamCaptureStatusInvalidated;
  return on_the_host::answer(cudaErrorStreamCaptureUnsupported);
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, on_the_host::devices().mode_of_thread);
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  if (stream == nullptr) {
    for (on_the_host::Stream* other : on_the_host::devices().streams) {
      if (other->status == cudaStreamCaptureStatusNone || !other->blocking) continue;
      return on_the_host::answer(cudaErrorStreamCaptureImplicit);
    }
    return cudaSuccess;
  }
  *status = stream->status;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  stream->status = cudaStreamCaptureStatusActive;
  stream->mode = mode;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, on_the_host::Graph* graph) {
  const bool whole = std::exchange(stream->status, cudaStreamCaptureStatusNone) == cudaStreamCaptureStatusActive;
  *graph = std::exchange(stream->captured, {});
  return whole ? cudaSuccess : on_the_host::answer(cudaErrorStreamCaptureInvalidated);
}

template <class Parameter>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameter), dim3 blocks, dim3 threads, void** parameters, std::size_t,
                             cudaStream_t stream) {
  return on_the_host::launch(kernel, blocks.x, threads.x, parameters, stream);
}
