// The loop: one rule over consecutive elements, alone or between the stages of core/stages.hpp.
//
// With the stages that most steps have (the factor of a clipped norm or of a loss scale; an L2 penalty or the decay) it
// is one pass over the whole slice: for variable and gradient of the compute type, and for both in bfloat16, where a
// conversion costs two instructions and waiting for a tile's other streams costs more. Else tiles that stay in L1 go
// through the stages.
#pragma once

#include <utility>

#include "core/options.hpp"
#include "cpu/prefetch.hpp"
#include "cpu/tile.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// A rule after those stages that most steps have: in registers what the stages and then the rule do to a tile. (A
// product with a factor of 1 changes nothing.)
template <class Rule, class C, bool scales, bool penalizes, bool decays>
struct Prepared {
  static constexpr auto slots = Rule::slots;
  Rule rule;
  Preparation<C> preparation;
  C decay;

  Prepared(const Rule& of_step, const Stages& stages, double factor)
      : rule(of_step), preparation(stages, factor), decay(static_cast<C>(stages.decay.coefficient)) {}

  template <class... Slot>
  void operator()(C& p, C g, Slot&... slot) const {
    const C h = preparation.template of<scales, false, penalizes>(g, p);
    if constexpr (decays) p = decayed(p, decay);
    rule(p, h, slot...);
  }
};

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

// Elements [first, last) of an array, through the stages. One for all rules.
template <Pass pass, class C>
[[gnu::noinline]] void sweep_staged(const TileRule<C>& tile_rule, const void* rule, const Step& step, std::size_t index,
                                    C* const* slots, int slot_count, std::int64_t first, std::int64_t last) {
  const Array& array = step.arrays[index];
  const Settings& settings = step.settings[array.settings];
  const Stages& stages = settings.stages;
  Flow flow = {stages, factor_of(step, index, stages), 0, step.gradients[index].data != nullptr};
  if (pass == Pass::second) flow.update_factor = settings.learning_rate * step.ratios->ratios[index];
  // The first pass stores no variable.
  Tile<pass, C> tile(tile_rule, rule, step, index, slots, slot_count,
                     array.dtype == dtype_of(C()) && pass != Pass::first, flow);
  [[maybe_unused]] std::int64_t leaf = -1;  // whose squares are summed
  const auto start_leaf = [&]([[maybe_unused]] std::int64_t next) {
    if constexpr (pass == Pass::first) {
      if (leaf >= 0 && leaf != next && flow.has_gradient && stages.accumulation != Accumulation::add) {
        const std::size_t place = step.ratios->leaves_before[index] + static_cast<std::size_t>(leaf);
        step.ratios->variable_squares[place] = tile.squares.of_variable.take();
        step.ratios->update_squares[place] = tile.squares.of_update.take();
      }
      leaf = next;
    }
  };
  Ranges ranges(touched_rows(step, index), first, last);
  do {
    for (std::int64_t begin = ranges.begin, size; begin < ranges.end; begin += size) {
      const std::int64_t left = ranges.end - begin, left_of_leaf = slice_unit - begin % slice_unit;
      size = left < tile_size ? left : tile_size;
      if (left_of_leaf < size) size = left_of_leaf;
      start_leaf(begin / slice_unit);
      tile.move_to(begin, size);
      stage_tile<pass>(flow, tile, size);
    }
  } while (ranges.next());
  start_leaf(-1);
}

// The rule alone, where only some rows are updated. One for all rules.
template <class C>
[[gnu::noinline]] void sweep_rows(const TileRule<C>& tile_rule, const void* rule, const Step& step, std::size_t index,
                                  C* const* slots, int slot_count, std::int64_t first, std::int64_t last) {
  const Array& array = step.arrays[index];
  C* of_row[max_slots] = {};
  Ranges ranges(touched_rows(step, index), first, last);
  do {
    for (int k = 0; k < slot_count; ++k) of_row[k] = slots[k] + ranges.begin;
    tile_rule.only(rule, static_cast<C*>(array.variable) + ranges.begin,
                   ranges.from<C>(step.gradients[index].data) + ranges.begin, of_row, ranges.end - ranges.begin);
  } while (ranges.next());
}

template <class Rule, class C, Pass pass>
void sweep_run(const void* rule, const Step& step, const Run& run) {
  constexpr int slot_count = Rule::slots.count;
  static constexpr TileRule<C> tiles = tile_rule<Rule, C>();
  const Stages& stages = step.settings[step.arrays[run.begin].settings].stages;
  const bool staged = takes_two_passes<Rule> || any_other_stage(stages) || step.replicas > 1;
  const bool unscaled = !stages.factor.on;
  const bool without_gradient = visits_without_gradient(stages);
  for (std::size_t i = run.begin; i < run.begin + run.count; ++i) {
    if (i + arrays_ahead < run.begin + run.count) prefetch_array(step, i + arrays_ahead);
    const Array& array = step.arrays[i];
    const Gradient& gradient = step.gradients[i];
    const std::int64_t begin = i == run.begin ? run.first : 0;
    const std::int64_t end = i + 1 == run.begin + run.count ? run.last : array.size;
    if (begin >= end || (gradient.data == nullptr && !without_gradient)) continue;
    C* slots[slot_count + 1] = {};
    for (int k = 0; k < slot_count; ++k) slots[k] = reinterpret_cast<C*>(step.slots[k] + array.slot_offset);
    const bool in_place = array.dtype == dtype_of(C());
    if constexpr (!takes_two_passes<Rule>) {
      const bool in_one_dtype = array.dtype == gradient.dtype;
      if (!staged && in_one_dtype && gradient.rows == nullptr && (in_place || array.dtype == DType::bfloat16)) {
        const Rule in_registers = *static_cast<const Rule*>(rule);
        const double factor = unscaled ? 1 : factor_of(step, i, stages);
        const auto sweep_all = [&](const auto& prepared) {
          if (in_place) {
            sweep_aligned(prepared, static_cast<C*>(array.variable), static_cast<const C*>(gradient.data), slots, begin,
                          end);
          } else {
            sweep_bfloat16(prepared, array.variable, gradient.data, slots, begin, end);
          }
        };
        if (stages.l2.on) {
          sweep_all(Prepared<Rule, C, true, true, false>(in_registers, stages, factor));
        } else if (factor != 1 && stages.decay.on) {
          sweep_all(Prepared<Rule, C, true, false, true>(in_registers, stages, factor));
        } else if (factor != 1) {
          sweep_all(Prepared<Rule, C, true, false, false>(in_registers, stages, factor));
        } else if (stages.decay.on) {
          sweep_all(Prepared<Rule, C, false, false, true>(in_registers, stages, factor));
        } else {
          sweep_all(in_registers);
        }
        continue;
      }
      const bool alone = !staged && !stages.l2.on && !stages.decay.on && (unscaled || factor_of(step, i, stages) == 1);
      if (alone && in_place && in_one_dtype && touched_rows(step, i) != nullptr) {
        sweep_rows<C>(tiles, rule, step, i, slots, slot_count, begin, end);
        continue;
      }
    }
    sweep_staged<pass, C>(tiles, rule, step, i, slots, slot_count, begin, end);
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
