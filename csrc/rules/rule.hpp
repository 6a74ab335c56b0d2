// What a rule is.
//
// A rule is the arithmetic of one optimizer for one element, and nothing else: no loop, no dtype, no
// device, no thread. It is a trivially copyable struct over the compute type C,
//
//   name             what Python calls it
//   slots            the names of its slots: the state that it keeps for each element
//   Hyperparameters  the doubles that its coefficients come from, with their names
//   members          the coefficients: functions of the hyperparameters, the learning rate and the
//                    update's number t (from 1), computed in double and rounded once to C
//   operator()       one element: variable p, gradient g, slots in the declared order
//   carry            only where coefficients need more of the past than t: one double, made from that of
//                    the update before, 1 at first; the constructor gets that of the update before
//   divides_by_learning_rate, calls_pow
//                    true where it does: then rates that are too near to 0 are refused, and its kernel gets
//                    more registers
//
// made of + - * / and core/primitives.hpp. The order of operations is part of the rule: the NumPy
// reference in tests/ repeats it, and every target gives the reference's bits.
#pragma once

#include <cstdint>

#include "core/primitives.hpp"
#include "core/step.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <int N>
struct Names {
  static constexpr int count = N;
  const char* list[N == 0 ? 1 : N];
};

template <class... Text>
constexpr Names<sizeof...(Text)> names(Text... text) {
  return {{text...}};
}

// The variants of a formula that the `form` hyperparameter tells apart.
constexpr double form_torch = 1;

}  // namespace fusedstep::FUSEDSTEP_TARGET
