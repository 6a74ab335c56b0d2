// Runs a step on the CPU, on one thread or in one OpenMP region.
#pragma once

#include "core/step.hpp"
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

// Runs the step if all is good; else changes nothing and returns false.
bool run(const Step& step, const Target& target, const Before& before, int threads);

// The number of threads for large steps: the one set, else what OpenMP says (OMP_NUM_THREADS).
int thread_count();
void set_thread_count(int count);  // 0: as OpenMP says

bool has_openmp();

}  // namespace fusedstep
