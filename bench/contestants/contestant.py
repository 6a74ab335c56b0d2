"""What all contestants share: what they are given, what they are, and the values they start from."""

import contextlib
import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from time import perf_counter
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bench.models import Shape
from bench.optimizers import LEARNING_RATE, OPTIMIZERS, Definition
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


def host_clock(step: Callable[[], object], steps: int) -> Timed:
    """Take some steps, which are done when they return."""
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
        form: arguments that say in which of its forms the optimizer is: they are for the definition that
            its results are compared with.
        clock: takes some steps and tells the time of one.
    """

    step: Callable[[], object]
    variables: Callable[[], Arrays]
    form: dict[str, Any] = field(default_factory=dict)
    clock: Callable[[Callable[[], object], int], Timed] = host_clock

    def time(self, steps: int) -> Timed:
        """Take some steps."""
        return self.clock(self.step, steps)


@dataclass(frozen=True)
class Given:
    """What a contestant is made of: the workload, and arrays to take or to copy."""

    workload: Workload
    variables: Arrays
    gradients: list[Any]  # arrays; or Rows, where the step is sparse
    learning_rate: float
    threads: int

    @classmethod
    def of(cls, workload: Workload, threads: int, learning_rate: float = LEARNING_RATE) -> "Given":
        """Make fresh arrays for a workload."""
        variables, gradients = start(workload)
        return cls(workload, variables, gradients, learning_rate, threads)

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


def start(workload: Workload, seed: int = 0) -> tuple[Arrays, list[Any]]:
    """Make variables in [1, 2) and gradients from the normal distribution: nothing subnormal, nothing near 0.

    Large arrays repeat one block of numbers: how long a step takes does not depend on them.
    """
    rng = np.random.default_rng(seed)
    longest = min(max(math.prod(shape) for shape in workload.shapes), 1 << 20)
    uniform, normal = rng.uniform(1, 2, longest), rng.standard_normal(longest)
    blocks = {
        name: (uniform.astype(dtype(name)), normal.astype(dtype(name))) for name in set(workload.dtypes)
    }
    offset = workload.condition == "offset"

    def filled(shape: Shape, numbers: Array) -> Array:
        array = empty(math.prod(shape), numbers.dtype, offset)
        for begin in range(0, array.size, longest):
            part = array[begin : begin + longest]
            part[...] = numbers[: part.size]
        return array.reshape(shape)

    variables, gradients = [], []
    for shape, name in zip(workload.shapes, workload.dtypes, strict=True):
        variables.append(filled(shape, blocks[name][0]))
        if workload.step == "sparse":
            indices = rng.permutation(shape[0])[: touched(shape)]
            gradients.append((indices, filled((len(indices), *shape[1:]), blocks[name][1])))
        else:
            gradients.append(filled(shape, blocks[name][1]))
    return variables, gradients


def empty(size: int, of: Any, offset: bool) -> Array:
    """Make an array, as NumPy aligns it; or one that begins an element after a cache line."""
    if not offset:
        return np.empty(size, of)
    itemsize = np.dtype(of).itemsize
    space = np.empty(size + 2 * CACHE_LINE // itemsize, of)
    first = -space.ctypes.data % CACHE_LINE // itemsize + 1
    return space[first : first + size]


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
    """What an exception says, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
