// RMSprop (Tieleman and Hinton 2012), centered (Graves 2013) or not, with momentum or without.
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// Keras adds epsilon under the root, PyTorch outside; and with momentum Keras scales the update by
// the learning rate before it enters the momentum, PyTorch after.
template <class C, bool with_momentum>
struct RmspropCoefficients {
  struct Hyperparameters {
    double rho, momentum, epsilon, form;
    static constexpr auto names = FUSEDSTEP_TARGET::names("rho", "momentum", "epsilon", "form");
  };

  C rho, s, ei, eo, k, mu, c;

  FUSEDSTEP_HOST_DEVICE RmspropCoefficients(const Hyperparameters& h, double lr, std::uint64_t) {
    const bool torch = h.form == form_torch;
    rho = C(h.rho);
    s = C(1 - h.rho);
    ei = C(torch ? 0 : h.epsilon);
    eo = C(torch ? h.epsilon : 0);
    k = C(torch && with_momentum ? 1 : lr);
    mu = C(h.momentum);
    c = C(torch ? lr : 1);
  }

  // The update from the gradient and the variance d.
  FUSEDSTEP_HOST_DEVICE C update(C g, C d) const { return (k * g) / (sqrt(d + ei) + eo); }

  // The gradients' variance. It is never negative in exact arithmetic; rounded it is, and its root
  // would be NaN, after some hundred nearly equal gradients.
  FUSEDSTEP_HOST_DEVICE C centered_variance(C g, C v, C& q) const {
    q = (rho * q) + (s * g);
    return max(v - q * q, C(0));
  }
};

template <class C>
struct Rmsprop : RmspropCoefficients<C, false> {
  static constexpr auto name = "rmsprop";
  static constexpr auto slots = names("velocity");
  using RmspropCoefficients<C, false>::RmspropCoefficients;

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& v) const {
    v = (this->rho * v) + (this->s * (g * g));
    p = p - this->update(g, v);
  }
};

template <class C>
struct RmspropCentered : RmspropCoefficients<C, false> {
  static constexpr auto name = "rmsprop_centered";
  static constexpr auto slots = names("velocity", "average_gradient");
  using RmspropCoefficients<C, false>::RmspropCoefficients;

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& v, C& q) const {
    v = (this->rho * v) + (this->s * (g * g));
    p = p - this->update(g, this->centered_variance(g, v, q));
  }
};

template <class C>
struct RmspropMomentum : RmspropCoefficients<C, true> {
  static constexpr auto name = "rmsprop_momentum";
  static constexpr auto slots = names("velocity", "momentum");
  using RmspropCoefficients<C, true>::RmspropCoefficients;

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& v, C& m) const {
    v = (this->rho * v) + (this->s * (g * g));
    m = (this->mu * m) + this->update(g, v);
    p = p - this->c * m;
  }
};

template <class C>
struct RmspropCenteredMomentum : RmspropCoefficients<C, true> {
  static constexpr auto name = "rmsprop_centered_momentum";
  static constexpr auto slots = names("velocity", "average_gradient", "momentum");
  using RmspropCoefficients<C, true>::RmspropCoefficients;

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& v, C& q, C& m) const {
    v = (this->rho * v) + (this->s * (g * g));
    m = (this->mu * m) + this->update(g, this->centered_variance(g, v, q));
    p = p - this->c * m;
  }
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
