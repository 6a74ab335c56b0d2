// The loop: one rule over consecutive elements, and the stages around it.
//
// A stage is a loop of its own over a tile that stays in L1, so stages compose instead of
// multiplying with rules: gather, accumulate, factor, clip, L2, decay, the rule, store, average. Where no stage
// is on only the rule is left, over the whole slice: for variable and gradient of the compute type, and for both
// in bfloat16, where a conversion costs two instructions and waiting for a tile's other streams costs more.
//
// A rule with two passes has `direction`, which makes an update from a gradient, and `again`, which makes it anew
// from the slots, in the place of its call operator. In the second pass the variable takes in the update times a
// ratio of norms. The decay is repeated, so that a variable is stored, and rounded, once.
#pragma once

#include <utility>

#include "cpu/gather.hpp"
#include "cpu/norm.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

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

// What a rule does to a tile: `only` to variable and gradient; or `first` turns the gradient into the update, and
// `second` moves the variable.
template <class C>
struct TileRule {
  void (*only)(const void* rule, C* p, const C* g, C* const* slots, std::int64_t size);
  void (*first)(const void* rule, C* g, C* const* slots, std::int64_t size);
  void (*second)(const void* rule, C factor, C* p, C* const* slots, std::int64_t size);
};

enum class Pass { only, first, second };

template <class Rule>
constexpr bool takes_two_passes = requires { &Rule::direction; };

template <class Rule, class C, int... slot>
void sweep_first(const void* rule, C* g, C* const* slots, std::int64_t size, std::integer_sequence<int, slot...>) {
  const Rule in_registers = *static_cast<const Rule*>(rule);
  C* const s[] = {slots[slot]...};
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = 0; i < size; ++i) {
    C state[] = {s[slot][i]...};
    g[i] = in_registers.direction(g[i], state[slot]...);
    ((s[slot][i] = state[slot]), ...);
  }
}

template <class Rule, class C, int... slot>
void sweep_second(const void* rule, C factor, C* p, C* const* slots, std::int64_t size,
                  std::integer_sequence<int, slot...>) {
  const Rule in_registers = *static_cast<const Rule*>(rule);
  C* const s[] = {slots[slot]...};
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = 0; i < size; ++i) p[i] = p[i] - factor * in_registers.again(s[slot][i]...);
}

template <class Rule, class C>
constexpr TileRule<C> tile_rule() {
  using AllSlots = std::make_integer_sequence<int, Rule::slots.count>;
  if constexpr (takes_two_passes<Rule>) {
    return {nullptr,
            [](const void* rule, C* g, C* const* slots, std::int64_t size) {
              sweep_first<Rule>(rule, g, slots, size, AllSlots());
            },
            [](const void* rule, C factor, C* p, C* const* slots, std::int64_t size) {
              sweep_second<Rule>(rule, factor, p, slots, size, AllSlots());
            }};
  } else {
    return {[](const void* rule, C* p, const C* g, C* const* slots, std::int64_t size) {
              const Rule in_registers = *static_cast<const Rule*>(rule);
              sweep_aligned(in_registers, p, g, slots, 0, size);
            },
            nullptr, nullptr};
  }
}

// The stages between the gathered gradient h and the decay.
template <class C>
void prepare(const Stages& stages, double factor_of_owner, const C* p, C* h, std::int64_t size) {
  if (stages.factor.on) {
    const C factor = static_cast<C>(factor_of_owner);
    for (std::int64_t i = 0; i < size; ++i) h[i] = h[i] * factor;
  }
  if (stages.clip.on) {
    const C high = static_cast<C>(stages.clip.coefficient);
    for (std::int64_t i = 0; i < size; ++i) h[i] = clip(h[i], -high, high);
  }
  if (stages.l2.on) {
    const C l2 = static_cast<C>(stages.l2.coefficient);
    for (std::int64_t i = 0; i < size; ++i) h[i] = h[i] + l2 * p[i];
  }
}

template <class C>
void decay(const Stages& stages, C* p, std::int64_t size) {
  if (!stages.decay.on) return;
  const C decay = static_cast<C>(stages.decay.coefficient);
  for (std::int64_t i = 0; i < size; ++i) p[i] = p[i] - p[i] * decay;
}

// The stage after the rule. Whether p has changed.
template <class C>
bool take_average(const Stages& stages, C* average, C* p, std::int64_t size) {
  if (stages.average == Average::start) {
    for (std::int64_t i = 0; i < size; ++i) average[i] = p[i];
  } else if (stages.average == Average::move) {
    const C a = static_cast<C>(stages.average_momentum), b = static_cast<C>(1 - stages.average_momentum);
    for (std::int64_t i = 0; i < size; ++i) average[i] = (a * average[i]) + (b * p[i]);
  }
  if (!stages.average_overwrites) return false;
  for (std::int64_t i = 0; i < size; ++i) p[i] = average[i];
  return true;
}

// The sums of squares of a leaf, as its tiles come.
class LeafSquares {
 public:
  template <class C>
  void add(const C* x, std::int64_t size) {
    add_squares(x, size, lane_);
  }
  double take() {
    const double sum = sum_of_lanes(lane_);
    for (double& lane : lane_) lane = 0;
    return sum;
  }

 private:
  alignas(64) double lane_[lanes] = {};
};

