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
    gradients = [gradient.copy() for gradient in given.gradients]

    def step() -> None:
        for number, (p, g, given_g) in enumerate(
            zip(given.variables, gradients, given.gradients, strict=True)
        ):
            np.copyto(g, given_g)
            opt((number, "W"), p, g)

    form = {"epsilon_hat": True} if given.workload.optimizer == "adam" else {}
    return Contestant(step, lambda: given.variables, scaling(given.gradients), form)


def make_ours(given: Given) -> Contestant:
    """fusedstep.thinc."""
    return make(given, "fusedstep.thinc")
