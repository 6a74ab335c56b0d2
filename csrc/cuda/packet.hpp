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
