"""fusedstep."""

from functools import partial
from typing import Any

import fusedstep
from bench.contestants.contestant import Contestant, Given
from bench.optimizers import CLIP_NORM, EMA

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"global_clipnorm": CLIP_NORM},
    "clip-ema": {"global_clipnorm": CLIP_NORM, "use_ema": True, "ema_momentum": EMA},
    "sparse": {"lazy": True},
}


def build(given: Given) -> fusedstep.Optimizer:
    """Make the optimizer of a workload."""
    return given.definition.build(given.learning_rate, **OPTIONS[given.workload.step])


def make(given: Given) -> Contestant:
    """Step with lists: one call for all arrays."""
    return Contestant(partial(build(given).apply, given.gradients, given.variables), lambda: given.variables)


def make_of_pairs(given: Given) -> Contestant:
    """Step with pairs, as Keras' users write it."""
    opt = build(given)
    pairs = given.gradients, given.variables
    return Contestant(lambda: opt.apply_gradients(zip(*pairs, strict=True)), lambda: given.variables)
