// Nadam (Dozat 2016): Adam with Nesterov's momentum, which grows from step to step.
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Nadam {
  static constexpr auto name = "nadam";
  static constexpr auto slots = names("momentum", "velocity");
  struct Hyperparameters {
    double beta_1, beta_2, epsilon, decay;  // decay: 0.96^momentum_decay, taken in Python
    static constexpr auto names = FUSEDSTEP_TARGET::names("beta_1", "beta_2", "epsilon", "momentum_decay");
  };

  C b1, c1, b2, c2, a, b, r, e;

  // The momentum of update t.
  FUSEDSTEP_HOST_DEVICE static double mu(const Hyperparameters& h, std::uint64_t t) {
    return h.beta_1 * (1 - 0.5 * power(h.decay, t));
  }

  // Carried is the product of all momenta so far.
  FUSEDSTEP_HOST_DEVICE static double carry(const Hyperparameters& h, std::uint64_t t, double product) {
    return product * mu(h, t);
  }

  FUSEDSTEP_HOST_DEVICE Nadam(const Hyperparameters& h, double lr, std::uint64_t t, double product_before) {
    const double product = carry(h, t, product_before);
    b1 = C(h.beta_1);
    c1 = C(1 - h.beta_1);
    b2 = C(h.beta_2);
    c2 = C(1 - h.beta_2);
    a = C(lr * mu(h, t + 1) / (1 - carry(h, t + 1, product)));
    b = C(lr * (1 - mu(h, t)) / (1 - product));
    r = C(1 / sqrt(1 - power(h.beta_2, t)));
    e = C(h.epsilon);
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& m, C& v) const {
    m = (b1 * m) + (c1 * g);
    v = (b2 * v) + (c2 * (g * g));
    p = p - ((a * m) + (b * g)) / ((sqrt(v) * r) + e);
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
