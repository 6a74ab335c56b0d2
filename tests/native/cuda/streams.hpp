// Streams and graphs: work is done as late as CUDA allows, when somebody waits for it, and what nothing orders in an
// order that is drawn. So who does not wait, or puts work on another stream, finds something else than expected.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "grid.hpp"
#include "memory.hpp"

enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2
};

namespace on_the_host {

enum class Kind { kernel = 0, copy = 1, memory_set = 2 };  // as CUDA numbers the nodes of a graph

struct Work {
  Kind kind;
  std::function<void()> run;
};

using Graph = std::vector<Work>;

struct Stream;

// A place in a stream: behind so much of what was ever put on it.
struct Place {
  Stream* stream;
  std::uint64_t number;
};

struct Queued {
  Work work;  // or nothing, which only waits
  std::vector<Place> waits_for;
};

struct Stream {
  Stream(int of_device, bool is_blocking) : device(of_device), blocking(is_blocking) {}

  int device;
  bool blocking;
  bool destroyed = false;
  std::deque<Queued> queue;
  std::uint64_t put = 0, done = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  Graph captured;
};

struct Device {
  explicit Device(int number) : legacy(number, true) {}

  Memory memory;
  Stream legacy;                 // the stream of which the pointer is null
  bool has_run_kernels = false;  // since its memory was looked at
};

struct Devices {
  static constexpr int count = 2, multiprocessors = 3;
  Device of[count] = {Device(0), Device(1)};
  std::set<Stream*> streams;  // with those that are destroyed and have work yet
  int current = 0, driver = 13000;
  cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;
  cudaError_t last_error = cudaSuccess;
  bool working = false;
  std::vector<void*> freed_meanwhile;
  std::uint64_t seed = 88172645463325252;
};

inline Devices& devices() {
  static Devices& all = *new Devices;  // work may be left at the program's end
  return all;
}

inline Device& current_device() {
  return devices().of[devices().current];
}

inline cudaError_t answer(cudaError_t code) {
  if (code != cudaSuccess) devices().last_error = code;
  return code;
}

inline bool free_at_once(void* memory) {
  bool freed = false;
  for (Device& device : devices().of) freed |= device.memory.free(memory);
  return freed;
}

// One piece of work is done after another.
class Working {
 public:
  Working() {
    if (!std::exchange(devices().working, true)) return;
    std::fputs("what a stream does waits for a stream\n", stderr);
    std::_Exit(EXIT_FAILURE);
  }
  ~Working() {
    devices().working = false;
    for (void* memory : std::exchange(devices().freed_meanwhile, {})) free_at_once(memory);
  }
  Working(const Working&) = delete;
  Working& operator=(const Working&) = delete;
};

// Does what was put on a stream up to a place, and before that what that waits for.
inline void complete(const Place& place) {
  Stream& stream = *place.stream;
  Device& device = devices().of[stream.device];
  std::optional<Memory::Opened> here;
  while (stream.done < place.number) {
    const Queued next = std::move(stream.queue.front());
    stream.queue.pop_front();
    for (const Place& before : next.waits_for) complete(before);
    ++stream.done;
    if (!next.work.run) continue;
    if (!here) here.emplace(device.memory);
    device.has_run_kernels |= next.work.kind == Kind::kernel;
    const Working working;
    next.work.run();
  }
}

inline Place end_of(Stream& stream) {
  return {&stream, stream.put};
}

inline std::vector<Stream*> busy_streams(int device) {
  std::vector<Stream*> busy;
  for (Stream* stream : devices().streams) {
    if (stream->device == device && !stream->queue.empty()) busy.push_back(stream);
  }
  Stream& legacy = devices().of[device].legacy;
  if (!legacy.queue.empty()) busy.push_back(&legacy);
  return busy;
}

// Does all that a device has to do; whether no kernel has written beside what is memory.
inline bool complete_all(int number) {
  Devices& all = devices();
  Device& device = all.of[number];
  std::vector<Stream*> busy = busy_streams(number);
  if (busy.empty() && !device.has_run_kernels) return true;
  const Memory::Opened here(device.memory);
  for (; !busy.empty(); busy = busy_streams(number)) {
    Stream& chosen = *busy[draw(all.seed) % busy.size()];
    complete({&chosen, chosen.done + 1});
  }
  std::erase_if(all.streams, [](const Stream* stream) { return stream->destroyed && stream->queue.empty(); });
  return !std::exchange(device.has_run_kernels, false) || device.memory.is_sound();
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

inline bool is_known(Stream* stream) {
  return stream == nullptr || (devices().streams.contains(stream) && !stream->destroyed);
}

inline Stream& stream_of(Stream* handle) {
  return handle == nullptr ? current_device().legacy : *handle;
}

// Puts work on a stream, or into the graph that the stream is captured for.
inline cudaError_t enqueue(Stream* handle, Kind kind, std::function<void()> work) {
  if (!is_known(handle)) return answer(cudaErrorInvalidResourceHandle);
  if (handle == nullptr) {
    if (const cudaError_t code = refuse_in_capture(true)) return code;
  } else if (handle->status == cudaStreamCaptureStatusInvalidated) {
    return answer(cudaErrorStreamCaptureInvalidated);
  } else if (handle->status == cudaStreamCaptureStatusActive) {
    handle->captured.push_back({kind, std::move(work)});
    return cudaSuccess;
  }
  Stream& stream = stream_of(handle);
  Queued queued = {{kind, std::move(work)}, {}};
  Stream& legacy = devices().of[stream.device].legacy;
  if (handle == nullptr) {
    for (Stream* other : devices().streams) {
      if (other->blocking && other->device == stream.device) queued.waits_for.push_back(end_of(*other));
    }
  } else if (stream.blocking) {
    queued.waits_for.push_back(end_of(legacy));
  }
  stream.queue.push_back(std::move(queued));
  ++stream.put;
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
  if (!is_known(stream) || stream_of(stream).device != devices().current) {
    return answer(cudaErrorInvalidResourceHandle);
  }
  const auto copy = std::make_shared<Parameter>(*static_cast<const Parameter*>(parameters[0]));
  return enqueue(stream, Kind::kernel, [=] { run_grid(blocks, [&] { call(kernel, *copy); }); });
}

}  // namespace on_the_host
