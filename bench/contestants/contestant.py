"""What all contestants share: what they are given, what they are, and the values they start from."""

import contextlib
import gc
import importlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from time import perf_counter
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bench.models import Shape
from bench.optimizers import OPTIMIZERS, Definition
from bench.workloads import Workload, touched

Array = npt.NDArray[Any]
Arrays = list[Array]
Rows = tuple[Array, Array]  # a sparse gradient: indices, and as many rows

CACHE_LINE = 64


class UnavailableError(Exception):
    """This contestant cannot take part; the message says why."""


class Timed(NamedTuple):
    """Seconds per step; and on a GPU, how long the call kept the host."""

    seconds: float
    host: float | None = None


def scaling(gradients: list[Any]) -> Callable[[float], None]:
    """A function that multiplies gradients of NumPy or CuPy in place."""

    def scale(factor: float) -> None:
        for gradient in gradients:
            values = gradient[1] if isinstance(gradient, tuple) else gradient
            values *= values.dtype.type(factor)

    return scale


def renewing(gradients: list[Any]) -> Callable[[], None]:
    """A function that puts copies in the places of gradients of NumPy or CuPy."""

    def renew() -> None:
        gradients[:] = [
            (one[0], one[1].copy()) if isinstance(one, tuple) else one.copy() for one in gradients
        ]

    return renew


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Collect garbage now, and none meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def nothing() -> None:
    """What comes before a step that is like all others."""


def host_clock(step: Callable[[], object], steps: int, before: Callable[[], object]) -> Timed:
    """Take some steps, which are done when they return."""
    before()
    start = perf_counter()
    for _ in repeat(None, steps):
        step()
    return Timed((perf_counter() - start) / steps)


@dataclass(frozen=True)
class Contestant:
    """One step as a call without arguments, and the variables that it updates.

    Attributes:
        step: takes a step.
        variables: returns the variables as NumPy arrays.
        scale: multiplies the gradients by a number. Where they are the same in each step, Adam's result does
            not depend on its decay rates, and an error would not be seen.
        form: arguments that say in which of its forms the optimizer is: they are for the definition that
            its results are compared with.
        clock: does what comes before the steps, takes them, and tells the time of one. Where it takes others
            besides, it does the same before each of those.
        renew: has the next step find its gradients in other arrays; None where they stay in the same ones.
    """

    step: Callable[[], object]
    variables: Callable[[], Arrays]
    scale: Callable[[float], object]
    form: dict[str, Any] = field(default_factory=dict)
    clock: Callable[[Callable[[], object], int, Callable[[], object]], Timed] = host_clock
    renew: Callable[[], object] | None = None

    def time(self, steps: int, before: Callable[[], object] = nothing) -> Timed:
        """Take some steps, after what comes before them."""
        return self.clock(self.step, steps, before)


@dataclass(frozen=True)
class Given:
    """What a contestant is made of: the workload, and arrays to take or to copy."""

    workload: Workload
    variables: list[Any]  # arrays of the device
    gradients: list[Any]  # arrays; or Rows, where the step is sparse
    learning_rate: float
    threads: int

    @property
    def definition(self) -> Definition:
        """What a step computes."""
        return OPTIMIZERS[self.workload.optimizer]

    def refuse(self, *, optimizers: object = None, steps: object = None, dtypes: object = None) -> None:
        """Raise UnavailableError unless optimizer, step and dtype are among these."""
        for what, among in (
            (self.workload.optimizer, optimizers),
            (self.workload.step, steps),
            (self.workload.dtype, dtypes),
        ):
            if among is not None and what not in among:  # type: ignore[operator]
                raise UnavailableError(f"has no {what}")

    def refuse_many_arrays(self, most: int) -> None:
        """Raise UnavailableError where there are more arrays."""
        if len(self.variables) > most:
            raise UnavailableError(f"compiles for minutes, with more than {most} arrays")


def host_array(shape: Shape, numbers: Array, offset: bool) -> Array:
    """Make an array of numbers that are repeated, as NumPy aligns it, or an element after a cache line."""
    size, itemsize = math.prod(shape), numbers.itemsize
    array = np.empty(size + (2 * CACHE_LINE // itemsize if offset else 0), numbers.dtype)
    first = -array.ctypes.data % CACHE_LINE // itemsize + 1 if offset else 0
    array = array[first : first + size]
    for begin in range(0, size, numbers.size):
        part = array[begin : begin + numbers.size]
        part[...] = numbers[: part.size]
    return array.reshape(shape)


def start(
    workload: Workload, filled: Callable[[Shape, Array, bool], Any] = host_array
) -> tuple[list[Any], list[Any]]:
    """Make variables in [1, 2) and gradients from the normal distribution: nothing subnormal, nothing near 0.

    Large arrays repeat one block of numbers: how long a step takes does not depend on them.

    Args:
        workload: what to make them for.
        filled: makes an array from a shape, numbers to repeat, and whether it begins after a cache line.
    """
    rng = np.random.default_rng(0)
    longest = min(max(math.prod(shape) for shape in workload.shapes), 1 << 20)
    uniform, normal = rng.uniform(1, 2, longest), rng.standard_normal(longest)
    blocks = {
        name: (uniform.astype(dtype(name)), normal.astype(dtype(name))) for name in set(workload.dtypes)
    }
    offset = workload.condition == "offset"
    variables, gradients = [], []
    for shape, name in zip(workload.shapes, workload.dtypes, strict=True):
        variables.append(filled(shape, blocks[name][0], offset))
        if workload.step == "sparse":
            indices = rng.permutation(shape[0])[: touched(shape)]
            rows = filled((len(indices), *shape[1:]), blocks[name][1], offset)
            gradients.append((filled(indices.shape, indices, False), rows))
        else:
            gradients.append(filled(shape, blocks[name][1], offset))
    return variables, gradients


def dtype(name: str) -> "np.dtype[Any]":
    """The NumPy dtype of a name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def import_peer(name: str) -> Any:
    """Import a module that is no requirement, or raise UnavailableError."""
    # Memory in pieces, as the others take it; and the accelerator that is measured, not one that is found.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return importlib.import_module(name)
    except Exception as error:
        raise UnavailableError(first_line(error)) from error


def first_line(error: Exception) -> str:
    """What an exception says, in one line; without the file of a module, which is of this machine."""
    if isinstance(error, UnavailableError):
        return str(error)
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return re.sub(r" \(/.*\)$", "", line) if isinstance(error, ImportError) else line
