#include "cpu/run.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <exception>

#include "core/dtypes.hpp"
#include "core/slices.hpp"
#include "core/tree.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/prefetch.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fusedstep {
namespace {

std::atomic<int> chosen_thread_count{0};

// The threads of an OpenMP runtime do not exist in a forked child, and libgomp waits for them for
// ever. A child therefore steps on its one thread.
std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

struct RuleInMemory {
  alignas(64) std::byte bytes[max_rule_size];
};

// The rule's struct for each of the step's settings and compute types.
class MadeRules {
 public:
  MadeRules(const Step& step, const Rule& rule) {
    const std::size_t needed = step.settings_count * compute_types;
    if (needed > few_.size()) many_.resize(needed);
    rules_ = needed > few_.size() ? many_.data() : few_.data();
    const DefaultFloatEnvironment environment;
    for (std::size_t k = 0; k < needed; ++k) {
      const Settings& settings = step.settings[k / compute_types];
      rule.compiled[k % compute_types].coefficients(settings.hyperparameters, settings.learning_rate, settings.t,
                                                    settings.carried, rules_[k].bytes);
    }
  }

  const void* operator()(const Array& array) const {
    return rules_[array.settings * compute_types + array.compute].bytes;
  }

 private:
  std::array<RuleInMemory, 2 * compute_types> few_;
  std::vector<RuleInMemory> many_;
  RuleInMemory* rules_;
};

// The places of a step's arrays from `begin` up to `end`.
template <class Work>  // of an array's index, and its first and last element
void for_arrays(const Step& step, Place begin, Place end, const Work& work) {
  const std::size_t arrays_end = end.element > 0 ? end.array + 1 : end.array;
  for (std::size_t i = begin.array; i < arrays_end; ++i) {
    work(i, i == begin.array ? begin.element : 0,
         i + 1 == arrays_end && end.element > 0 ? end.element : step.arrays[i].size);
  }
}

// One pass over what lies between two places, which may be in different arrays.
void sweep_part(const Step& step, const Rule& rule, const MadeRules& made, bool finishing, Place begin, Place end) {
  const std::size_t arrays_end = end.element > 0 ? end.array + 1 : end.array;
  for (std::size_t first = begin.array; first < arrays_end;) {
    const Array& array = step.arrays[first];
    std::size_t after = first + 1;
    while (after < arrays_end && step.arrays[after].compute == array.compute &&
           step.arrays[after].settings == array.settings) {
      ++after;
    }
    const Run run = {first, after - first, first == begin.array ? begin.element : 0,
                     after == arrays_end && end.element > 0 ? end.element : step.arrays[after - 1].size};
    const CompiledRule& compiled = rule.compiled[array.compute];
    (finishing ? compiled.finish : compiled.sweep)(made(array), step, run);
    first = after;
  }
}

// How many leaves of the norms' tree each array has.
void count_leaves(const Step& step, Norms& norms) {
  norms.leaves_before.resize(step.count + 1);
  norms.leaves_before[0] = 0;
  for (std::size_t i = 0; i < step.count; ++i) {
    const std::int64_t leaves =
        step.gradients[i].data == nullptr ? 0 : (step.arrays[i].size + slice_unit - 1) / slice_unit;
    norms.leaves_before[i + 1] = norms.leaves_before[i] + static_cast<std::size_t>(leaves);
  }
}

// Room for the sums of the leaves. Where not all of them will be summed, the others are 0.
void make_leaf_sums(const Step& step, const Norms& norms, std::vector<double>& sums) {
  sums.resize(norms.leaves_before.back());
  if (step.touched != nullptr) std::ranges::fill(sums, 0);
}

// Whether all elements between two places are finite.
bool sum_leaves(const Step& step, const Target& target, Norms& norms, Place begin, Place end) {
  bool finite = true;
  for_arrays(step, begin, end, [&](std::size_t i, std::int64_t first, std::int64_t last) {
    if (i + baseline::arrays_ahead < step.count) baseline::prefetch_gradient(step, i + baseline::arrays_ahead);
    if (step.gradients[i].data == nullptr) return;
    double* const sums = norms.leaf_sums.data() + norms.leaves_before[i];
    std::int64_t after = first;  // the last leaf that was summed
    baseline::Ranges ranges(baseline::touched_rows(step, i), first, last);
    do {
      std::int64_t element = std::max(after, ranges.begin / slice_unit * slice_unit);
      for (; element < ranges.end; element += slice_unit) {
        finite &= target.norms[step.arrays[i].compute].leaf(step, i, element, sums + element / slice_unit);
      }
      after = element;
    } while (ranges.next());
  });
  return finite;
}

// Room for all that is summed, made before anything changes: after that no memory can be missing.
void make_room(const Step& step, bool two_passes, Norms& norms) {
  if (!norms.wanted() && !two_passes) return;
  count_leaves(step, norms);
  norms.array_sums.resize(step.count);
  if (norms.wanted()) make_leaf_sums(step, norms, norms.leaf_sums);
  if (!two_passes) return;
  make_leaf_sums(step, norms, norms.variable_squares);
  make_leaf_sums(step, norms, norms.update_squares);
  norms.ratios.resize(step.count);
}

// From the leaves' sums to the arrays', in norms.array_sums.
void sum_arrays(const Step& step, Norms& norms, std::vector<double>& leaf_sums) {
  for (std::size_t i = 0; i < step.count; ++i) {
    const std::size_t leaves = norms.leaves_before[i + 1] - norms.leaves_before[i];
    norms.array_sums[i] =
        baseline::sum_of_tree(leaf_sums.data() + norms.leaves_before[i], static_cast<std::int64_t>(leaves));
  }
}

// To norms and factors. (Not inlined, as the next one: its arithmetic must stay in the mode that is set.)
[[gnu::noinline]] void finish_norms(const Step& step, Norms& norms) {
  sum_arrays(step, norms, norms.leaf_sums);
  std::vector<double>& sums = norms.array_sums;
  for (std::size_t i = 0; norms.sums_elsewhere != nullptr && i < step.count; ++i) sums[i] += norms.sums_elsewhere[i];
  const auto factor = [&](double norm) {
    return norms.sign * (baseline::clip_factor(norm, norms.largest) * norms.scale);
  };
  if (norms.clip == Clip::each) {
    for (std::size_t i = 0; i < step.count; ++i) norms.factors[i] = factor(std::sqrt(sums[i]) * norms.scale);
  }
  norms.norm = std::sqrt(baseline::sum_of_tree(sums.data(), static_cast<std::int64_t>(sums.size()))) * norms.scale;
  if (norms.clip == Clip::all) std::ranges::fill(norms.factors, factor(norms.norm));
}

// What each array's updates are multiplied by between two passes.
[[gnu::noinline]] void finish_ratios(const Step& step, Norms& norms) {
  sum_arrays(step, norms, norms.variable_squares);
  norms.ratios = norms.array_sums;
  sum_arrays(step, norms, norms.update_squares);
  for (std::size_t i = 0; i < step.count; ++i) {
    norms.ratios[i] = baseline::norm_ratio(std::sqrt(norms.ratios[i]), std::sqrt(norms.array_sums[i]));
  }
}

}  // namespace