// Elements [first, last) of an array, through the stages. One for all rules.
template <class C>
[[gnu::noinline]] void sweep_staged(const TileRule<C>& tile_rule, Pass pass, const void* rule, const Step& step,
                                    std::size_t index, C* const* slots, int slot_count, std::int64_t first,
                                    std::int64_t last) {
  alignas(64) C p_tile[tile_size];
  alignas(64) C h[tile_size];
  LeafSquares of_variable, of_update;
  const Array& array = step.arrays[index];
  const Settings& settings = step.settings[array.settings];
  const Stages& stages = settings.stages;
  const bool in_place = array.dtype == dtype_of(C()) && pass != Pass::first;  // the first one stores no variable
  const bool has_gradient = step.gradients[index].data != nullptr;
  const bool updates = has_gradient && stages.accumulation != Accumulation::add;
  const double factor = step.factors != nullptr ? step.factors[array.owner] : stages.factor.coefficient;
  C* const accumulator = reinterpret_cast<C*>(step.accumulator + array.slot_offset);
  C* const average = reinterpret_cast<C*>(step.average + array.slot_offset);
  for (std::int64_t begin = first; begin < last; begin += tile_size) {
    const std::int64_t size = last - begin < tile_size ? last - begin : tile_size;
    C* const p = in_place ? static_cast<C*>(array.variable) + begin : p_tile;
    C* s[max_slots] = {};
    for (int k = 0; k < slot_count; ++k) s[k] = slots[k] + begin;
    if (!in_place) load(array.variable, array.dtype, begin, p, size);
    if (pass != Pass::second) {
      // Always a copy: the gradient may be the variable's memory, which changes before the rule.
      if (has_gradient) gather_sum(step, stages, index, begin, h, size);
      if (stages.accumulation == Accumulation::add && has_gradient) {
        for (std::int64_t i = 0; i < size; ++i) accumulator[begin + i] = h[i];
      } else if (stages.accumulation == Accumulation::flush) {
        for (std::int64_t i = 0; i < size; ++i) accumulator[begin + i] = 0;
      }
      if (updates) prepare(stages, factor, p, h, size);
    }
    if (updates) {
      decay(stages, p, size);
      if (pass == Pass::only) tile_rule.only(rule, p, h, s, size);
      if (pass == Pass::first) tile_rule.first(rule, h, s, size);
      if (pass == Pass::second) {
        const double ratio = settings.learning_rate * step.ratios->ratios[array.owner];
        tile_rule.second(rule, static_cast<C>(ratio), p, s, size);
      }
    }
    if (pass == Pass::first) {
      if (!updates) continue;
      of_variable.add(p, size);
      of_update.add(h, size);
      if ((begin + size) % slice_unit == 0 || begin + size == last) {
        const std::size_t leaf = step.ratios->leaves_before[index] + static_cast<std::size_t>(begin / slice_unit);
        step.ratios->variable_squares[leaf] = of_variable.take();
        step.ratios->update_squares[leaf] = of_update.take();
      }
      continue;
    }
    if (updates && !in_place) store(p, array.variable, array.dtype, begin, size);
    if (stages.average != Average::off) {
      if (updates && !in_place) load(array.variable, array.dtype, begin, p, size);  // as stored
      if (take_average(stages, average + begin, p, size) && !in_place) {
        store(p, array.variable, array.dtype, begin, size);
      }
    }
  }
}

inline bool any_stage(const Stages& stages) {
  return stages.unscale.on || stages.accumulation != Accumulation::off || stages.factor.on || stages.clip.on ||
         stages.l2.on || stages.decay.on || stages.average != Average::off;
}

template <class Rule, class C, Pass pass>
void sweep_run(const void* rule, const Step& step, const Run& run) {
  constexpr int slot_count = Rule::slots.count;
  static constexpr TileRule<C> tiles = tile_rule<Rule, C>();
  const Stages& stages = step.settings[step.arrays[run.begin].settings].stages;
  const bool staged = takes_two_passes<Rule> || any_stage(stages) || step.replicas > 1;
  const bool without_gradient = stages.average != Average::off || stages.accumulation == Accumulation::flush;
  for (std::size_t i = run.begin; i < run.begin + run.count; ++i) {
    const Array& array = step.arrays[i];
    const Gradient& gradient = step.gradients[i];
    const std::int64_t begin = i == run.begin ? run.first : 0;
    const std::int64_t end = i + 1 == run.begin + run.count ? run.last : array.size;
    if (begin >= end || (gradient.data == nullptr && !without_gradient)) continue;
    C* slots[slot_count + 1] = {};
    for (int k = 0; k < slot_count; ++k) slots[k] = reinterpret_cast<C*>(step.slots[k] + array.slot_offset);
    const bool direct = !staged && gradient.rows == nullptr && array.dtype == gradient.dtype;
    if constexpr (!takes_two_passes<Rule>) {
      const Rule in_registers = *static_cast<const Rule*>(rule);
      if (direct && array.dtype == dtype_of(C())) {
        sweep_aligned(in_registers, static_cast<C*>(array.variable), static_cast<const C*>(gradient.data), slots, begin,
                      end);
        continue;
      }
      if (direct && array.dtype == DType::bfloat16) {
        sweep_bfloat16(in_registers, array.variable, gradient.data, slots, begin, end);
        continue;
      }
    }
    sweep_staged<C>(tiles, pass, rule, step, i, slots, slot_count, begin, end);
  }
}

// A rule with both of its passes, or its only one.
template <class Rule, class C, class Coefficients>
constexpr CompiledRule compiled_rule(Coefficients coefficients) {
  if constexpr (takes_two_passes<Rule>) {
    return {coefficients, sweep_run<Rule, C, Pass::first>, sweep_run<Rule, C, Pass::second>};
  } else {
    return {coefficients, sweep_run<Rule, C, Pass::only>, nullptr};
  }
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
