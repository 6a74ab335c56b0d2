"""The state of one build, apart from its variables: what copies and pickles carry."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep import _native


@dataclass(frozen=True)
class PlanState:
    """Counts, and for each variable its shape and slots by name, in the order they were built."""

    calls: int
    updates: int
    shapes: list[tuple[int, ...]]
    slots: list[dict[str, npt.NDArray[Any]]]

    @classmethod
    def of(cls, plan: _native.Plan) -> "PlanState":
        """Copy the state of a plan."""
        indices = range(len(plan))
        return cls(
            plan.calls,
            plan.updates,
            [plan.variable(index).shape for index in indices],
            [{name: plan.slot(index, name).copy() for name in plan.slot_names} for index in indices],
        )

    def restore(self, plan: _native.Plan, who: str) -> None:
        """Put the state into a plan just made, or raise where it is another's."""
        indices = range(len(plan))
        shapes = [plan.variable(index).shape for index in indices]
        slots = [{name: plan.slot(index, name) for name in plan.slot_names} for index in indices]
        if shapes != self.shapes or _kinds(slots) != _kinds(self.slots):
            raise ValueError(
                f"{who}.build: this copy carries the state of {len(self.shapes)} variables with shapes"
                f" {self.shapes}, but got {len(shapes)} with {shapes}, or with other dtypes;"
                " build the same ones, in the same order"
            )
        for ours, theirs in zip(slots, self.slots, strict=True):
            for name, slot in ours.items():
                slot[...] = theirs[name]
        plan.calls, plan.updates = self.calls, self.updates


def _kinds(slots: list[dict[str, npt.NDArray[Any]]]) -> list[dict[str, np.dtype[Any]]]:
    return [{name: slot.dtype for name, slot in of_one.items()} for of_one in slots]
