// Lamb (You et al. 2020): Adam's update, scaled for each variable by the ratio of the norms of both.
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Lamb {
  static constexpr auto name = "lamb";
  static constexpr auto slots = names("momentum", "velocity");
  struct Hyperparameters {
    double beta_1, beta_2, epsilon;
    static constexpr auto names = FUSEDSTEP_TARGET::names("beta_1", "beta_2", "epsilon");
  };

  C b1, c1, b2, c2, k, r, e;

  FUSEDSTEP_HOST_DEVICE Lamb(const Hyperparameters& h, double, std::uint64_t t) {
    b1 = C(h.beta_1);
    c1 = C(1 - h.beta_1);
    b2 = C(h.beta_2);
    c2 = C(1 - h.beta_2);
    k = C(1 / (1 - power(h.beta_1, t)));
    r = C(1 / sqrt(1 - power(h.beta_2, t)));
    e = C(h.epsilon);
  }

  FUSEDSTEP_HOST_DEVICE C direction(C g, C& m, C& v) const {
    m = (b1 * m) + (c1 * g);
    v = (b2 * v) + (c2 * (g * g));
    return again(m, v);
  }

  FUSEDSTEP_HOST_DEVICE C again(C m, C v) const { return (m * k) / ((sqrt(v) * r) + e); }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
