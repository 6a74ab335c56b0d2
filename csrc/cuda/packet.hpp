// Neighbouring elements that one access takes: up to 16 bytes.
#pragma once

#include <cstdint>

#include "core/compiled_for.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

constexpr int widest_access = 16;  // bytes

template <class Storage, int count>
struct alignas(sizeof(Storage) * count) Packet {
  Storage values[count];
};

// How many elements one access takes, of V.
template <class Storage, int V>
constexpr int packet_size =
    V * sizeof(Storage) <= widest_access ? V : widest_access / static_cast<int>(sizeof(Storage));

// nvcc takes a pointer that was itself loaded for one to any kind of memory, and accesses that are slower.
template <class T>
FUSEDSTEP_HOST_DEVICE inline void is_in_arrays([[maybe_unused]] const T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
}

// The bits of a packet of 16-bit values; nvcc would load them one by one.
template <class Storage, int count>
FUSEDSTEP_HOST_DEVICE inline void load_words(const Packet<Storage, count>* from, std::uint32_t* words) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(*from) == 16) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(from));
  } else if constexpr (sizeof(*from) == 8) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(from));
  } else {
    static_assert(sizeof(*from) == 4);
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(words[0]) : "l"(from));
  }
#else
  __builtin_memcpy(words, from, sizeof(*from));
#endif
}

// Values as they were loaded. Those of 16 bits stay in pairs: taking them apart would wait for the load, and so keep
// the next one waiting.
template <class Storage, int V>
struct Loaded {
  Storage values[V];

  FUSEDSTEP_HOST_DEVICE void set(int i, Storage value) { values[i] = value; }
  FUSEDSTEP_HOST_DEVICE Storage get(int i) const { return values[i]; }
  template <int n>
  FUSEDSTEP_HOST_DEVICE void set_packet(int k, const Storage* from) {
    const Packet<Storage, n> packet = reinterpret_cast<const Packet<Storage, n>*>(from)[k];
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < n; ++i) values[k * n + i] = packet.values[i];
  }
};

template <class Storage, int V>
  requires(sizeof(Storage) == 2 && V % 2 == 0)
struct Loaded<Storage, V> {
  std::uint32_t pairs[V / 2] = {};

  FUSEDSTEP_HOST_DEVICE void set(int i, Storage value) {
    pairs[i / 2] |= static_cast<std::uint32_t>(value.bits) << (i % 2 * 16);
  }
  FUSEDSTEP_HOST_DEVICE Storage get(int i) const { return {static_cast<std::uint16_t>(pairs[i / 2] >> (i % 2 * 16))}; }
  template <int n>
  FUSEDSTEP_HOST_DEVICE void set_packet(int k, const Storage* from) {
    load_words(reinterpret_cast<const Packet<Storage, n>*>(from) + k, pairs + k * n / 2);
  }
};

// nvcc splits the store of a struct into its members, and does not always put them together again.
template <class Storage, int count>
FUSEDSTEP_HOST_DEVICE inline void store_packet(const Packet<Storage, count>& packet, Packet<Storage, count>* to) {
#if defined(__CUDA_ARCH__)
  std::uint32_t bits[(sizeof(packet) + 3) / 4];
  __builtin_memcpy(bits, &packet, sizeof(packet));
  if constexpr (sizeof(packet) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits[0]), "r"(bits[1]), "r"(bits[2]),
                 "r"(bits[3])
                 : "memory");
  } else if constexpr (sizeof(packet) == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(bits[0]), "r"(bits[1]) : "memory");
  } else {
    static_assert(sizeof(packet) == 4);
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(bits[0]) : "memory");
  }
#else
  *to = packet;
#endif
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
