"""The value of a loss and its gradients: its own, or those that autograd finds."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusedstep import _native
from fusedstep.optimizers.learning_rate import takes_an_argument


def value_and_gradients(
    loss: Callable[..., Any], variables: Callable[[], Any], built: Callable[[], Any], who: str
) -> tuple[Any, Any, Any]:
    """Return the loss, its gradients and the variables; a loss without arguments comes before these.

    A loss that takes the variables gets those that were built where none are given.
    """
    if not callable(loss):
        raise TypeError(f"{who}: loss must be callable, got {loss!r} of type {type(loss).__name__}")
    if takes_an_argument(loss):
        given = variables()
        if given is None:
            given = built()
        if not isinstance(given, Mapping):
            given = _native.items_of(given, f"{who}: var_list")
        return *_by_autograd(loss, given, who), given
    returned = loss()
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise TypeError(
            f"{who}: loss() returned {returned!r}, but must return (value, gradients): NumPy's arrays do not"
            " record what is computed of them; or let loss take the variables as arguments, for autograd"
        )
    value, gradients = returned
    return value, gradients, variables()


def _by_autograd(loss: Callable[..., Any], variables: Any, who: str) -> tuple[Any, Any]:
    try:
        autograd = importlib.import_module("autograd")
    except ImportError:
        raise RuntimeError(
            f"{who}: the package autograd must be there for a loss that takes the variables, but it cannot be"
            " imported; pip install autograd, or let loss() return (value, gradients)"
        ) from None
    if isinstance(variables, Mapping):
        value, gradients = autograd.value_and_grad(loss)(_widened(variables))
        return value, gradients
    value, gradients = autograd.value_and_grad(loss, tuple(range(len(variables))))(
        *[_widened(variable) for variable in variables]
    )
    return value, list(gradients)


def _widened(variables: Any) -> Any:
    """The variables, with those of 16 bits in float32, so that the gradients are."""
    if isinstance(variables, Mapping):
        return {name: _widened(child) for name, child in variables.items()}
    if isinstance(variables, (list, tuple)):
        return [_widened(child) for child in variables]
    is_small = isinstance(variables, np.ndarray) and variables.dtype.itemsize == 2
    return variables.astype(np.float32) if is_small else variables
