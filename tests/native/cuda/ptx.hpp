// What PTX's instructions are made of, for what tests/ptx.py writes.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;

// A kernel's, as its caller passes it.
template <std::size_t size>
struct Parameter {
  alignas(8) u8 bytes[size];
};

// Registers have bits: as a number of the same size, or an integer of another.
template <class To, class From>
inline To as(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_integral_v<To> && std::is_integral_v<From>) {
    return static_cast<To>(value);
  } else {
    return std::bit_cast<To>(value);
  }
}

// A block is a thread.
inline thread_local u8 shared_memory[48 << 10] __attribute__((aligned(16)));
inline NOT_OF_A_KERNEL u64 address_of_shared(u64 offset) {
  return reinterpret_cast<u64>(shared_memory) + offset;
}

[[noreturn]] inline void stop(const char* what, u64 number) {
  std::fprintf(stderr, "%s: %#llx\n", what, static_cast<unsigned long long>(number));
  std::abort();
}

// A GPU faults where an address is not a multiple of what is accessed at once.
template <class T, int count>
inline T* memory_of(u64 address) {
  if (address % (sizeof(T) * count) != 0) stop("an access that is not aligned", address);
  return reinterpret_cast<T*>(address);
}

// What kernels do with the memory that a test watches: a range of it, and the accesses and bytes of all blocks.
struct Watched {
  u64 begin, end;
  std::atomic<u64> loads, bytes_loaded, stores, bytes_stored;
};
inline Watched watched[16];
inline std::size_t watched_count = 0;

#define OF_THE_MODULE extern "C" inline __attribute__((visibility("default"), used))
OF_THE_MODULE void watch(u64 begin, u64 end) {
  if (watched_count == std::size(watched)) stop("too many arrays to watch", watched_count);
  Watched& next = watched[watched_count++];
  next.begin = begin;
  next.end = end;
  next.loads = next.bytes_loaded = next.stores = next.bytes_stored = 0;
}
OF_THE_MODULE void seen(int number, u64* counts) {
  const Watched& of = watched[number];
  const u64 all[] = {of.loads, of.bytes_loaded, of.stores, of.bytes_stored};
  std::memcpy(counts, all, sizeof(all));
}
OF_THE_MODULE void watch_nothing() {
  watched_count = 0;
}

inline NOT_OF_A_KERNEL void count_access(u64 address, u64 bytes, bool loads) {
  for (std::size_t i = 0; i < watched_count; ++i) {
    Watched& of = watched[i];
    if (address + bytes <= of.begin || address >= of.end) continue;
    (loads ? of.loads : of.stores).fetch_add(1, std::memory_order_relaxed);
    (loads ? of.bytes_loaded : of.bytes_stored).fetch_add(bytes, std::memory_order_relaxed);
  }
}
template <class T, int count, bool loads>
inline T* global_memory_of(u64 address) {
  if (watched_count > 0) count_access(address, sizeof(T) * count, loads);
  return memory_of<T, count>(address);
}

template <class T>
inline T shifted_left(T value, u32 by) {
  return by >= 8 * sizeof(T) ? T(0) : T(value << by);
}
template <class T>
inline T shifted_right(T value, u32 by) {
  constexpr u32 bits = 8 * sizeof(T);
  if (by >= bits) return std::is_signed_v<T> ? T(value >> (bits - 1)) : T(0);
  return T(value >> by);
}

template <class T>
inline T with_bits(T inserted, T into, u32 begin, u32 bits) {
  const T mask = shifted_left<T>(bits >= 8 * sizeof(T) ? T(-1) : T((T(1) << bits) - 1), begin);
  return T((into & ~mask) | (shifted_left(inserted, begin) & mask));
}

// Bytes of a, which are 0 to 3, and of b, 4 to 7, as the digits of `chosen` say; 8 more is for the sign of one.
inline u32 permuted(u32 a, u32 b, u32 chosen) {
  const u64 bytes = u64(b) << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 digit = chosen >> (4 * i) & 15;
    u32 byte = u32(bytes >> (8 * (digit & 7))) & 255;
    if (digit >= 8) byte = byte >= 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// To some 20 bits, as the device's: what is made from it must not depend on the others.
float approximate_reciprocal(float) = delete;
inline double approximate_reciprocal(double value) {
  return std::bit_cast<double>(std::bit_cast<u64>(1 / value) & ~u64(0xffffffff));
}

// From another thread of the warp; its own value where that is none. All threads of the warp take part.
inline u32 shuffled(u32 value, u32 from, u32 last, u32 members, bool valid) {
  if (last != on_the_host::threads_of_warp - 1) stop("a shuffle within a part of a warp", last);
  if (members != ~u32(0)) stop("a shuffle of some threads of a warp", members);
  return static_cast<u32>(on_the_host::exchange(value, valid ? from : on_the_host::threads_of_warp));
}
inline u32 shuffled_down(u32 value, u32 by, u32 last, u32 members, bool& valid) {
  const u32 from = unsigned(threadIdx.x) % on_the_host::threads_of_warp + by % on_the_host::threads_of_warp;
  valid = from <= last;
  return shuffled(value, from, last, members, valid);
}
inline u32 shuffled_idx(u32 value, u32 from, u32 last, u32 members, bool& valid) {
  valid = true;
  return shuffled(value, from % on_the_host::threads_of_warp, last, members, valid);
}
