"""thinc's optimizer, and fusedstep.thinc. They clear the gradients, which come back between the steps."""

from collections.abc import Callable
from itertools import repeat
from time import perf_counter

import numpy as np

from bench.contestants.contestant import Contestant, Given, Timed, import_peer, scaling


def make(given: Given, library: str = "thinc.api") -> Contestant:
    """Step over the arrays, one after the other."""
    given.refuse(optimizers=("adam", "sgd"), steps=("plain",), dtypes=("float32",))
    thinc, h = import_peer(library), given.definition.arguments
    plain = {"L2": 0.0, "grad_clip": 0.0, "use_averages": False}
    if given.workload.optimizer == "adam":
        opt = thinc.Adam(given.learning_rate, beta1=h["beta_1"], beta2=h["beta_2"], eps=h["epsilon"], **plain)
    else:
        opt = thinc.SGD(given.learning_rate, **plain)
    arrays = zip(given.variables, given.gradients, strict=True)
    calls = [((number, "W"), p, g.copy()) for number, (p, g) in enumerate(arrays)]

    def bring_back() -> None:
        for (_, _, g), given_g in zip(calls, given.gradients, strict=True):
            np.copyto(g, given_g)

    def update() -> None:
        for call in calls:
            opt(*call)

    def step() -> None:
        bring_back()
        update()

    def clock(whole_step: Callable[[], object], steps: int, before: Callable[[], object]) -> Timed:
        before()
        seconds = 0.0
        for _ in repeat(None, steps):
            bring_back()
            begin = perf_counter()
            update()
            seconds += perf_counter() - begin
        return Timed(seconds / steps)

    form = {"epsilon_hat": True} if given.workload.optimizer == "adam" else {}
    return Contestant(step, lambda: given.variables, scaling(given.gradients), form, clock)


def make_ours(given: Given) -> Contestant:
    """fusedstep.thinc."""
    return make(given, "fusedstep.thinc")
