"""What tests of simulated GPUs share: arrays there, what was done, and a look at all bits."""

from collections.abc import Sequence
from typing import Any

from fusedstep import Optimizer
from fusedstep._native import simulation
from reference import Reference, same_bits


def put(arrays: Sequence[Any], device: int = 0) -> list[Any]:
    return [None if array is None else simulation.array_on(device, array) for array in arrays]


def kernels() -> list[str]:
    """What was launched since this was asked, or built; nothing else may have been done meanwhile."""
    return [what for what, _, _ in simulation.take_events()]


def assert_same(optimizer: Optimizer, variables: Sequence[Any], reference: Reference) -> None:
    for index, (variable, expected) in enumerate(zip(variables, reference.variables, strict=True)):
        assert same_bits(variable.copy(), expected), f"{optimizer}: variable {index}, {expected.dtype}"
        for name, slot in optimizer.slots(variable).items():
            assert same_bits(slot.copy(), reference.slots[index][name]), f"{optimizer}: {name} of {index}"
