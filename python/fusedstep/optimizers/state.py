"""The state of one build, apart from its variables: what copies and pickles carry."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep import _native


@dataclass(frozen=True)
class VariableState:
    """A variable's shape and dtype, and its slots by name."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slots: dict[str, npt.NDArray[Any]]

    def fits(self, other: "VariableState") -> bool:
        """Whether the other one could take this one's slots."""
        return (self.shape, self.dtype) == (other.shape, other.dtype) and list(self.slots) == list(
            other.slots
        )


@dataclass(frozen=True)
class PlanState:
    """Counts, what the rule carries, and the variables in the order they were built.

    The variables have their names where they were built by name.
    """

    calls: int
    updates: int
    carried: float
    names: list[str]
    variables: list[VariableState]

    @classmethod
    def of(cls, plan: _native.Plan) -> "PlanState":
        """Copy the state of a plan."""
        variables = [
            VariableState(live.shape, live.dtype, {name: slot.copy() for name, slot in live.slots.items()})
            for live in _live(plan)
        ]
        return cls(plan.calls, plan.updates, plan.carried, plan.names, variables)

    def restore(self, plan: _native.Plan, who: str) -> None:
        """Put the state into a plan just made, by name or in order; raise where it is another's."""
        carried = self.variables
        if self.names and sorted(plan.names) == sorted(self.names):
            by_name = dict(zip(self.names, self.variables, strict=True))
            carried = [by_name[name] for name in plan.names]
        live = _live(plan)
        same_names = not self.names or not plan.names or sorted(plan.names) == sorted(self.names)
        fits = same_names and len(live) == len(carried) and all(map(VariableState.fits, live, carried))
        if not fits:
            raise ValueError(
                f"{who}.build: this copy carries the state of {_describe(self.variables, self.names)},"
                f" but got {_describe(live, plan.names)}; build the same ones, in the same order"
            )
        for variable, source in zip(live, carried, strict=True):
            for name, slot in variable.slots.items():
                slot[...] = source.slots[name]
        plan.calls, plan.updates, plan.carried = self.calls, self.updates, self.carried


def _live(plan: _native.Plan) -> list[VariableState]:
    """The variables of a plan, with the slots themselves."""
    return [
        VariableState(
            plan.variable(index).shape,
            plan.variable(index).dtype,
            {name: plan.slot(index, name) for name in plan.slot_names},
        )
        for index in range(len(plan))
    ]


def _describe(variables: list[VariableState], names: list[str]) -> str:
    labels = names or [str(position) for position in range(len(variables))]
    shown = [f"{n}: {v.dtype} {v.shape}" for n, v in zip(labels, variables, strict=True)]
    more = f", and {len(shown) - 8} more" if len(shown) > 8 else ""
    return f"{len(shown)} variables ({', '.join(shown[:8])}{more})"
