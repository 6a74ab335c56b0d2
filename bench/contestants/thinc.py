"""thinc's optimizer, and fusedstep.thinc. They clear the gradients: each step begins with a copy of them."""

import numpy as np

from bench.contestants.contestant import Contestant, Given, import_peer, scaling


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
    calls = [((number, "W"), p, g.copy(), g) for number, (p, g) in enumerate(arrays)]

    def step() -> None:
        for key, p, g, given_g in calls:
            np.copyto(g, given_g)
            opt(key, p, g)

    form = {"epsilon_hat": True} if given.workload.optimizer == "adam" else {}
    return Contestant(step, lambda: given.variables, scaling(given.gradients), form)


def make_ours(given: Given) -> Contestant:
    """fusedstep.thinc."""
    return make(given, "fusedstep.thinc")
