// Adadelta (Zeiler 2012).
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Adadelta {
  static constexpr auto name = "adadelta";
  static constexpr auto slots = names("accumulated_grad", "accumulated_delta_var");
  struct Hyperparameters {
    double rho, epsilon;
    static constexpr auto names = FUSEDSTEP_TARGET::names("rho", "epsilon");
  };

  C lr, rho, q, e;

  FUSEDSTEP_HOST_DEVICE Adadelta(const Hyperparameters& h, double learning_rate, std::uint64_t) {
    lr = C(learning_rate);
    rho = C(h.rho);
    q = C(1 - h.rho);
    e = C(h.epsilon);
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& s, C& x) const {
    s = (rho * s) + (q * (g * g));
    const C d = (sqrt(x + e) * g) / sqrt(s + e);
    x = (rho * x) + (q * (d * d));
    p = p - lr * d;
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
