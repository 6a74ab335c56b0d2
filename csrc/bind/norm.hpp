// The norm of gradients that no step has.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace fusedstep {

// The Euclidean norm of all arrays of a list together, None counting as zeros: to the bits of a step's.
// `who` begins the sentences of refusals.
double norm_of(const pybind11::list& gradients, const std::string& who);

}  // namespace fusedstep
