// Storage types: how an element of an array becomes a value of the compute type, and back.
// Rounding is to nearest, ties to even, once. Everything is free of branches, so it vectorises.
#pragma once

#include <cstdint>

#include "core/compiled_for.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

struct Float16 {
  std::uint16_t bits;
};

struct BFloat16 {
  std::uint16_t bits;
};

template <class To, class From>
FUSEDSTEP_HOST_DEVICE inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

FUSEDSTEP_HOST_DEVICE inline float widen(BFloat16 x) {
  return bits_as<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

FUSEDSTEP_HOST_DEVICE inline float widen(Float16 x) {
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  // Normal numbers get the new exponent's bias; inf and NaN get it twice, which fills the exponent.
  const std::uint32_t bias = 112u << 23;
  const std::uint32_t normal = (magnitude << 13) + bias + (magnitude >= 0x7c00u ? bias : 0u);
  // Subnormal ones are small integers times 2^-24: exact, and without slow subnormal operands.
  const float subnormal = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
  return bits_as<float>(sign | (magnitude < 0x0400u ? bits_as<std::uint32_t>(subnormal) : normal));
}

FUSEDSTEP_HOST_DEVICE inline void narrow(float x, BFloat16& to) {
  const std::uint32_t bits = bits_as<std::uint32_t>(x);
  // Rounding by addition would carry a NaN into 0 or inf. (Selected before the one shift: vectorised, the other
  // order packs and unpacks.)
  const std::uint32_t quiet_nan = bits | 0x00400000u;
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  to.bits = static_cast<std::uint16_t>(((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded) >> 16);
}

FUSEDSTEP_HOST_DEVICE inline void narrow(float x, Float16& to) {
  const std::uint32_t bits = bits_as<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 adding 0.5 leaves the subnormal's bits, rounded, at the end of the sum's.
  const std::uint32_t subnormal = bits_as<std::uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t result = magnitude >= 0x47800000u ? special : finite;
  to.bits = static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | result);
}

FUSEDSTEP_HOST_DEVICE inline float widen(float x) {
  return x;
}
FUSEDSTEP_HOST_DEVICE inline double widen(double x) {
  return x;
}
FUSEDSTEP_HOST_DEVICE inline void narrow(float x, float& to) {
  to = x;
}
FUSEDSTEP_HOST_DEVICE inline void narrow(double x, double& to) {
  to = x;
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
