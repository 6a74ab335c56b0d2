// Simulated GPUs (cuda/simulation.hpp) as tests see them.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep {

void bind_simulation(pybind11::module_& module);

}  // namespace fusedstep
