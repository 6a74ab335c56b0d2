// Runs a step on the CPU, on one thread or in one OpenMP region.
#pragma once

#include <vector>

#include "core/options.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {

// Work below this is not worth another thread (in the costs of core/slices.hpp).
constexpr std::uint64_t cost_per_thread = 32768;

// How many threads are worthwhile for a step of this cost.
int threads_for(std::uint64_t cost);

// What a caller has done in a step before anything changes.
struct Before {
  // A last look at arrays [begin, end), by the thread that will update them, while the caller waits. May be null.
  bool (*is_good)(void* context, std::size_t begin, std::size_t end);
  // Called by the calling thread when all were good. May be null.
  void (*all_good)(void* context);
  void* context;
};

// What a step asks of all its gradients before it changes anything, and what came of it.
struct Norms {
  Clip clip;
  double largest;         // norm
  double scale;           // what gradients are multiplied by before they count
  double sign;            // and after they were clipped
  bool skips_not_finite;  // nothing is changed where an element is not finite
  // The sums of squares of variables that are elsewhere, 0 of those here; null where all are here.
  const double* sums_elsewhere;
  bool finite_elsewhere;

  double norm;                  // of all gradients together
  std::vector<double> factors;  // for each array

  bool wanted() const { return clip != Clip::none || skips_not_finite; }

  // Scratch, kept from one step to the next.
  std::vector<std::size_t> leaves_before;  // of each array, in sums over leaves
  std::vector<double> leaf_sums, array_sums;
  std::vector<double> variable_squares, update_squares, ratios;  // of rules with two passes
};

enum class Outcome : std::uint8_t { done, not_good, skipped };

// Runs the step if all is good and nothing speaks against it; else changes nothing.
Outcome run(const Step& step, const Target& target, const Before& before, Norms& norms, int threads);

// The number of threads for large steps: the one set, else what OpenMP says (OMP_NUM_THREADS).
int thread_count();
void set_thread_count(int count);  // 0: as OpenMP says

bool has_openmp();

}  // namespace fusedstep
