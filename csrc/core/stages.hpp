// The stages around a rule, over one tile of an array: gather, accumulate, factor, clip, L2, decay, the rule, store,
// average. They are loops of their own (factor, clip and L2 one together, on a CPU), so stages compose instead of
// multiplying with rules.
#pragma once

#include "core/gather.hpp"
#include "core/primitives.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// A rule with two passes has `direction`, which makes an update from a gradient, and `again`, which makes it anew
// from the slots, in the place of its call operator. In the second pass the variable takes in the update times a
// ratio of norms. The decay is repeated, so that a variable is stored, and rounded, once.
enum class Pass { only, first, second };

template <class Rule>
constexpr bool takes_two_passes = requires { &Rule::direction; };

// The stages between the gathered gradient h and the decay: what those that are on make of an element.
template <class C>
struct Preparation {
  C factor, high, l2;

  FUSEDSTEP_HOST_DEVICE Preparation(const Stages& stages, double factor_of_array)
      : factor(static_cast<C>(factor_of_array)),
        high(static_cast<C>(stages.clip.coefficient)),
        l2(static_cast<C>(stages.l2.coefficient)) {}

  template <bool scales, bool clips, bool penalizes>
  FUSEDSTEP_HOST_DEVICE C of(C h, C p) const {
    if constexpr (scales) h = h * factor;
    if constexpr (clips) h = clip(h, -high, high);
    if constexpr (penalizes) h = h + l2 * p;
    return h;
  }
};

template <class C>
FUSEDSTEP_HOST_DEVICE inline C decayed(C p, C decay) {
  return p - p * decay;
}

template <class C, class Size>
FUSEDSTEP_HOST_DEVICE inline void decay(const Stages& stages, C* p, Size size) {
  if (!stages.decay.on) return;
  const C decay = static_cast<C>(stages.decay.coefficient);
  for (std::int64_t i = 0; i < size; ++i) p[i] = decayed(p[i], decay);
}

// The stage after the rule. Whether p has changed.
template <class C, class Size>
FUSEDSTEP_HOST_DEVICE inline bool take_average(const Stages& stages, C* average, C* p, Size size) {
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

// Whether an array without a gradient is visited all the same.
FUSEDSTEP_HOST_DEVICE inline bool visits_without_gradient(const Stages& stages) {
  return stages.average != Average::off || stages.accumulation == Accumulation::flush;
}

// What does not depend on the tile.
struct Flow {
  const Stages& stages;
  double factor;         // of the gradient
  double update_factor;  // in the second pass
  bool has_gradient;
};

// One tile through all stages. A Tile knows where its elements are: in memory, or in registers with the memory
// they came from.
//
//   variable()         p, loaded
//   gather()           g, the gradient up to the sum over calls; maybe where it is, to be read
//   set_sum(g)         stores the sum over calls; clear_sum() stores zeros
//   prepare(f, p, g)   h, the gradient up to the decay
//   clear_gradient()   stores zeros into the gradient
//   apply_rule(p, h)   the only pass; or first(p, h), which notes the squares of p and of the update; or second(p, f)
//   store(p)           p, as the variable is stored
//   average()          loaded; store_average() stores it
//   as_stored(p)       p becomes what a load would give
template <Pass pass, class Tile, class Size>
FUSEDSTEP_HOST_DEVICE inline void stage_tile(const Flow& flow, Tile& tile, Size size) {
  const Stages& stages = flow.stages;
  const bool updates = flow.has_gradient && stages.accumulation != Accumulation::add;
  auto* const p = tile.variable();
  if constexpr (pass != Pass::second) {
    if (flow.has_gradient) {
      auto* const g = tile.gather();
      if (stages.accumulation == Accumulation::add) tile.set_sum(g);
      if (updates) {
        auto* const h = tile.prepare(flow, p, g);
        decay(stages, p, size);
        if constexpr (pass == Pass::first) {
          tile.first(p, h);
        } else {
          tile.apply_rule(p, h);
        }
      }
      if (stages.clears_gradient) tile.clear_gradient();
    }
    if (stages.accumulation == Accumulation::flush) tile.clear_sum();
    if constexpr (pass == Pass::first) return;
  } else if (updates) {
    decay(stages, p, size);
    tile.second(p, flow.update_factor);
  }
  if (updates) tile.store(p);
  if (stages.average == Average::off) return;
  if (updates) tile.as_stored(p);
  auto* const average = tile.average();
  const bool overwritten = take_average(stages, average, p, size);
  tile.store_average();
  if (overwritten) tile.store(p);
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
