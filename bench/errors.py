"""How far what a contestant computed is from the definition: the tests' NumPy reference."""

import importlib.util
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.contestants import make
from bench.contestants.contestant import scaling, start
from bench.contestants.ours import OPTIONS
from bench.models import Shape
from bench.optimizers import OPTIMIZERS
from bench.workloads import Workload

if TYPE_CHECKING:
    from reference import Reference

STEPS, LEARNING_RATE = 3, 0.1
FACTOR = -0.5  # of the gradients from step to step: exact in every dtype
FEW: list[Shape] = [(1000, 3), (7, 9), (64,), (1,)]
MANY = FEW + [(5,)] * 70


class Small(Workload):
    """A workload's optimizer, dtype and step, on a few small arrays."""

    @cached_property
    def shapes(self) -> list[Shape]:
        """Matrices and vectors, whole cache lines and not; many where the workload has many."""
        return MANY if has_many_arrays(self) else FEW


def has_many_arrays(workload: Workload) -> bool:
    """Whether a workload has as many arrays as these here, or more."""
    return len(Workload(workload.arrays).shapes) >= len(MANY) - len(FEW)


def reference() -> "type[Reference]":
    """The class of tests/reference.py."""
    name = "reference"
    if name not in sys.modules:
        file = Path(__file__).parent.parent / "tests" / "reference.py"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found: type[Reference] = sys.modules[name].Reference
    return found


def error(name: str, workload: Workload, threads: int, device: str = "cpu") -> float:
    """Return the largest relative difference of a contestant's variables from the definition's after 3 steps.

    The definition is that of the form in which the contestant has the optimizer, where it has several.

    Raises:
        UnavailableError: it cannot take part.
    """
    small = Small(workload.arrays, workload.optimizer, workload.dtype, workload.step)
    contestant = make(name, small, threads=threads, device=device, learning_rate=LEARNING_RATE)
    for _ in range(STEPS):
        contestant.step()
        contestant.scale(FACTOR)
        if contestant.renew is not None:
            contestant.renew()
    expected = definition(small, contestant.form)
    found = [np.asarray(variable).astype(np.float64) for variable in contestant.variables()]
    differences = [np.abs(p - q) / np.abs(p) for p, q in zip(expected, found, strict=True)]
    return float(np.max(np.concatenate(differences, axis=None)))  # NaN where there is one, as max() is not


def definition(workload: Workload, form: dict[str, Any]) -> list[Any]:
    """The variables after 3 steps, as the reference computes them, in float64."""
    options = {name: value for name, value in OPTIONS[workload.step].items() if name != "lazy"}
    optimizer = OPTIMIZERS[workload.optimizer].build(LEARNING_RATE, **options, **form)
    variables, gradients = start(workload)
    scale = scaling(gradients)
    if workload.step != "sparse":
        steps = reference()(optimizer, variables)
        for _ in range(STEPS):
            steps.apply(gradients)
            scale(FACTOR)
        return [variable.astype(np.float64) for variable in steps.variables]
    # The same rows in each step: they are as if there were no others.
    touched = [variable[indices] for variable, (indices, _) in zip(variables, gradients, strict=True)]
    steps = reference()(optimizer, touched)
    for _ in range(STEPS):
        steps.apply([rows for _, rows in gradients])
        scale(FACTOR)
    for variable, (indices, _), rows in zip(variables, gradients, steps.variables, strict=True):
        variable[indices] = rows
    return [variable.astype(np.float64) for variable in variables]


def key(workload: Workload) -> Workload:
    """A workload with the same error, and the same for all that have it."""
    return replace(
        workload, arrays=f"{len(MANY)}x1" if has_many_arrays(workload) else "1x1", condition="usual"
    )
