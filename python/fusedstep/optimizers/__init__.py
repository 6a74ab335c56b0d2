"""The optimizers, and ``get`` to make one from a name."""

from collections.abc import Mapping
from typing import Any

from fusedstep.optimizers.adadelta import Adadelta
from fusedstep.optimizers.adagrad import Adagrad
from fusedstep.optimizers.adam import Adam, AdamW
from fusedstep.optimizers.adamax import Adamax
from fusedstep.optimizers.custom import CustomOptimizer
from fusedstep.optimizers.ftrl import Ftrl
from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.lamb import Lamb
from fusedstep.optimizers.lion import Lion
from fusedstep.optimizers.loss_scale import LossScaleOptimizer
from fusedstep.optimizers.nadam import Nadam
from fusedstep.optimizers.optimizer import Optimizer
from fusedstep.optimizers.radam import RAdam
from fusedstep.optimizers.rmsprop import RMSprop
from fusedstep.optimizers.sgd import SGD
from fusedstep.serialization import class_and_arguments, register

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CustomOptimizer",
    "Ftrl",
    "Lamb",
    "Lion",
    "LossScaleOptimizer",
    "Nadam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "get",
    "hyperparameter",
]

ALL: tuple[type[Optimizer], ...] = (
    SGD,
    Adam,
    AdamW,
    RMSprop,
    Adagrad,
    Adadelta,
    Adamax,
    Nadam,
    RAdam,
    Ftrl,
    Lion,
    Lamb,
)

for _cls in (*ALL, LossScaleOptimizer):
    register(_cls)


def get(identifier: "str | Mapping[str, Any] | Optimizer") -> Optimizer:
    """Return an optimizer for a name, a configuration or an instance.

    Args:
        identifier: a class's name in any case, for one with its defaults; a dict with ``class_name`` and
            ``config``, as :func:`serialize` returns; or an optimizer, which is returned as it is.

    Raises:
        TypeError: it is neither.
        ValueError: no class has this name.

    >>> get("adam").learning_rate
    0.001
    >>> get({"class_name": "SGD", "config": {"learning_rate": 0.1}})
    SGD(learning_rate=0.1)
    """
    if isinstance(identifier, Optimizer):
        return identifier
    if isinstance(identifier, str):
        identifier = {"class_name": identifier}
    elif not isinstance(identifier, Mapping):
        raise TypeError(
            "get: identifier must be a name, a configuration or an optimizer,"
            f" got {identifier!r} of type {type(identifier).__name__}"
        )
    cls, arguments = class_and_arguments(identifier, "get", base=Optimizer)
    optimizer: Optimizer = cls.from_config(arguments)
    return optimizer
