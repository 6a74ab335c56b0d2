// A tile of an array's gradient in the compute type: widened, from rows or all elements, summed over replicas.
//
// A tile is consecutive elements. Its size is an integer on a CPU, where it stays in L1; on a GPU, where a thread
// has it in registers, it is a type that knows its number (cuda/tile.hpp), and brings a `load` of its own.
#pragma once

#include "core/half.hpp"
#include "core/step.hpp"
#include "core/storage.hpp"
#include "core/touched.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

constexpr std::int64_t tile_size = 512;  // on a CPU

FUSEDSTEP_HOST_DEVICE constexpr DType dtype_of(float) {
  return DType::float32;
}
FUSEDSTEP_HOST_DEVICE constexpr DType dtype_of(double) {
  return DType::float64;
}

template <class Storage, class C>
FUSEDSTEP_HOST_DEVICE inline void widen_all(const void* from, std::int64_t begin, C* to, std::int64_t size) {
  const Storage* const values = static_cast<const Storage*>(from) + begin;
  const std::int64_t done = widen_vectors(values, to, size);
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = done; i < size; ++i) to[i] = static_cast<C>(widen(values[i]));
}

// Elements [begin, begin + size) of memory.
template <class C>
FUSEDSTEP_HOST_DEVICE inline void load(const void* from, DType dtype, std::int64_t begin, C* to, std::int64_t size) {
  switch (dtype) {
    case DType::float32: return widen_all<float>(from, begin, to, size);
    case DType::float64: return widen_all<double>(from, begin, to, size);
    case DType::float16: return widen_all<Float16>(from, begin, to, size);
    case DType::bfloat16: return widen_all<BFloat16>(from, begin, to, size);
  }
}

// Loads a tile of a gradient that has only some of its rows: zeros elsewhere.
template <class C>
[[gnu::noinline]] void load_rows(const Gradient& gradient, std::int64_t begin, C* to, std::int64_t size) {
  const Rows& rows = *gradient.rows;
  for (std::int64_t i = 0; i < size; ++i) to[i] = 0;
  const std::int64_t end = begin + size;
  for (std::int64_t k = first_row(rows, begin); k < rows.count && rows.indices[k] * rows.size < end; ++k) {
    const std::int64_t row_begin = rows.indices[k] * rows.size, row_end = row_begin + rows.size;
    const std::int64_t from = row_begin < begin ? begin : row_begin, until = row_end < end ? row_end : end;
    load(gradient.data, gradient.dtype, k * rows.size + (from - row_begin), to + (from - begin), until - from);
  }
}

template <class C>
void load(const Gradient& gradient, std::int64_t begin, C* to, std::int64_t size) {
  if (gradient.rows == nullptr) return load(gradient.data, gradient.dtype, begin, to, size);
  load_rows(gradient, begin, to, size);
}

// The gradient of an array of the step, where that is all there is to gather, in the compute type; null elsewhere, and
// where there is none.
template <class C>
const C* plain_gradient(const Step& step, const Stages& stages, std::size_t array) {
  const Gradient& gradient = step.gradients[array];
  const bool plain = gradient.rows == nullptr && gradient.dtype == dtype_of(C()) && step.replicas == 1 &&
                     !stages.unscale.on && stages.accumulation == Accumulation::off;
  return plain ? static_cast<const C*>(gradient.data) : nullptr;
}

// The stages up to the sum over calls, of which `sum` has the former ones; null where there is none.
template <class C, class Size>
FUSEDSTEP_HOST_DEVICE inline void add_sum(const Stages& stages, const C* sum, C* h, Size size) {
  if (stages.unscale.on) {
    const C unscale = static_cast<C>(stages.unscale.coefficient);
    for (std::int64_t i = 0; i < size; ++i) h[i] = h[i] * unscale;
  }
  if (stages.accumulation != Accumulation::off) {
    for (std::int64_t i = 0; i < size; ++i) h[i] = sum[i] + h[i];
  }
}

// Elements [begin, begin + size) of the gradient of an array of the step, and the stages up to the sum over calls.
// The accumulator is read, not changed.
template <class C>
void gather_sum(const Step& step, const Stages& stages, std::size_t array, std::int64_t begin, C* h,
                std::int64_t size) {
  load(step.gradients[array], begin, h, size);
  for (std::size_t replica = 1; replica < step.replicas; ++replica) {
    const Gradient& gradient = step.gradients[replica * step.count + array];
    if (gradient.data == nullptr) continue;
    alignas(64) C more[tile_size];
    load(gradient, begin, more, size);
    for (std::int64_t i = 0; i < size; ++i) h[i] = h[i] + more[i];
  }
  const C* const sum = reinterpret_cast<const C*>(step.accumulator + step.arrays[array].slot_offset) + begin;
  add_sum(stages, sum, h, size);
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
