"""A build's variables: their order, their memory, and the slots that are shown over it."""

from typing import Any, NamedTuple

import numpy as np
import torch

from fusedstep.torch.layouts import odd_layout, place_of, refuse_shape
from fusedstep.torch.part import MovedError


def different(variables: list[Any], who: str) -> set[int]:
    """Return the variables' ids, or raise where one comes twice: a step takes one gradient of each."""
    ids = set(map(id, variables))
    if len(ids) < len(variables):
        twice = next(v for i, v in enumerate(variables) if any(v is other for other in variables[:i]))
        raise ValueError(
            f"{who}: the variable '{twice.path}' comes twice; pass it once, with the sum of its gradients"
        )
    return ids


def put_over(variable: Any, tensor: torch.Tensor) -> None:
    """Have one of Keras' variables be a tensor, whatever that has of dtype and device."""
    variable._value = torch.nn.Parameter(tensor, requires_grad=False)
    variable._dtype = str(tensor.dtype).removeprefix("torch.")


class Seat(NamedTuple):
    """One of Keras' variables over a slot: the number of that slot's variable, and what it was put over."""

    variable: Any
    number: int
    name: str
    tensor: Any
    address: int

    def is_taken(self) -> bool:
        """Whether it still has them, where share_memory() and assignments to .data take others."""
        return self.variable._value is self.tensor and self.tensor.data_ptr() == self.address


class Layout:
    """The variables of a build, which keep their order, and where their memory is."""

    def __init__(self, variables: list[Any], who: str) -> None:
        self.variables = variables
        self.index = {id(variable): i for i, variable in enumerate(variables)}
        self.ids = list(self.index)
        self.seats: list[Seat] = []
        self.watched: list[Seat] = []  # what every step looks at: those of the first variable
        self.tensors = [variable.value for variable in variables]
        self.places = list(map(place_of, self.tensors))
        paths = [variable.path for variable in variables]
        titles = [f"{who}: the variable '{path}'" for path in paths]
        odd = {i: odd_layout(tensor, titles[i]) for i, tensor in enumerate(self.tensors)}
        self.odd = {i: one for i, one in odd.items() if one is not None}
        devices = {tensor.device for tensor in self.tensors}
        # The GPU that has all of them: a step reads a learning rate there, which nobody waits for.
        self.gpu = devices.pop() if len(devices) == 1 and self.tensors[0].is_cuda else None
        unique = len(set(paths)) == len(paths)
        names = paths if unique else [f"{path}:{i}" for i, path in enumerate(paths)]
        updated = [self.odd[i].variable if i in self.odd else t for i, t in enumerate(self.tensors)]
        self.named = dict(zip(names, updated, strict=True))

    def in_order(self, gradients: Any, variables: Any) -> Any:
        """Return the gradients in the order of the build, None for a variable that has none."""
        ids = list(map(id, variables))
        if ids == self.ids:
            return gradients
        gradient_of = dict(zip(ids, gradients, strict=True))
        return list(map(gradient_of.get, self.ids))

    @torch.no_grad()
    def read_odd(self, gradients: list[Any], values: list[Any], who: str) -> tuple[list[Any], list[Any]]:
        """Return gradients and variables with those that are not contiguous as the plan takes them."""
        gradients, values = list(gradients), list(values)
        for i, odd in self.odd.items():
            if values[i] is not odd.p or place_of(odd.p) != self.places[i]:
                raise MovedError
            odd.read()
            values[i] = odd.variable
            given = gradients[i]
            if isinstance(given, np.ndarray):
                given = torch.from_numpy(given)
            if isinstance(given, torch.Tensor):  # what is none, the plan refuses
                if given.shape != odd.p.shape:
                    refuse_shape(given, odd.p, f"{who}: grads['{self.variables[i].path}']", "variable")
                gradients[i] = odd.gradient(given)
        return gradients, values

    @torch.no_grad()
    def write_odd(self) -> None:
        """Put what the step made of copies into the variables."""
        for odd in self.odd.values():
            odd.write()

    def refuse_sparse(self, gradients: Any, who: str) -> None:
        """Raise where a gradient is sparse."""
        for variable, gradient in zip(self.variables, gradients, strict=False):
            layout = getattr(gradient, "layout", torch.strided)
            if layout != torch.strided:
                raise TypeError(
                    f"{who}: the gradient of '{variable.path}' has the layout {layout}, but must be dense;"
                    " pass gradient.to_dense()"
                ) from None

    def has_moved(self) -> bool:
        """Whether a variable has another tensor or other memory than when this was made."""
        now = [variable.value for variable in self.variables]
        return list(map(id, now)) != list(map(id, self.tensors)) or list(map(place_of, now)) != self.places
