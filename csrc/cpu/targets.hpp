// The targets of this build: which there are, which this CPU can run, which one is in use.
#pragma once

#include <span>

#include "core/step.hpp"

namespace fusedstep {

struct Target {
  const char* name;
  const Rule* rules;
  int rule_count;
  const CompiledNorm* norms;  // for each compute type
  bool supported;             // by this CPU
};

// Best first; the last one runs everywhere.
std::span<const Target> targets();

// The one in use: the first supported one, until another is selected.
const Target& current_target();
void select_target(const Target& target);

}  // namespace fusedstep
