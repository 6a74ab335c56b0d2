// The loop: one rule over consecutive elements, and the stages around it.
//
// A stage is a loop of its own over a tile that stays in L1, so stages compose instead of
// multiplying: load and widen, factor, L2, decay, the rule, store. Where no stage is on and nothing
// has to be converted only the rule is left, and the whole slice is its tile.
#pragma once

#include <utility>

#include "core/step.hpp"
#include "core/storage.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

constexpr std::int64_t tile_size = 512;

// The loop's iterations are independent. (`restrict` would promise more than is true: a gradient may
// be its own variable.)
#define FUSEDSTEP_INDEPENDENT _Pragma("GCC ivdep")

// The rule, for elements [begin, end).
template <class Rule, class C, int... slot>
void sweep(const Rule& rule_in_memory, C* p, const C* g, C* const* slots, std::int64_t begin, std::int64_t end,
           std::integer_sequence<int, slot...>) {
  const Rule rule = rule_in_memory;
  C* const s[] = {slots[slot]..., nullptr};
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = begin; i < end; ++i) {
    C variable = p[i];
    C state[] = {s[slot][i]..., C(0)};
    rule(variable, g[i], state[slot]...);
    p[i] = variable;
    ((s[slot][i] = state[slot]), ...);
  }
}

template <class Rule, class C>
void sweep_aligned(const void* rule_in_memory, C* p, const C* g, C* const* slots, std::int64_t size) {
  const Rule& rule = *static_cast<const Rule*>(rule_in_memory);
  constexpr auto all_slots = std::make_integer_sequence<int, Rule::slots.count>();
  // From `head` on the variable, and with it every slot, is aligned to the widest vector. In a short
  // slice the elements before would cost more than that gains.
  constexpr std::uintptr_t widest = 64;
  constexpr std::int64_t worth_aligning = 2048;
  const std::uintptr_t misaligned = (0 - reinterpret_cast<std::uintptr_t>(p)) % widest / sizeof(C);
  const std::int64_t head = size < worth_aligning ? 0 : static_cast<std::int64_t>(misaligned);
  sweep(rule, p, g, slots, 0, head, all_slots);
  sweep(rule, p, g, slots, head, size, all_slots);
}

template <class Storage, class C>
void widen_all(const void* from, std::int64_t begin, C* to, std::int64_t size) {
  const Storage* const values = static_cast<const Storage*>(from) + begin;
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = 0; i < size; ++i) to[i] = static_cast<C>(widen(values[i]));
}

template <class C>
void load(const void* from, DType dtype, std::int64_t begin, C* to, std::int64_t size) {
  switch (dtype) {
    case DType::float32: return widen_all<float>(from, begin, to, size);
    case DType::float64: return widen_all<double>(from, begin, to, size);
    case DType::float16: return widen_all<Float16>(from, begin, to, size);
    case DType::bfloat16: return widen_all<BFloat16>(from, begin, to, size);
  }
}

template <class Storage>
void narrow_all(const float* from, void* to, std::int64_t begin, std::int64_t size) {
  Storage* const values = static_cast<Storage*>(to) + begin;
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = 0; i < size; ++i) narrow(from[i], values[i]);
}

inline void store(const float* from, void* to, DType dtype, std::int64_t begin, std::int64_t size) {
  if (dtype == DType::float16) narrow_all<Float16>(from, to, begin, size);
  if (dtype == DType::bfloat16) narrow_all<BFloat16>(from, to, begin, size);
}

inline void store(const double*, void*, DType, std::int64_t, std::int64_t) {}  // float64 is updated in place

constexpr DType dtype_of(float) { return DType::float32; }
constexpr DType dtype_of(double) { return DType::float64; }

template <class Rule, class C>
void slice(const void* rule, const Stages& stages, void* variable, DType variable_dtype, const void* gradient,
           DType gradient_dtype, void* const* slots, std::int64_t size) {
  const bool variable_in_place = variable_dtype == dtype_of(C());
  const bool gradient_in_place = gradient_dtype == dtype_of(C());
  const bool staged = stages.factor.on || stages.l2.on || stages.decay.on;
  const std::int64_t tile = variable_in_place && gradient_in_place && !staged ? size : tile_size;

  alignas(64) C p_tile[tile_size];
  alignas(64) C h_tile[tile_size];
  for (std::int64_t begin = 0; begin < size; begin += tile) {
    const std::int64_t count = size - begin < tile ? size - begin : tile;
    C* p = p_tile;
    if (variable_in_place) {
      p = static_cast<C*>(variable) + begin;
    } else {
      load(variable, variable_dtype, begin, p_tile, count);
    }
    const C* h = static_cast<const C*>(gradient) + begin;
    if (!gradient_in_place || staged) {
      // A copy even where only the variable changes before the rule: the gradient may be its memory.
      load(gradient, gradient_dtype, begin, h_tile, count);
      h = h_tile;
    }
    if (stages.factor.on) {
      const C factor = static_cast<C>(stages.factor.coefficient);
      for (std::int64_t i = 0; i < count; ++i) h_tile[i] = h_tile[i] * factor;
    }
    if (stages.l2.on) {
      const C l2 = static_cast<C>(stages.l2.coefficient);
      for (std::int64_t i = 0; i < count; ++i) h_tile[i] = h_tile[i] + l2 * p[i];
    }
    if (stages.decay.on) {
      const C decay = static_cast<C>(stages.decay.coefficient);
      for (std::int64_t i = 0; i < count; ++i) p[i] = p[i] - p[i] * decay;
    }
    C* s[max_slots];
    for (int k = 0; k < Rule::slots.count; ++k) s[k] = static_cast<C*>(slots[k]) + begin;
    sweep_aligned<Rule>(rule, p, h, s, count);
    if (!variable_in_place) store(p_tile, variable, variable_dtype, begin, count);
  }
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
