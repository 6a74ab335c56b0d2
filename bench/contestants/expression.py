"""Optimizers as array expressions, as people write them, for NumPy and for CuPy."""

from collections.abc import Callable
from typing import Any

from bench.contestants.contestant import Contestant, Given, renewing, scaling
from bench.optimizers import CLIP_NORM, EMA

Array = Any  # of NumPy or CuPy
Update = Callable[[Array, Array, list[Array], float, int], None]


def updates(xp: Any, given: Given) -> dict[str, Update]:
    """The update of one array by each optimizer: variable, gradient, slots, learning rate, number t."""
    h = given.definition.arguments

    def adam(p: Array, g: Array, s: list[Array], lr: float, t: int) -> None:
        m, v = s
        m[...] = h["beta_1"] * m + (1 - h["beta_1"]) * g
        v[...] = h["beta_2"] * v + (1 - h["beta_2"]) * g * g
        a, r = lr / (1 - h["beta_1"] ** t), (1 - h["beta_2"] ** t) ** -0.5
        p -= (a * m / (xp.sqrt(v) * r + h["epsilon"])).astype(p.dtype, copy=False)

    def adamw(p: Array, g: Array, s: list[Array], lr: float, t: int) -> None:
        p -= lr * h["weight_decay"] * p
        adam(p, g, s, lr, t)

    def sgd(p: Array, g: Array, s: list[Array], lr: float, t: int) -> None:
        p -= lr * g

    def momentum(p: Array, g: Array, s: list[Array], lr: float, t: int) -> None:
        s[0][...] = h["momentum"] * s[0] + g
        p -= lr * s[0]

    def rmsprop(p: Array, g: Array, s: list[Array], lr: float, t: int) -> None:
        s[0][...] = h["rho"] * s[0] + (1 - h["rho"]) * g * g
        p -= lr * g / xp.sqrt(s[0] + h["epsilon"])

    def adagrad(p: Array, g: Array, s: list[Array], lr: float, t: int) -> None:
        s[0][...] += g * g
        p -= lr * g / xp.sqrt(s[0] + h["epsilon"])

    def lion(p: Array, g: Array, s: list[Array], lr: float, t: int) -> None:
        p -= lr * xp.sign(h["beta_1"] * s[0] + (1 - h["beta_1"]) * g)
        s[0][...] = h["beta_2"] * s[0] + (1 - h["beta_2"]) * g

    return {
        "adam": adam,
        "adamw": adamw,
        "sgd": sgd,
        "momentum": momentum,
        "rmsprop": rmsprop,
        "adagrad": adagrad,
        "lion": lion,
    }


def make(xp: Any, given: Given, variables: list[Array], gradients: list[Any]) -> Contestant:
    """Step over the arrays, one after the other.

    Args:
        xp: the module: numpy or cupy.
        given: the workload.
        variables: arrays of that module.
        gradients: arrays of that module, or tuples of indices and rows.
    """
    found = updates(xp, given)
    workload = given.workload
    given.refuse(optimizers=found, dtypes=("float32", "float64"))
    update = found[workload.optimizer]
    initial = given.definition.arguments.get("initial_accumulator_value", 0)
    slots = [[xp.full(p.shape, initial, p.dtype) for _ in range(given.definition.slots)] for p in variables]
    averages = [p.copy() for p in variables] if workload.step == "clip-ema" else []
    t = 0

    def clipped() -> list[Array]:
        norm = xp.sqrt(sum((g * g).sum() for g in gradients))
        factor = xp.minimum(CLIP_NORM / norm, 1)
        return [g * factor for g in gradients]

    def step() -> None:
        nonlocal t
        t += 1
        for p, g, s in zip(variables, clipped() if workload.reads_twice else gradients, slots, strict=True):
            update(p, g, s, given.learning_rate, t)
        for p, average in zip(variables, averages, strict=False):
            average[...] = EMA * average + (1 - EMA) * p

    def sparse_step() -> None:
        nonlocal t
        t += 1
        for p, (indices, g), s in zip(variables, gradients, slots, strict=True):
            rows, slot_rows = p[indices], [slot[indices] for slot in s]
            update(rows, g, slot_rows, given.learning_rate, t)
            p[indices] = rows
            for slot, slot_row in zip(s, slot_rows, strict=True):
                slot[indices] = slot_row

    taken = sparse_step if workload.step == "sparse" else step
    return Contestant(taken, lambda: variables, scaling(gradients), renew=renewing(gradients))
