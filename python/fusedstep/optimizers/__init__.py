"""The optimizers, and ``get`` to make one from a name."""

from collections.abc import Mapping
from typing import Any

from fusedstep.optimizers.adadelta import Adadelta
from fusedstep.optimizers.adagrad import Adagrad
from fusedstep.optimizers.adam import Adam, AdamW
from fusedstep.optimizers.adamax import Adamax
from fusedstep.optimizers.ftrl import Ftrl
from fusedstep.optimizers.lion import Lion
from fusedstep.optimizers.nadam import Nadam
from fusedstep.optimizers.optimizer import Optimizer
from fusedstep.optimizers.rmsprop import RMSprop
from fusedstep.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lion",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "get",
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
    Ftrl,
    Lion,
)


def get(identifier: "str | Mapping[str, Any] | Optimizer") -> Optimizer:
    """Return an optimizer for a name, a configuration or an instance.

    Args:
        identifier: a class's name in any case, for one with its defaults; a dict with ``class_name`` and
            ``config``; or an optimizer, which is returned as it is.

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
    if isinstance(identifier, Mapping):
        if "class_name" not in identifier:
            raise ValueError(f"get: a configuration needs a 'class_name', got the keys {sorted(identifier)}")
        name, config = identifier["class_name"], identifier.get("config") or {}
    elif isinstance(identifier, str):
        name, config = identifier, {}
    else:
        raise TypeError(
            "get: identifier must be a name, a configuration or an optimizer,"
            f" got {identifier!r} of type {type(identifier).__name__}"
        )
    for optimizer in ALL:
        if optimizer.__name__.lower() == str(name).lower():
            return optimizer.from_config(config)
    raise ValueError(f"get: no optimizer is named '{name}'; there are {', '.join(o.__name__ for o in ALL)}")
