// Runs a step on the CPU, on one thread or in one OpenMP region.
#pragma once

#include "core/step.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {

// Work below this is not worth another thread (in the costs of core/slices.hpp).
constexpr std::uint64_t cost_per_thread = 32768;

void run(const Step& step, const Target& target);

// The number of threads for large steps: the one set, else what OpenMP says (OMP_NUM_THREADS).
int thread_count();
void set_thread_count(int count);  // 0: as OpenMP says

bool has_openmp();

}  // namespace fusedstep
