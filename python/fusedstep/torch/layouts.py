"""How parameters lie in memory, and how those are updated that do not lie as they are read."""

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
    raise RuntimeError(
        f"fusedstep.torch: PyTorch is {torch.__version__}, but must be 2.10 or newer, whose tensors show"
        " their memory through DLPack's exchange API; update it, or use torch.optim"
    )


class Permuted:
    """A parameter without gaps whose axes lie in another order, as in channels_last: updated as it lies."""

    def __init__(self, p: Tensor) -> None:
        self.p = p
        self.variable = in_memory_order(p.detach())

    def read(self) -> None:
        """Do nothing: the step reads the parameter."""

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient in the order of the parameter's memory."""
        if grad.layout != torch.strided:
            return grad
        if grad.stride() != self.p.stride():
            grad = torch.empty_like(self.p, dtype=grad.dtype, device=grad.device).copy_(grad)
        return in_memory_order(grad)

    def write(self) -> None:
        """Do nothing: the step wrote the parameter."""

    def as_parameter(self, slot: Tensor) -> Tensor:
        """Return the slot with the parameter's shape and strides."""
        return slot.as_strided(self.p.shape, self.p.stride())


class Gapped:
    """A parameter with gaps, as a slice of another tensor is, or the negative bit: updated through a copy."""

    def __init__(self, p: Tensor) -> None:
        self.p = p
        self.variable = p.detach().clone(memory_format=torch.contiguous_format)

    def read(self) -> None:
        """Copy the parameter."""
        self.variable.copy_(self.p)

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient."""
        return grad

    def write(self) -> None:
        """Copy the result back."""
        self.p.copy_(self.variable)

    def as_parameter(self, slot: Tensor) -> Tensor:
        """Return the slot."""
        return slot


def odd_layout(p: Tensor, what: str) -> Permuted | Gapped | None:
    """Return how a parameter is updated that does not lie as it is read, None for one that does."""
    if p.is_complex():
        raise TypeError(
            f"{what} has dtype {p.dtype}, but must be real; make it of torch.view_as_real, or use torch.optim"
        )
    if not has_memory(p):
        raise TypeError(
            f"{what} has no memory of its own ({type(p).__name__} on {p.device}), but must have; pass the"
            f" tensor that has its elements, of a DTensor p.to_local(), or use torch.optim"
        )
    repeats = any(size > 1 and stride == 0 for size, stride in zip(p.shape, p.stride(), strict=True))
    if repeats and p.numel() > 0:  # the strides of an empty one of NumPy's are all 0
        raise ValueError(
            f"{what} has elements that share memory (strides {p.stride()}), but each must have its own; make"
            " it of x.clone()"
        )
    if p.is_neg():  # its memory has what is to be negated
        return Gapped(p)
    if p.is_contiguous():
        return None
    return Permuted(p) if torch.empty_like(p).stride() == p.stride() else Gapped(p)


def refuse_shape(gradient: Tensor, p: Tensor, title: str, kind: str) -> NoReturn:
    """Raise for a gradient of another shape, which a copy would broadcast."""
    raise ValueError(f"{title} has shape {tuple(gradient.shape)}, its {kind} has {tuple(p.shape)}")


def has_memory(p: Tensor) -> bool:
    """Whether a tensor has memory of its own, as DTensors, FakeTensors and those on "meta" have not."""
    try:
        storage = p.untyped_storage()
        return bool(p.numel() == 0 or (storage.device.type != "meta" and storage.data_ptr() != 0))
    except RuntimeError:  # it has not even a place for one
        return False


class Place(NamedTuple):
    """Where and how a tensor lies in memory: what a plan depends on."""

    address: int
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


def place_of(p: Tensor) -> Place:
    """Return a tensor's."""
    return Place(p.data_ptr(), p.shape, p.stride(), p.dtype)


def in_memory_order(tensor: Tensor) -> Tensor:
    """Return a tensor without gaps as one row of all that it has."""
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
