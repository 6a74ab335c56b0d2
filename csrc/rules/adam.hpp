// Adam (Kingma and Ba 2015) and AMSGrad (Reddi et al. 2018).
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Adam {
  static constexpr auto name = "adam";
  static constexpr auto slots = names("momentum", "velocity");
  struct Hyperparameters {
    double beta_1, beta_2, epsilon, epsilon_hat;
    static constexpr auto names = FUSEDSTEP_TARGET::names("beta_1", "beta_2", "epsilon", "epsilon_hat");
  };

  C b1, c1, b2, c2, a, r, e;

  FUSEDSTEP_HOST_DEVICE Adam(const Hyperparameters& h, double lr, std::uint64_t t) {
    const double correction_1 = 1 - power(h.beta_1, t);
    const double correction_2 = sqrt(1 - power(h.beta_2, t));
    const bool epsilon_hat = h.epsilon_hat != 0;  // section 2 of the paper, else its Algorithm 1
    b1 = C(h.beta_1);
    c1 = C(1 - h.beta_1);
    b2 = C(h.beta_2);
    c2 = C(1 - h.beta_2);
    a = C(epsilon_hat ? lr * correction_2 / correction_1 : lr / correction_1);
    r = C(epsilon_hat ? 1 : 1 / correction_2);
    e = C(h.epsilon);
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& m, C& v) const {
    m = (b1 * m) + (c1 * g);
    v = (b2 * v) + (c2 * (g * g));
    p = p - (a * m) / ((sqrt(v) * r) + e);
  }
};

template <class C>
struct AdamAmsgrad : Adam<C> {
  static constexpr auto name = "adam_amsgrad";
  static constexpr auto slots = names("momentum", "velocity", "velocity_hat");
  using Adam<C>::Adam;

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& m, C& v, C& x) const {
    m = (this->b1 * m) + (this->c1 * g);
    v = (this->b2 * v) + (this->c2 * (g * g));
    x = max(x, v);
    p = p - (this->a * m) / ((sqrt(x) * this->r) + this->e);
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
