// Adamax (Kingma and Ba 2015). Keras adds epsilon in the denominator, PyTorch inside the maximum.
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Adamax {
  static constexpr auto name = "adamax";
  static constexpr auto slots = names("momentum", "norm");
  struct Hyperparameters {
    double beta_1, beta_2, epsilon, form;
    static constexpr auto names = FUSEDSTEP_TARGET::names("beta_1", "beta_2", "epsilon", "form");
  };

  C b1, c1, b2, a, ei, eo;

  FUSEDSTEP_HOST_DEVICE Adamax(const Hyperparameters& h, double lr, std::uint64_t t) {
    const bool torch = h.form == form_torch;
    b1 = C(h.beta_1);
    c1 = C(1 - h.beta_1);
    b2 = C(h.beta_2);
    a = C(lr / (1 - power(h.beta_1, t)));
    ei = C(torch ? h.epsilon : 0);
    eo = C(torch ? 0 : h.epsilon);
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& m, C& u) const {
    m = (b1 * m) + (c1 * g);
    u = max(b2 * u, abs(g) + ei);
    p = p - (a * m) / (u + eo);
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
