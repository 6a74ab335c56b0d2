// What a step is asked to do around its rule, and what that comes to at one call: the settings of its stages. Host
// and device compute it alike, because on a GPU the counts of calls are there.
#pragma once

#include "core/compiled_for.hpp"
#include "core/step.hpp"

namespace fusedstep {

enum class Clip : std::uint8_t { none, each, all };  // the norm of each gradient, or of all together

// Folded into the pass around every rule. Where something is off, its number means nothing.
struct Options {
  double l2 = 0;
  bool maximize = false;
  Clip clip = Clip::none;
  double largest_norm = 0;
  bool clips_values = false;
  double largest_value = 0;
  std::int64_t accumulation_steps = 1;
  bool has_loss_scale = false;
  double loss_scale = 1;
  // Finite calls in a row that double the scale, which then is one of the counts; 0: it stays as it is.
  std::int64_t loss_scale_growth_steps = 0;
  bool skips_not_finite = false;
  bool averages = false;
  double average_momentum = 0;
  bool averages_warm_up = false;         // from the first call on, with a momentum of (1 + t)/(10 + t) at most
  std::int64_t overwrite_frequency = 0;  // 0: never
  bool lazy = false;
  bool clears_gradients = false;  // as they are read, for libraries that add to them from step to step
};

// What may differ between variables.
struct Group {
  double multiplier = 1;  // of the learning rate
  double weight_decay = 0;
  // Where a group is `apart`, as PyTorch's are, the rest is in the place of what the build has.
  bool apart = false;
  double l2 = 0;
  double hyperparameters[max_hyperparameters] = {};
  std::int64_t behind = 0;  // updates of the build that its variables had no part in
  double carried = 1;       // what the rule carries from update to update
};

// How far a build has come.
struct Counts {
  std::int64_t calls = 0;
  std::int64_t updates = 0;
  std::int64_t skips = 0;  // calls that changed nothing, for gradients that were not finite
  double carried = 1;      // what the rule carries from update to update
  // Where the loss scale is dynamic: the scale, and how many calls were finite since it changed or one was not.
  double loss_scale = 1;
  std::int64_t finite_calls = 0;
};

// Where a loss scale, and one over it, are normal numbers of float32.
constexpr double smallest_loss_scale = 0x1p-126, largest_loss_scale = 0x1p126;

namespace FUSEDSTEP_TARGET {

// What all variables of a call have in common.
struct CallSettings {
  bool accumulating, updating;
  double unscale;  // what the sum over replicas is multiplied by before it enters the sum over calls
  bool unscales;
  double scale;  // and after
  double sign;
  bool clips;  // norms
};

FUSEDSTEP_HOST_DEVICE inline CallSettings describe_call(const Options& options, const Counts& counts,
                                                        std::uint32_t replicas, bool mean) {
  CallSettings call;
  call.accumulating = options.accumulation_steps > 1;
  call.updating = !call.accumulating || (counts.calls + 1) % options.accumulation_steps == 0;
  call.unscales = options.has_loss_scale || mean;
  const double loss_scale = !options.has_loss_scale                ? 1.0
                            : options.loss_scale_growth_steps == 0 ? options.loss_scale
                                                                   : counts.loss_scale;
  call.unscale = 1.0 / loss_scale / (mean ? static_cast<double>(replicas) : 1.0);
  call.scale = call.accumulating ? 1.0 / static_cast<double>(options.accumulation_steps) : call.unscale;
  call.sign = options.maximize ? -1 : 1;
  call.clips = options.clip != Clip::none && call.updating;
  return call;
}

FUSEDSTEP_HOST_DEVICE inline Settings settings_of(const Options& options, const Counts& counts,
                                                  const CallSettings& call, const Group& group,
                                                  const double* hyperparameters, double learning_rate) {
  Settings settings;
  settings.learning_rate = learning_rate * group.multiplier;
  settings.hyperparameters = group.apart ? group.hyperparameters : hyperparameters;
  settings.t = static_cast<std::uint64_t>(counts.updates + 1 - group.behind);
  settings.carried = group.apart ? group.carried : counts.carried;
  Stages& stages = settings.stages;
  stages.clears_gradient = options.clears_gradients;
  stages.unscale = {call.accumulating && call.unscales, call.unscale};
  stages.accumulation = !call.accumulating ? Accumulation::off
                        : call.updating    ? Accumulation::flush
                                           : Accumulation::add;
  stages.factor = {call.accumulating || call.unscales || call.clips || options.maximize, call.sign * call.scale};
  stages.clip = {options.clips_values, options.largest_value};
  const double l2 = group.apart ? group.l2 : options.l2;
  stages.l2 = {l2 != 0, l2};
  stages.decay = {group.weight_decay != 0, group.weight_decay * settings.learning_rate};
  const bool starts = counts.updates == 0 && !options.averages_warm_up;
  stages.average = !options.averages ? Average::off : starts ? Average::start : Average::move;
  const double t = static_cast<double>(counts.updates + 1 - group.behind), warm = (1 + t) / (10 + t);
  stages.average_momentum =
      options.averages_warm_up && warm < options.average_momentum ? warm : options.average_momentum;
  stages.average_overwrites =
      options.overwrite_frequency > 0 && (counts.updates + 1) % options.overwrite_frequency == 0;
  return settings;
}

// Whether there is a stage that the CPU's bare loops have not: they have the factor, and the L2 penalty or the decay.
FUSEDSTEP_HOST_DEVICE inline bool any_other_stage(const Stages& stages) {
  return stages.clears_gradient || stages.unscale.on || stages.accumulation != Accumulation::off || stages.clip.on ||
         (stages.l2.on && stages.decay.on) || stages.average != Average::off;
}

// Whether there is more to do than the rule.
FUSEDSTEP_HOST_DEVICE inline bool any_stage(const Stages& stages) {
  return any_other_stage(stages) || stages.factor.on || stages.l2.on || stages.decay.on;
}

// Counts a call that was made.
FUSEDSTEP_HOST_DEVICE inline void count_made(const Options& options, Counts& counts) {
  ++counts.calls;
  if (options.loss_scale_growth_steps == 0 || ++counts.finite_calls < options.loss_scale_growth_steps) return;
  counts.finite_calls = 0;
  counts.loss_scale = counts.loss_scale < largest_loss_scale / 2 ? 2 * counts.loss_scale : largest_loss_scale;
}

// Counts a call that was left out, for gradients that were not finite.
FUSEDSTEP_HOST_DEVICE inline void count_left_out(const Options& options, Counts& counts) {
  ++counts.skips;
  if (options.loss_scale_growth_steps == 0) return;
  counts.finite_calls = 0;
  counts.loss_scale = counts.loss_scale > 2 * smallest_loss_scale ? counts.loss_scale / 2 : smallest_loss_scale;
}

// What the gradients of a norm are multiplied by, where it is larger than `largest`.
FUSEDSTEP_HOST_DEVICE inline double clip_factor(double norm, double largest) {
  return norm <= largest ? 1 : largest / norm;
}

// What an update is multiplied by, from the norms of its variable and its own.
FUSEDSTEP_HOST_DEVICE inline double norm_ratio(double of_variable, double of_update) {
  return of_variable > 0 && of_update > 0 ? of_variable / of_update : 1;
}

}  // namespace FUSEDSTEP_TARGET
}  // namespace fusedstep
