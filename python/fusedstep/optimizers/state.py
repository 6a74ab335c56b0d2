"""The state of one build, apart from its variables: what copies, pickles and checkpoints carry."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fusedstep import _native
from fusedstep.checks import integer_in, real_in
from fusedstep.device_arrays import write
from fusedstep.optimizers.adjustments import Change

_T = TypeVar("_T")


def _count(value: Any) -> int:
    return integer_in(value, "a count", f"[0, {2**62})")  # there is room to count on


# What a plan has besides slots, by attribute, and what checks it before a load writes anything.
SCALARS: dict[str, Callable[[Any], Any]] = {
    "calls": _count,
    "updates": _count,
    "skips": _count,
    "carried": lambda value: real_in(value, "carried"),
}


@dataclass
class DynamicScale:
    """A dynamic loss scale as far as it is known here: plans, or the devices they are on, adapt it."""

    scale: float
    growth_steps: int  # finite calls in a row that double it
    finite_calls: int = 0  # of these so far

    def read(self, plan: _native.Plan) -> None:
        """Take over what became of it; that may wait for a device."""
        self.scale, self.finite_calls = plan.loss_scale, plan.finite_calls

    def write(self, plan: _native.Plan) -> None:
        """Have the plan go on from here."""
        plan.loss_scale, plan.finite_calls = self.scale, self.finite_calls


@dataclass(frozen=True)
class VariableState:
    """A variable's shape and dtype, and its slots by name."""

    shape: tuple[int, ...]
    dtype: str
    slots: dict[str, Any]  # NumPy arrays, or what is on a device

    def differences(self, live: "VariableState", label: str) -> Iterator[str]:
        """Say why the live one cannot take this one's slots."""
        if self.shape != live.shape:
            yield f"'{label}' has shape {self.shape} in the state, {live.shape} here"
        if self.dtype != live.dtype:
            yield f"'{label}' has dtype {self.dtype} in the state, {live.dtype} here"
        if sorted(self.slots) != sorted(live.slots):
            yield f"'{label}' has the slots {sorted(self.slots)} in the state, {sorted(live.slots)} here"
        elif (self.shape, self.dtype) == (live.shape, live.dtype):
            for name, slot in live.slots.items():
                ours = self.slots[name]
                if (ours.shape, ours.dtype) != (slot.shape, slot.dtype):
                    yield (
                        f"'{label}/{name}' is {ours.dtype} {ours.shape} in the state,"
                        f" {slot.dtype} {slot.shape} here"
                    )


