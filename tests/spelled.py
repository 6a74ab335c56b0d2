"""What tests of rules in Python share: built-in optimizers, spelled out, and gradients of all kinds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from conftest import DTYPES, Array, random_array
from fusedstep import CustomOptimizer, Optimizer
from reference import REFERENCES, slot_names


def spelled_out(builtin: Optimizer) -> CustomOptimizer:
    """A custom optimizer with the definition of a built-in one."""
    config = builtin.get_config()
    names = [n for n in slot_names(builtin) if n not in ("average", "gradient_accumulator")]
    initial = builtin._initial()
    rule = REFERENCES[type(builtin)]

    class Spelled(CustomOptimizer):
        @property
        def slot_names(self) -> dict[str, float]:
            return {name: initial.get(name, 0.0) for name in names}

        def update(
            self, variable: Array, gradient: Array, slots: dict[str, Array], learning_rate: float, t: int
        ) -> None:
            with np.errstate(all="ignore"):
                variable[...] = rule(variable, gradient, slots, config, learning_rate, t)

    shared = Optimizer._hyperparameters.keys() & config.keys()
    return Spelled(**{name: config[name] for name in shared})


def some_gradients(rng: np.random.Generator, shapes: Sequence[Any], step: int) -> list[Any]:
    """Gradients of all dtypes, some of them None and some sparse."""
    grads: list[Any] = []
    for number, shape in enumerate(shapes):
        dtype = DTYPES[(number + number // 3 * step) % 4]
        grads.append(random_array(rng, shape, dtype))
        if (number + step) % 5 == 1:
            grads[-1] = None
        elif (number + step) % 5 == 2 and shape != ():
            count = step * 2 if shape[0] else 0
            values = random_array(rng, (count, *shape[1:]), dtype)
            grads[-1] = (rng.integers(0, max(shape[0], 1), count), values)
    return grads
