// From hyperparameters as numbers in a row to a rule's struct, on host and device.
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class Rule>
FUSEDSTEP_HOST_DEVICE inline typename Rule::Hyperparameters hyperparameters(const double* values) {
  using Hyperparameters = typename Rule::Hyperparameters;
  constexpr int count = Hyperparameters::names.count;
  static_assert(count == 0 || sizeof(Hyperparameters) == count * sizeof(double), "doubles, each with its name");
  Hyperparameters h;
  __builtin_memcpy(static_cast<void*>(&h), values, count * sizeof(double));
  return h;
}

template <class Rule>
constexpr bool carries = requires { &Rule::carry; };

template <class Rule>
FUSEDSTEP_HOST_DEVICE inline Rule make_rule(const double* values, double learning_rate, std::uint64_t t,
                                            [[maybe_unused]] double carried) {
  if constexpr (carries<Rule>) {
    return Rule(hyperparameters<Rule>(values), learning_rate, t, carried);
  } else {
    return Rule(hyperparameters<Rule>(values), learning_rate, t);
  }
}

template <class Rule>
FUSEDSTEP_HOST_DEVICE inline void coefficients(const double* values, double learning_rate, std::uint64_t t,
                                               double carried, void* rule) {
  static_assert(__is_trivially_copyable(Rule) && sizeof(Rule) <= max_rule_size);
  static_assert(Rule::slots.count <= max_slots, "core/step.hpp says how many slots a rule can have");
  static_assert(Rule::Hyperparameters::names.count <= max_hyperparameters, "and how many hyperparameters");
  // As a Rule: of bytes, nvcc would store one after another.
  *static_cast<Rule*>(rule) = make_rule<Rule>(values, learning_rate, t, carried);
}

// What the next update gets as `carried`, after update t.
template <class Rule>
FUSEDSTEP_HOST_DEVICE inline double carry(const double* values, std::uint64_t t, double carried) {
  if constexpr (carries<Rule>) {
    return Rule::carry(hyperparameters<Rule>(values), t, carried);
  } else {
    return carried;
  }
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
