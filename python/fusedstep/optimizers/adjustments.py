"""Settings of single variables: which of them have others than the optimizer's."""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fusedstep import _native
from fusedstep.intervals import real


@dataclass(frozen=True)
class Change:
    """Settings of a variable; None is for those that stay."""

    multiplier: float | None = None
    weight_decay: float | None = None
    frozen: bool | None = None

    @classmethod
    def checked(cls, multiplier: Any, weight_decay: Any, frozen: Any, who: str) -> "Change":
        """Make one of what a user passed, or raise."""
        if multiplier is not None:
            multiplier = real(multiplier, f"{who}: learning_rate_multiplier")
            if not math.isfinite(multiplier):
                raise ValueError(f"{who}: learning_rate_multiplier must be finite, got {multiplier!r}")
        if weight_decay is not None:
            weight_decay = real(weight_decay, f"{who}: weight_decay")
            if not 0 <= weight_decay < math.inf:
                raise ValueError(f"{who}: weight_decay must lie in [0, inf), got {weight_decay!r}")
        if frozen is not None and not isinstance(frozen, (bool, np.bool_)):
            raise TypeError(f"{who}: frozen must be True or False, got {frozen!r}")
        return cls(multiplier, weight_decay, frozen if frozen is None else bool(frozen))

    def after(self, former: "Change") -> "Change":
        """Return what holds when this comes after the former one."""
        both = {f.name: getattr(self, f.name) for f in fields(self)}
        return Change(**{n: getattr(former, n) if value is None else value for n, value in both.items()})


Selector = Any  # an array, a name, or a compiled regular expression


@dataclass(frozen=True)
class Adjustments:
    """All changes so far, in their order."""

    changes: tuple[tuple[Selector, Change], ...] = ()

    def and_also(
        self, variables: Any, change: Change, who: str, plans: Sequence[_native.Plan] = ()
    ) -> "Adjustments":
        """Return these and the change of some more variables, of the plans where there are some."""
        selectors = list(variables) if isinstance(variables, (list, tuple)) else [variables]
        for selector in selectors:
            if not isinstance(selector, (str, re.Pattern)) and not _native.is_array(selector):
                kind = type(selector).__name__
                raise TypeError(f"{who}: variables must be arrays or names, got {selector!r} of type {kind}")
            if plans and not any(_chosen(selector, plan) for plan in plans):
                raise ValueError(f"{who}: {_unknown(selector, plans)}")
        return Adjustments(self.changes + tuple((selector, change) for selector in selectors))

    def by_name(self) -> "Adjustments":
        """Return those that do not name arrays."""
        return Adjustments(tuple(one for one in self.changes if isinstance(one[0], (str, re.Pattern))))

    def without(self, plan: _native.Plan) -> "Adjustments":
        """Return those that do not name arrays of this plan."""
        own = [
            not isinstance(selector, (str, re.Pattern)) and plan.owns(selector)
            for selector, _ in self.changes
        ]
        return Adjustments(tuple(one for one, mine in zip(self.changes, own, strict=True) if not mine))

    def of(self, plan: _native.Plan) -> dict[int, Change]:
        """Return the changes of a plan's variables, by their indices."""
        found: dict[int, Change] = {}
        for selector, change in self.changes:
            for index in _chosen(selector, plan):
                found[index] = change.after(found.get(index, Change()))
        return found

    def resolve(self, plan: _native.Plan, weight_decay: float) -> list[_native.VariableSettings]:
        """Return the settings of a plan's variables; one for all where they are equal."""
        changes = self.of(plan)

        def settings(own: Change) -> _native.VariableSettings:
            return _native.VariableSettings(
                1.0 if own.multiplier is None else own.multiplier,
                weight_decay if own.weight_decay is None else own.weight_decay,
                bool(own.frozen),
            )

        if not changes:
            return [settings(Change())]
        return [settings(changes.get(index, Change())) for index in range(len(plan))]


def _unknown(selector: Selector, plans: Sequence[_native.Plan]) -> str:
    if not isinstance(selector, (str, re.Pattern)):
        return f"an array of shape {tuple(selector.shape)} was never built; build(variables) adds new ones"
    names = [name for plan in plans for name in plan.names]
    close = difflib.get_close_matches(str(selector), names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {names[:10]}"
    return f"no variable was built with the name '{selector}', or below it; {hint}"


def _chosen(selector: Selector, plan: _native.Plan) -> list[int]:
    if isinstance(selector, str):
        below = f"{selector}/"
        return [i for i, name in enumerate(plan.names) if name == selector or name.startswith(below)]
    if isinstance(selector, re.Pattern):
        return [i for i, name in enumerate(plan.names) if selector.search(name)]
    return [plan.index_of(selector)] if plan.owns(selector) else []
