// Stochastic gradient descent, with momentum (Polyak 1964) and Nesterov's (Sutskever et al. 2013).
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
struct Sgd {
  static constexpr auto name = "sgd";
  static constexpr auto slots = names();
  struct Hyperparameters {
    static constexpr auto names = FUSEDSTEP_TARGET::names();
  };

  C lr;

  FUSEDSTEP_HOST_DEVICE Sgd(const Hyperparameters&, double learning_rate, std::uint64_t) : lr(C(learning_rate)) {}

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g) const { p = p - lr * g; }
};

// Keras keeps the learning rate in the momentum, PyTorch outside of it.
template <class C>
struct SgdMomentum {
  static constexpr auto name = "sgd_momentum";
  static constexpr auto slots = names("momentum");
  struct Hyperparameters {
    double momentum, dampening, form;
    static constexpr auto names = FUSEDSTEP_TARGET::names("momentum", "dampening", "form");
  };

  C a, b, c;

  FUSEDSTEP_HOST_DEVICE SgdMomentum(const Hyperparameters& h, double lr, std::uint64_t t) {
    const bool torch = h.form == form_torch;
    a = C(h.momentum);
    b = C(torch ? (t == 1 ? 1 : 1 - h.dampening) : -lr);
    c = C(torch ? -lr : 1);
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& m) const {
    m = (a * m) + (b * g);
    p = p + c * m;
  }
};

template <class C>
struct SgdNesterov {
  static constexpr auto name = "sgd_nesterov";
  static constexpr auto slots = names("momentum");
  using Hyperparameters = typename SgdMomentum<C>::Hyperparameters;

  C a, b, c, d;

  FUSEDSTEP_HOST_DEVICE SgdNesterov(const Hyperparameters& h, double lr, std::uint64_t t) {
    const SgdMomentum<C> plain(h, lr, t);
    a = plain.a;
    b = plain.b;
    c = C(h.form == form_torch ? -lr * h.momentum : h.momentum);
    d = C(-lr);
  }

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& m) const {
    m = (a * m) + (b * g);
    p = p + ((c * m) + (d * g));
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
