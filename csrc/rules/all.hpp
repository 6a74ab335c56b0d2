// The list of all rules. A rule that stands here is compiled for every target and tested on each.
#pragma once

#include "rules/adadelta.hpp"
#include "rules/adagrad.hpp"
#include "rules/adam.hpp"
#include "rules/adamax.hpp"
#include "rules/ftrl.hpp"
#include "rules/lamb.hpp"
#include "rules/lion.hpp"
#include "rules/nadam.hpp"
#include "rules/radam.hpp"
#include "rules/rmsprop.hpp"
#include "rules/sgd.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <template <class> class... Rule>
struct List {};

using AllRules = List<Sgd, SgdMomentum, SgdNesterov, Adam, AdamAmsgrad, Rmsprop, RmspropCentered, RmspropMomentum,
                      RmspropCenteredMomentum, Adagrad, Adadelta, Adamax, Nadam, Radam, Ftrl, FtrlShrinkage, FtrlPower,
                      FtrlPowerShrinkage, Lion, Lamb>;

}  // namespace fusedstep::FUSEDSTEP_TARGET
