// Float16 in vectors, where the target has instructions for it: they round once, to nearest, as storage.hpp does, and
// know subnormal numbers. How many elements are done is returned; the others are the caller's.
#pragma once

#include "core/storage.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fusedstep::FUSEDSTEP_TARGET {

template <class Storage, class C>
FUSEDSTEP_HOST_DEVICE inline std::int64_t widen_vectors(const Storage*, C*, std::int64_t) {
  return 0;
}

template <class Storage>
inline std::int64_t narrow_vectors(const float*, Storage*, std::int64_t) {
  return 0;
}

#if defined(__F16C__)
#if defined(__AVX512F__)
constexpr std::int64_t vector_size = 16;
constexpr __mmask16 all = 0xffff;  // (Of the forms without a mask GCC 12 says that they read what was not set.)

inline void widen_vector(const Float16* from, float* to) {
  const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_cvtph_ps(all, sixteen));
}
inline void narrow_vector(const float* from, Float16* to) {
  const __m256i narrowed = _mm512_maskz_cvtps_ph(all, _mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed);
}
#else
constexpr std::int64_t vector_size = 8;

inline void widen_vector(const Float16* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void narrow_vector(const float* from, Float16* to) {
  const __m128i narrowed = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrowed);
}
#endif

inline std::int64_t widen_vectors(const Float16* from, float* to, std::int64_t size) {
  std::int64_t i = 0;
  for (; i + vector_size <= size; i += vector_size) widen_vector(from + i, to + i);
  return i;
}

inline std::int64_t narrow_vectors(const float* from, Float16* to, std::int64_t size) {
  std::int64_t i = 0;
  for (; i + vector_size <= size; i += vector_size) narrow_vector(from + i, to + i);
  return i;
}
#endif

}  // namespace fusedstep::FUSEDSTEP_TARGET
