"""Which optimizers are measured: a class of fusedstep and its arguments, which every peer gets, too.

Lamb is not among them: it passes twice over its arrays, and the same-bytes loop once.
"""

from dataclasses import dataclass
from typing import Any

import fusedstep

LEARNING_RATE = 1e-6  # moves little in many thousand steps
CLIP_NORM, EMA = 1.0, 0.99  # the gradients' norm is far above


@dataclass(frozen=True)
class Definition:
    """What a step computes, and how many slots it keeps for a variable."""

    cls: type[fusedstep.Optimizer]
    slots: int
    arguments: dict[str, Any]

    def build(self, learning_rate: float, **more: Any) -> fusedstep.Optimizer:
        """Make the optimizer, with further options."""
        return self.cls(learning_rate, **{**self.arguments, **more})


_ADAM = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}

OPTIMIZERS = {
    "adam": Definition(fusedstep.Adam, 2, _ADAM),
    "adamw": Definition(fusedstep.AdamW, 2, _ADAM | {"weight_decay": 0.01}),
    "sgd": Definition(fusedstep.SGD, 0, {}),
    "momentum": Definition(fusedstep.SGD, 1, {"momentum": 0.9, "form": "torch"}),
    "rmsprop": Definition(fusedstep.RMSprop, 1, {"rho": 0.9, "epsilon": 1e-7}),
    "adagrad": Definition(fusedstep.Adagrad, 1, {"initial_accumulator_value": 0.1, "epsilon": 1e-7}),
    "adadelta": Definition(fusedstep.Adadelta, 2, {}),
    "adamax": Definition(fusedstep.Adamax, 2, {}),
    "nadam": Definition(fusedstep.Nadam, 2, {}),
    "radam": Definition(fusedstep.RAdam, 2, {}),
    "lion": Definition(fusedstep.Lion, 1, {"beta_1": 0.9, "beta_2": 0.99}),
    "ftrl": Definition(fusedstep.Ftrl, 2, {}),
}
