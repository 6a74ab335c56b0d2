// Adagrad (Duchi et al. 2011). Keras adds epsilon under the root, PyTorch outside.
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Adagrad {
  static constexpr auto name = "adagrad";
  static constexpr auto slots = names("accumulator");
  struct Hyperparameters {
    double epsilon, learning_rate_decay, form;
    static constexpr auto names = FUSEDSTEP_TARGET::names("epsilon", "learning_rate_decay", "form");
  };

  C k, ei, eo;

  FUSEDSTEP_HOST_DEVICE Adagrad(const Hyperparameters& h, double lr, std::uint64_t t) {
    const bool torch = h.form == form_torch;
    k = C(torch ? lr / (1 + double(t - 1) * h.learning_rate_decay) : lr);
    ei = C(torch ? 0 : h.epsilon);
    eo = C(torch ? h.epsilon : 0);
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& s) const {
    s = s + g * g;
    p = p - (k * g) / (sqrt(s + ei) + eo);
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
