// FTRL-Proximal (McMahan et al. 2013), with Google's L2 shrinkage or without.
#pragma once

#include "rules/rule.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// The accumulator is taken to the power -learning_rate_power: by the square root, or by a pow, which differs
// between libraries in its last bit. A rule with pow does not give the same bits everywhere.
template <class C, bool with_pow>
struct FtrlCoefficients {
  static constexpr bool calls_pow = with_pow, divides_by_learning_rate = true;
  static constexpr auto slots = names("accumulator", "linear");
  struct Hyperparameters {
    double learning_rate_power, l1, l2, l2_shrinkage, beta;
    static constexpr auto names =
        FUSEDSTEP_TARGET::names("learning_rate_power", "l1_regularization_strength", "l2_regularization_strength",
                                "l2_shrinkage_regularization_strength", "beta");
  };

  double exponent;
  C i, j, k, l1;

  FUSEDSTEP_HOST_DEVICE FtrlCoefficients(const Hyperparameters& h, double lr, std::uint64_t) {
    exponent = -h.learning_rate_power;
    i = C(1 / lr);
    j = C(2 * (h.l2 + h.beta / (2 * lr)));
    k = C(2 * h.l2_shrinkage);
    l1 = C(h.l1);
  }

  FUSEDSTEP_HOST_DEVICE C root(C n) const {
    if constexpr (with_pow) {
      return C(__builtin_pow(n, exponent));
    } else {
      return sqrt(n);
    }
  }

  // A step along h: the gradient, or what shrinkage makes of it.
  FUSEDSTEP_HOST_DEVICE void step(C& p, C g, C h, C& n, C& z) const {
    const C next = n + g * g;
    const C root_of_next = root(next);
    z = z + (h - (((root_of_next - root(n)) * i) * p));
    const C above = clip(z, -l1, l1) - z;
    p = above == C(0) ? above : above / ((root_of_next * i) + j);  // no 0/0 before the first gradient
    n = next;
  }
};

template <class C, bool with_pow>
struct FtrlPlain : FtrlCoefficients<C, with_pow> {
  using FtrlCoefficients<C, with_pow>::FtrlCoefficients;

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& n, C& z) const { this->step(p, g, g, n, z); }
};

template <class C, bool with_pow>
struct FtrlShrunk : FtrlCoefficients<C, with_pow> {
  using FtrlCoefficients<C, with_pow>::FtrlCoefficients;

  FUSEDSTEP_HOST_DEVICE void operator()(C& p, C g, C& n, C& z) const { this->step(p, g, g + this->k * p, n, z); }
};

template <class C>
struct Ftrl : FtrlPlain<C, false> {
  static constexpr auto name = "ftrl";
  using FtrlPlain<C, false>::FtrlPlain;
};

template <class C>
struct FtrlShrinkage : FtrlShrunk<C, false> {
  static constexpr auto name = "ftrl_shrinkage";
  using FtrlShrunk<C, false>::FtrlShrunk;
};

template <class C>
struct FtrlPower : FtrlPlain<C, true> {
  static constexpr auto name = "ftrl_power";
  using FtrlPlain<C, true>::FtrlPlain;
};

template <class C>
struct FtrlPowerShrinkage : FtrlShrunk<C, true> {
  static constexpr auto name = "ftrl_power_shrinkage";
  using FtrlShrunk<C, true>::FtrlShrunk;
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
