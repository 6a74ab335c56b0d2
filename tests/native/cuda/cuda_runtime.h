// As much of CUDA as csrc/cuda/kernels.cu asks for, on the host: that file is compiled and run where there is no GPU.
//
// Kernels run on the grid of grid.hpp, when the streams of streams.hpp come to them, over the memory of memory.hpp.
// What is not here, a program cannot call; what is, refuses what it does not do.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <set>
#include <utility>

#include "errors.hpp"
#include "grid.hpp"
#include "memory.hpp"
#include "streams.hpp"

#define __global__ __attribute__((weak))  // what nvcc made of it may take its place (ptx.hpp)
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

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
#define CUDART_VERSION 13000

struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};

using cudaStream_t = on_the_host::Stream*;
using cudaEvent_t = on_the_host::Place*;
using cudaGraph_t = on_the_host::Graph*;

inline cudaError_t cudaGetLastError() {
  return std::exchange(on_the_host::devices().last_error, cudaSuccess);
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
namespace on_the_host {

// The device that has this memory, all of it; -1 where none has.
inline int device_with(const void* begin, std::size_t bytes) {
  for (int device = 0; device < Devices::count; ++device) {
    if (devices().of[device].memory.has(begin, bytes)) return device;
  }
  return -1;
}

// The bytes of now, for later.
inline std::function<void()> copy_later(void* to, const void* from, std::size_t bytes) {
  const auto* const begin = static_cast<const std::byte*>(from);
  return [to, kept = std::vector<std::byte>(begin, begin + bytes)] { std::memcpy(to, kept.data(), kept.size()); };
}

// When all that is on the stream is done.
inline void copy_to_host(void* to, const void* from, std::size_t bytes, Stream& stream) {
  complete(end_of(stream));
  const Memory::Opened there(devices().of[stream.device].memory, from, bytes);
  std::memcpy(to, from, bytes);
}

}  // namespace on_the_host

inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
  const int device = on_the_host::device_with(memory, 1);
  *attributes = {device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice, device < 0 ? -2 : device};
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* left, std::size_t* total) {
  static const std::size_t all = on_the_host::Memory().left;
  *left = on_the_host::current_device().memory.left;
  *total = all;
  return cudaSuccess;
}
// Who asks of a kernel for the first time has it loaded, which older drivers refuse while a graph is captured.
template <class Parameter>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Parameter), int, std::size_t) {
  static std::set<std::pair<int, const void*>> loaded;
  const std::pair of(on_the_host::devices().current, reinterpret_cast<const void*>(kernel));
  if (!loaded.contains(of)) {
    const auto captures = [](const on_the_host::Stream* stream) {
      return stream->status != cudaStreamCaptureStatusNone;
    };
    if (std::ranges::any_of(on_the_host::devices().streams, captures)) {
      return on_the_host::answer(cudaErrorStreamCaptureUnsupported);
    }
    loaded.insert(of);
  }
  *blocks = 1;
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (const cudaError_t code = on_the_host::refuse_in_capture(false)) return code;
  *memory = on_the_host::current_device().memory.allocate(bytes);
  return *memory == nullptr ? on_the_host::answer(cudaErrorMemoryAllocation) : cudaSuccess;
}
// It waits for all that may use the memory.
inline cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  if (const cudaError_t code = on_the_host::refuse_in_capture(false)) return code;
  if (on_the_host::devices().working) {
    on_the_host::devices().freed_meanwhile.push_back(memory);
    return cudaSuccess;
  }
  const int device = on_the_host::device_with(memory, 0);
  if (device >= 0) on_the_host::complete_all(device);
  return on_the_host::free_at_once(memory) ? cudaSuccess : on_the_host::answer(cudaErrorInvalidValue);
}
inline cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  if (on_the_host::device_with(memory, bytes) < 0) return on_the_host::answer(cudaErrorInvalidValue);
  return on_the_host::enqueue(nullptr, on_the_host::Kind::memory_set, [=] { std::memset(memory, value, bytes); });
}
// Memory of the host that CUDA does not know has all that was copied from a device when this returns; what goes to a
// device was copied then, but need not be there. A graph reads the host's memory anew each time it is run.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t handle) {
  const bool to_device = kind == cudaMemcpyHostToDevice;
  const int device = on_the_host::device_with(to_device ? to : from, bytes);
  if (device < 0) return on_the_host::answer(cudaErrorInvalidValue);
  if (!on_the_host::is_known(handle)) return on_the_host::answer(cudaErrorInvalidResourceHandle);
  on_the_host::Stream& stream = on_the_host::stream_of(handle);
  if (stream.device != device) return on_the_host::answer(cudaErrorNotSupported);
  const bool captured = stream.status != cudaStreamCaptureStatusNone;
  std::function<void()> work = [=] { std::memcpy(to, from, bytes); };
  if (!captured) work = to_device ? on_the_host::copy_later(to, from, bytes) : nullptr;
  if (const cudaError_t code = on_the_host::enqueue(handle, on_the_host::Kind::copy, std::move(work))) return code;
  if (!captured && !to_device) on_the_host::copy_to_host(to, from, bytes, stream);
  return cudaSuccess;
}
// The same on the legacy stream, when that has done what is on it.
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (const cudaError_t code = on_the_host::refuse_in_capture(true)) return code;
  on_the_host::complete(on_the_host::end_of(on_the_host::current_device().legacy));
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
inline cudaError_t cudaDeviceSynchronize() {
  for (on_the_host::Stream* stream : on_the_host::devices().streams) {
    if (stream->status == cudaStreamCaptureStatusNone || stream->device != on_the_host::devices().current) continue;
    stream->status = cudaStreamCaptureStatusInvalidated;
    return on_the_host::answer(cudaErrorStreamCaptureUnsupported);
  }
  const bool sound = on_the_host::complete_all(on_the_host::devices().current);
  return sound ? cudaSuccess : on_the_host::answer(cudaErrorIllegalAddress);
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new on_the_host::Stream(on_the_host::devices().current, flags != cudaStreamNonBlocking);
  on_the_host::devices().streams.insert(*stream);
  return cudaSuccess;
}
// What it has to do, is done yet. (Streams stay in memory: places in them are known elsewhere.)
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream == nullptr || !on_the_host::is_known(stream)) return on_the_host::answer(cudaErrorInvalidResourceHandle);
  stream->destroyed = true;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  if (!on_the_host::is_known(handle)) return on_the_host::answer(cudaErrorInvalidResourceHandle);
  on_the_host::Stream& stream = on_the_host::stream_of(handle);
  if (stream.status == cudaStreamCaptureStatusNone) {
    on_the_host::complete(on_the_host::end_of(stream));
    return cudaSuccess;
  }
  stream.status = cudaStreamCaptureStatusInvalidated;
  return on_the_host::answer(cudaErrorStreamCaptureUnsupported);
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, on_the_host::devices().mode_of_thread);
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  if (!on_the_host::is_known(stream)) return on_the_host::answer(cudaErrorInvalidResourceHandle);
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
  if (stream == nullptr) return on_the_host::answer(cudaErrorStreamCaptureUnsupported);
  if (!on_the_host::is_known(stream)) return on_the_host::answer(cudaErrorInvalidResourceHandle);
  if (stream->status != cudaStreamCaptureStatusNone) return on_the_host::answer(cudaErrorIllegalState);
  stream->status = cudaStreamCaptureStatusActive;
  stream->mode = mode;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->status == cudaStreamCaptureStatusNone) {
    return on_the_host::answer(cudaErrorIllegalState);
  }
  const bool whole = std::exchange(stream->status, cudaStreamCaptureStatusNone) == cudaStreamCaptureStatusActive;
  auto captured = std::make_unique<on_the_host::Graph>(std::exchange(stream->captured, {}));
  *graph = whole ? captured.release() : nullptr;
  return whole ? cudaSuccess : on_the_host::answer(cudaErrorStreamCaptureInvalidated);
}
// What is captured is ready to run: there is no cudaGraphExec_t.
inline cudaError_t cudaGraphLaunch(cudaGraph_t graph, cudaStream_t stream) {
  if (!on_the_host::is_known(stream)) return on_the_host::answer(cudaErrorInvalidResourceHandle);
  if (on_the_host::stream_of(stream).status != cudaStreamCaptureStatusNone) {
    return on_the_host::answer(cudaErrorNotSupported);
  }
  return on_the_host::enqueue(stream, on_the_host::Kind::kernel, [all = *graph] {
    for (const on_the_host::Work& work : all) work.run();
  });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new on_the_host::Place{&on_the_host::current_device().legacy, 0};
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (!on_the_host::is_known(stream)) return on_the_host::answer(cudaErrorInvalidResourceHandle);
  on_the_host::Stream& behind = on_the_host::stream_of(stream);
  if (behind.status != cudaStreamCaptureStatusNone) return on_the_host::answer(cudaErrorNotSupported);
  *event = on_the_host::end_of(behind);
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->stream->done >= event->number ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (!on_the_host::is_known(stream)) return on_the_host::answer(cudaErrorInvalidResourceHandle);
  return on_the_host::stream_of(stream).queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

template <class Parameter>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameter), dim3 blocks, dim3 threads, void** parameters, std::size_t,
                             cudaStream_t stream) {
  return on_the_host::launch(kernel, blocks.x, threads.x, parameters, stream);
}
