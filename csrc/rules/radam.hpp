// RAdam (Liu et al. 2020): Adam that takes plain steps while the mean square knows too few gradients.
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Radam {
  static constexpr auto name = "radam";
  static constexpr auto slots = names("momentum", "velocity");
  struct Hyperparameters {
    double beta_1, beta_2, epsilon;
    static constexpr auto names = FUSEDSTEP_TARGET::names("beta_1", "beta_2", "epsilon");
  };

  C b1, c1, b2, c2, a, e;
  bool rectified;

  FUSEDSTEP_HOST_DEVICE Radam(const Hyperparameters& h, double lr, std::uint64_t t) {
    const double correction_1 = 1 - power(h.beta_1, t);
    const double left = power(h.beta_2, t);
    // Of how many gradients the mean square is, as if it were a simple average: in the end, and now.
    const double most = 2 / (1 - h.beta_2) - 1;
    const double length = most - 2 * static_cast<double>(t) * left / (1 - left);
    b1 = C(h.beta_1);
    c1 = C(1 - h.beta_1);
    b2 = C(h.beta_2);
    c2 = C(1 - h.beta_2);
    e = C(h.epsilon);
    rectified = length > 5;
    if (rectified) {
      const double variance = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length);
      a = C(lr * sqrt(variance) * sqrt(1 - left) / correction_1);
    } else {
      a = C(lr / correction_1);
    }
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& m, C& v) const {
    m = (b1 * m) + (c1 * g);
    v = (b2 * v) + (c2 * (g * g));
    const C d = sqrt(v) + e;
    p = p - (a * m) / (rectified ? d : C(1));
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