int threads_for(std::uint64_t cost) {
  return static_cast<int>(std::clamp<std::uint64_t>(cost / cost_per_thread, 1, thread_count()));
}

Outcome run(const Step& whole_step, const Target& target, const Before& before, Norms& norms, int threads) {
  const Rule& rule = whole_step.custom != nullptr ? *whole_step.custom : target.rules[whole_step.rule];
  const bool two_passes = rule.compiled[compute_float32].finish != nullptr;
  Ratios ratios = {};
  Step step = whole_step;
  step.ratios = &ratios;
  const MadeRules made(step, rule);

  // Each thread checks the arrays that begin in its share.
  const auto check_share = [&](Place begin, Place end) {
    const auto first_beginning = [](Place place) { return place.array + (place.element > 0 ? 1 : 0); };
    return before.is_good == nullptr || before.is_good(before.context, first_beginning(begin), first_beginning(end));
  };
  const auto finish_check = [&] {
    make_room(step, two_passes, norms);
    ratios = {norms.leaves_before.data(), norms.variable_squares.data(), norms.update_squares.data(),
              norms.ratios.data()};
    if (before.all_good != nullptr) before.all_good(before.context);
  };
  const auto sum_share = [&](Place begin, Place end) {
    const DefaultFloatEnvironment environment;
    return sum_leaves(step, target, norms, begin, end);
  };
  const auto finish_sums = [&](bool finite) {
    const DefaultFloatEnvironment environment;
    finish_norms(step, norms);
    finite &= norms.sums_elsewhere == nullptr || norms.finite_elsewhere;
    return norms.skips_not_finite && !finite ? Outcome::skipped : Outcome::done;
  };
  const auto sweep_share = [&](bool finishing, Place begin, Place end) {
    const DefaultFloatEnvironment environment;
    sweep_part(step, rule, made, finishing, begin, end);
  };
  const auto finish_first_pass = [&] {
    const DefaultFloatEnvironment environment;
    finish_ratios(step, norms);
  };

  if (threads == 1) {
    const Place begin = {0, 0}, end = {step.count, 0};
    if (!check_share(begin, end)) return Outcome::not_good;
    finish_check();
    if (norms.wanted()) {
      const Outcome outcome = finish_sums(sum_share(begin, end));
      if (outcome != Outcome::done) return outcome;
    }
    sweep_share(false, begin, end);
    if (two_passes) {
      finish_first_pass();
      sweep_share(true, begin, end);
    }
    return Outcome::done;
  }
  [[maybe_unused]] std::atomic<bool> good{true}, finite{true};
  Outcome outcome = Outcome::done;
#if defined(_OPENMP)
  std::exception_ptr error;  // that there is no room for norms; it may not leave the region
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    const Place begin = part_begin(step, thread, omp_get_num_threads());
    const Place end = part_begin(step, thread + 1, omp_get_num_threads());
    if (!check_share(begin, end)) good = false;
#pragma omp barrier
    // From here on all threads agree on the outcome, which changes between barriers only.
#pragma omp master
    {
      if (!good) outcome = Outcome::not_good;
      try {
        if (good) finish_check();
      } catch (...) {
        error = std::current_exception();
        outcome = Outcome::not_good;
      }
    }
    if (norms.wanted()) {
#pragma omp barrier
      if (outcome == Outcome::done && !sum_share(begin, end)) finite = false;
#pragma omp barrier
#pragma omp master
      if (outcome == Outcome::done) outcome = finish_sums(finite);
    }
    if (norms.wanted() || two_passes) {
#pragma omp barrier
    }
    const bool sweeps = norms.wanted() || two_passes ? outcome == Outcome::done : good.load();
    if (sweeps) sweep_share(false, begin, end);
    if (two_passes) {
#pragma omp barrier
#pragma omp master
      if (sweeps) finish_first_pass();
#pragma omp barrier
      if (sweeps) sweep_share(true, begin, end);
    }
  }
  if (error) std::rethrow_exception(error);
#endif
  return outcome;
}

int thread_count() {
  if (forked) return 1;
#if defined(_OPENMP)
  const int chosen = chosen_thread_count;
  return chosen > 0 ? chosen : omp_get_max_threads();
#else
  return 1;
#endif
}

void set_thread_count(int count) {
  chosen_thread_count = count;
}

bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

}  // namespace fusedstep
