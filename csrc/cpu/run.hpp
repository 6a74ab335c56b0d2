// Runs a step on the CPU, on one thread or in one OpenMP region.
#pragma once

#include "core/step.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {

// Work below this is not worth another thread (in the costs of core/slices.hpp).
constexpr std::uint64_t cost_per_thread = 32768;

// A last look at arrays [begin, end) of a step, by the thread that will update them.
struct Check {
  bool (*is_good)(void* context, std::size_t begin, std::size_t end);
  void* context;
};

// Runs the step if the check, where there is one, is good for all arrays; else changes nothing and
// returns false.
bool run(const Step& step, const Target& target, const Check* check);

// The number of threads for large steps: the one set, else what OpenMP says (OMP_NUM_THREADS).
int thread_count();
void set_thread_count(int count);  // 0: as OpenMP says

bool has_openmp();

}  // namespace fusedstep
