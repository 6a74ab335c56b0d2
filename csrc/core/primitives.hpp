// The operations that rules are made of, besides + - * /: each exactly rounded or exact, and spelt
// so that no compiler and no processor has a choice. (fmax drops NaN and compilers differ on it,
// pow differs between libraries, abs through a comparison loses the sign of zero.)
#pragma once

#include <cstdint>

#include "core/compiled_for.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

FUSEDSTEP_HOST_DEVICE inline float sqrt(float x) {
  return __builtin_sqrtf(x);
}
FUSEDSTEP_HOST_DEVICE inline double sqrt(double x) {
  return __builtin_sqrt(x);
}

FUSEDSTEP_HOST_DEVICE inline float abs(float x) {
  return __builtin_fabsf(x);
}
FUSEDSTEP_HOST_DEVICE inline double abs(double x) {
  return __builtin_fabs(x);
}

// 1 or -1; +0 for zeros, NaN for NaN.
template <class C>
FUSEDSTEP_HOST_DEVICE inline C sign(C x) {
  return x > 0 ? C(1) : x < 0 ? C(-1) : (x == 0 ? C(0) : x);
}

// The larger one; NaN if `a` is.
template <class C>
FUSEDSTEP_HOST_DEVICE inline C max(C a, C b) {
  return (a > b || a != a) ? a : b;
}

// What of [low, high] is nearest; NaN if `x` is.
template <class C>
FUSEDSTEP_HOST_DEVICE inline C clip(C x, C low, C high) {
  return x < low ? low : x > high ? high : x;
}

// base^exponent by binary exponentiation, least significant bit first.
FUSEDSTEP_HOST_DEVICE inline double power(double base, std::uint64_t exponent) {
  double result = 1;
  for (; exponent != 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
