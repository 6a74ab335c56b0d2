// Lion (Chen et al. 2023).
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Lion {
  static constexpr auto name = "lion";
  static constexpr auto slots = names("momentum");
  struct Hyperparameters {
    double beta_1, beta_2;
    static constexpr auto names = FUSEDSTEP_TARGET::names("beta_1", "beta_2");
  };

  C lr, b1, c1, b2, c2;

  FUSEDSTEP_HOST_DEVICE Lion(const Hyperparameters& h, double learning_rate, std::uint64_t) {
    lr = C(learning_rate);
    b1 = C(h.beta_1);
    c1 = C(1 - h.beta_1);
    b2 = C(h.beta_2);
    c2 = C(1 - h.beta_2);
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& m) const {
    p = p - lr * sign((b1 * m) + (c1 * g));
    m = (b2 * m) + (c2 * g);
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
