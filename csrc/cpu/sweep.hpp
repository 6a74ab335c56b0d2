// The loop: one rule over consecutive elements, and the stages around it.
//
// A stage is a loop of its own over a tile that stays in L1, so stages compose instead of
// multiplying with rules: load and widen, factor, L2, decay, the rule, store. Where no stage is on only the
// rule is left, over the whole slice: for variable and gradient of the compute type, and for both in bfloat16,
// where a conversion costs two instructions and waiting for a tile's other streams costs more.
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
template <class Rule, class C, class Storage, int... slot>
inline void sweep(const Rule& rule, Storage* p, const Storage* g, C* const* slots, std::int64_t begin, std::int64_t end,
                  std::integer_sequence<int, slot...>) {
  C* const s[] = {slots[slot]..., nullptr};
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = begin; i < end; ++i) {
    C variable = widen(p[i]);
    C state[] = {s[slot][i]..., C(0)};
    rule(variable, widen(g[i]), state[slot]...);
    narrow(variable, p[i]);
    ((s[slot][i] = state[slot]), ...);
  }
}

template <class Rule, class C>
inline void sweep_aligned(const Rule& rule, C* p, const C* g, C* const* slots, std::int64_t begin, std::int64_t end) {
  constexpr auto all_slots = std::make_integer_sequence<int, Rule::slots.count>();
  // From `head` on the variable, and with it every slot, is aligned to the widest vector. In a short
  // slice the elements before would cost more than that gains.
  constexpr std::uintptr_t widest = 64;
  constexpr std::int64_t worth_aligning = 2048;
  if (end - begin >= worth_aligning) {
    const std::uintptr_t misaligned = (0 - reinterpret_cast<std::uintptr_t>(p + begin)) % widest / sizeof(C);
    const std::int64_t head = begin + static_cast<std::int64_t>(misaligned);
    sweep(rule, p, g, slots, begin, head, all_slots);
    begin = head;
  }
  sweep(rule, p, g, slots, begin, end, all_slots);
}

template <class Rule>
void sweep_bfloat16(const Rule& rule, void* p, const void* g, float* const* slots, std::int64_t begin,
                    std::int64_t end) {
  sweep(rule, static_cast<BFloat16*>(p), static_cast<const BFloat16*>(g), slots, begin, end,
        std::make_integer_sequence<int, Rule::slots.count>());
}

template <class Rule>
void sweep_bfloat16(const Rule&, void*, const void*, double* const*, std::int64_t, std::int64_t) {}  // never is

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

constexpr DType dtype_of(float) {
  return DType::float32;
}
constexpr DType dtype_of(double) {
  return DType::float64;
}

// A rule over a tile.
template <class C>
using SweepTile = void (*)(const void* rule, C* p, const C* g, C* const* slots, std::int64_t size);

template <class Rule, class C>
void sweep_tile(const void* rule, C* p, const C* g, C* const* slots, std::int64_t size) {
  const Rule in_registers = *static_cast<const Rule*>(rule);
  sweep_aligned(in_registers, p, g, slots, 0, size);
}

// Elements [first, last) of an array, through the stages. One for all rules.
template <class C>
[[gnu::noinline]] void sweep_staged(SweepTile<C> sweep_tile, const void* rule, const Stages& stages, const Array& array,
                                    const Gradient& gradient, C* const* slots, int slot_count, std::int64_t first,
                                    std::int64_t last) {
  alignas(64) C p_tile[tile_size];
  alignas(64) C h[tile_size];
  const bool in_place = array.dtype == dtype_of(C());
  for (std::int64_t begin = first; begin < last; begin += tile_size) {
    const std::int64_t size = last - begin < tile_size ? last - begin : tile_size;
    C* const p = in_place ? static_cast<C*>(array.variable) + begin : p_tile;
    if (!in_place) load(array.variable, array.dtype, begin, p, size);
    // Always a copy: the gradient may be the variable's memory, which changes before the rule.
    load(gradient.data, gradient.dtype, begin, h, size);
    if (stages.factor.on) {
      const C factor = static_cast<C>(stages.factor.coefficient);
      for (std::int64_t i = 0; i < size; ++i) h[i] = h[i] * factor;
    }
    if (stages.l2.on) {
      const C l2 = static_cast<C>(stages.l2.coefficient);
      for (std::int64_t i = 0; i < size; ++i) h[i] = h[i] + l2 * p[i];
    }
    if (stages.decay.on) {
      const C decay = static_cast<C>(stages.decay.coefficient);
      for (std::int64_t i = 0; i < size; ++i) p[i] = p[i] - p[i] * decay;
    }
    C* s[max_slots] = {};
    for (int k = 0; k < slot_count; ++k) s[k] = slots[k] + begin;
    sweep_tile(rule, p, h, s, size);
    if (!in_place) store(p, array.variable, array.dtype, begin, size);
  }
}

// Consecutive arrays of one compute type: the first from element `first` on, the last up to `last`.
template <class Rule, class C>
void sweep_arrays(const void* rule, const Stages& stages, const Array* arrays, const Gradient* gradients,
                  std::size_t count, std::int64_t first, std::int64_t last, std::byte* const* slots_of_all) {
  constexpr int slot_count = Rule::slots.count;
  const Rule in_registers = *static_cast<const Rule*>(rule);
  const bool staged = stages.factor.on || stages.l2.on || stages.decay.on;
  for (std::size_t i = 0; i < count; ++i) {
    const Array& array = arrays[i];
    const Gradient& gradient = gradients[i];
    const std::int64_t begin = i == 0 ? first : 0;
    const std::int64_t end = i + 1 == count ? last : array.size;
    if (gradient.data == nullptr || begin >= end) continue;
    C* slots[slot_count + 1] = {};
    for (int k = 0; k < slot_count; ++k) slots[k] = reinterpret_cast<C*>(slots_of_all[k] + array.slot_offset);
    const bool direct = !staged && array.dtype == gradient.dtype;
    if (direct && array.dtype == dtype_of(C())) {
      sweep_aligned(in_registers, static_cast<C*>(array.variable), static_cast<const C*>(gradient.data), slots, begin,
                    end);
    } else if (direct && array.dtype == DType::bfloat16) {
      sweep_bfloat16(in_registers, array.variable, gradient.data, slots, begin, end);
    } else {
      sweep_staged<C>(sweep_tile<Rule, C>, rule, stages, array, gradient, slots, slot_count, begin, end);
    }
  }
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
