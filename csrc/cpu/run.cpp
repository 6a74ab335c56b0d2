#include "cpu/run.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "core/dtypes.hpp"
#include "core/slices.hpp"
#include "cpu/float_environment.hpp"

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

// Elements from `begin` up to `end`, which may lie in different arrays: runs of one compute type.
void run_part(const Step& step, const Rule& rule, const RuleInMemory* made, Place begin, Place end) {
  const std::size_t arrays_end = end.element > 0 ? end.array + 1 : end.array;
  for (std::size_t first = begin.array; first < arrays_end;) {
    const ComputeType compute = step.arrays[first].compute;
    std::size_t after = first + 1;
    while (after < arrays_end && step.arrays[after].compute == compute) ++after;
    rule.compiled[compute].sweep(made[compute].bytes, step.stages, step.arrays + first, step.gradients + first,
                                 after - first, first == begin.array ? begin.element : 0,
                                 after == arrays_end && end.element > 0 ? end.element : step.arrays[after - 1].size,
                                 step.slots);
    first = after;
  }
}

}  // namespace

int threads_for(std::uint64_t cost) {
  return static_cast<int>(std::clamp<std::uint64_t>(cost / cost_per_thread, 1, thread_count()));
}

bool run(const Step& step, const Target& target, const Before& before, int threads) {
  const Rule& rule = target.rules[step.rule];
  RuleInMemory made[compute_types];
  {
    const DefaultFloatEnvironment environment;
    for (int compute = 0; compute < compute_types; ++compute) {
      rule.compiled[compute].coefficients(step.hyperparameters, step.learning_rate, step.t, step.carried,
                                          made[compute].bytes);
    }
  }

  // Each thread checks the arrays that begin in its share.
  const auto check_share = [&](Place begin, Place end) {
    const auto first_beginning = [](Place place) { return place.array + (place.element > 0 ? 1 : 0); };
    return before.is_good == nullptr || before.is_good(before.context, first_beginning(begin), first_beginning(end));
  };
  const auto run_share = [&](Place begin, Place end) {
    const DefaultFloatEnvironment environment;
    run_part(step, rule, made, begin, end);
  };

  if (threads == 1) {
    const Place begin = {0, 0}, end = {step.count, 0};
    if (!check_share(begin, end)) return false;
    if (before.all_good != nullptr) before.all_good(before.context);
    run_share(begin, end);
    return true;
  }
  std::atomic<bool> good{true};
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    const Place begin = part_begin(step, thread, omp_get_num_threads());
    const Place end = part_begin(step, thread + 1, omp_get_num_threads());
    if (!check_share(begin, end)) good = false;
#pragma omp barrier
    if (good) {
      if (thread == 0 && before.all_good != nullptr) before.all_good(before.context);
      run_share(begin, end);
    }
  }
#endif
  return good;
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