@dataclass(frozen=True)
class PlanState:
    """Counts, what the rule carries, and the variables in the order they were built.

    The variables have their names where they were built by name.
    """

    scalars: dict[str, Any]
    names: list[str]
    variables: list[VariableState]
    # Settings of single ones, and how many had been made by then of the optimizer; not in a state_dict.
    changes: dict[int, Change] = field(default_factory=dict)
    adjustments_made: int = 0

    @property
    def calls(self) -> int:
        """The number of calls so far."""
        return int(self.scalars["calls"])

    @property
    def updates(self) -> int:
        """The number of updates so far."""
        return int(self.scalars["updates"])

    @property
    def skips(self) -> int:
        """The number of calls that changed nothing, for gradients that were not finite."""
        return int(self.scalars["skips"])

    def describes_the_same_as(self, other: "PlanState") -> bool:
        """Whether both are of variables with the same names and shapes, in the same order."""
        ours, theirs = ([variable.shape for variable in state.variables] for state in (self, other))
        return (self.names, ours) == (other.names, theirs)

    def has(self, slot: str) -> bool:
        """Whether the variables have this slot."""
        return any(slot in variable.slots for variable in self.variables)

    @classmethod
    def of(cls, plan: _native.Plan) -> "PlanState":
        """Copy the state of a plan."""
        variables = [
            replace(live, slots={name: slot.copy() for name, slot in live.slots.items()})
            for live in _live(plan)
        ]
        return cls({name: getattr(plan, name) for name in SCALARS}, plan.names, variables)

    def differences(self, plan: _native.Plan) -> list[str]:
        """Say why this cannot be the state of the plan; nothing if it can.

        Where both have names, variables are matched by name, else in order.
        """
        live, found = _live(plan), []
        if self.names and plan.names:
            here, there = set(plan.names), set(self.names)
            found += [f"'{name}' is in the state and not here" for name in self.names if name not in here]
            found += [f"'{name}' is here and not in the state" for name in plan.names if name not in there]
        elif len(self.variables) != len(live):
            found.append(f"{len(self.variables)} variables are in the state, {len(live)} here")
        labels = plan.names or self.names or [str(i) for i in range(len(live))]
        for label, ours, theirs in zip(labels, self._in_order_of(plan), live, strict=False):
            if ours is not None:
                found += ours.differences(theirs, label)
        return found

    def write(self, plan: _native.Plan) -> None:
        """Make this the state of the plan, from which it must have no differences."""
        for live, ours in zip(_live(plan), self._in_order_of(plan), strict=True):
            assert ours is not None
            for name, slot in live.slots.items():
                write(slot, ours.slots[name])
        for name in SCALARS:
            setattr(plan, name, self.scalars[name])

    def restore(self, plan: _native.Plan, who: str) -> None:
        """Put the state into a plan just made; raise where it is another's."""
        differences = self.differences(plan)
        if differences:
            raise ValueError(
                f"{who}.build: the state that was copied or loaded is of other variables:"
                f" {listed(differences)}; build the same ones, in the same order"
            )
        self.write(plan)

    def _in_order_of(self, plan: _native.Plan) -> list[VariableState | None]:
        if not (self.names and plan.names):
            return list(self.variables)
        by_name = dict(zip(self.names, self.variables, strict=True))
        return [by_name.get(name) for name in plan.names]

    def changes_in_order_of(self, plan: _native.Plan) -> dict[int, Change]:
        """Return the settings of single variables by their indices in the plan."""
        if not (self.names and plan.names):
            return self.changes
        places = {name: place for place, name in enumerate(plan.names)}
        return {places[self.names[index]]: change for index, change in self.changes.items()}

    # Plain data, as in a state_dict.

    def plain(self) -> dict[str, Any]:
        """Return scalars, names, shapes and dtypes, and the slots as "name of the variable/slot"."""
        labels = self.names or [str(position) for position in range(len(self.variables))]
        return {
            **self.scalars,
            "names": list(self.names),
            "variables": [{"shape": list(v.shape), "dtype": v.dtype} for v in self.variables],
            "slots": {
                f"{label}/{name}": slot
                for label, variable in zip(labels, self.variables, strict=True)
                for name, slot in variable.slots.items()
            },
        }

    @classmethod
    def from_plain(cls, state: Mapping[str, Any]) -> "PlanState":
        """Return a copy of what ``plain`` returned; raise whatever where it is not that."""
        names, described = list(state["names"]), state["variables"]
        labels = names or [str(position) for position in range(len(described))]
        slots: dict[str, dict[str, npt.NDArray[Any]]] = {label: {} for label in labels}
        for key, slot in state["slots"].items():
            label, _, name = key.rpartition("/")
            slots[label][name] = np.array(slot)
        return cls(
            {name: check(state[name]) for name, check in SCALARS.items()},
            names,
            [
                VariableState(tuple(variable["shape"]), str(variable["dtype"]), slots[label])
                for label, variable in zip(labels, described, strict=True)
            ],
        )


def at_rest(plans: Sequence[_native.Plan], who: str, function: Callable[[], _T]) -> _T:
    """Call what copies or writes states, while no step of these plans is made; it may wait for a GPU."""
    if any(plan.is_capturing() for plan in plans):
        raise RuntimeError(
            f"{who}: a graph is captured, and copying or loading a state would have to wait for the GPU;"
            " do that before the capture, or after it"
        )
    return _native.at_rest(plans, function)


def listed(differences: list[str], most: int = 10) -> str:
    """Join differences to a text; the first of them and how many more."""
    more = f"; and {len(differences) - most} more" if len(differences) > most else ""
    return "; ".join(differences[:most]) + more


def _live(plan: _native.Plan) -> list[VariableState]:
    """The variables of a plan, with the slots themselves."""
    return [
        VariableState(
            plan.shape(index),
            plan.dtype(index),
            {name: plan.slot(index, name) for name in plan.slot_names},
        )
        for index in range(len(plan))
    ]
