"""fusedstep."""

from collections.abc import Callable
from functools import partial
from typing import Any

import fusedstep
from bench.contestants.contestant import Contestant, Given, renewing, scaling
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
    step = partial(build(given).apply, given.gradients, given.variables)
    return contestant(given, step)


def contestant(given: Given, step: Callable[[], object]) -> Contestant:
    """Say where a step's arrays are."""
    gradients = given.gradients
    return Contestant(step, lambda: given.variables, scaling(gradients), renew=renewing(gradients))


def make_of_pairs(given: Given) -> Contestant:
    """Step with pairs, as Keras' users write it."""
    opt = build(given)
    pairs = given.gradients, given.variables
    step = lambda: opt.apply_gradients(zip(*pairs, strict=True))  # noqa: E731
    return contestant(given, step)
