"""Settings of single variables: which of them have others than the optimizer's."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from fusedstep import _native
from fusedstep.checks import boolean, real_in


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
            multiplier = real_in(multiplier, f"{who}: learning_rate_multiplier")
        if weight_decay is not None:
            weight_decay = real_in(weight_decay, f"{who}: weight_decay", "[0, inf)")
        if frozen is not None:
            frozen = boolean(frozen, f"{who}: frozen")
        return cls(multiplier, weight_decay, frozen)

    def after(self, former: "Change") -> "Change":
        """Return what holds when this comes after the former one."""
        return Change(
            former.multiplier if self.multiplier is None else self.multiplier,
            former.weight_decay if self.weight_decay is None else self.weight_decay,
            former.frozen if self.frozen is None else self.frozen,
        )


Selector = Any  # an array, a name, or a compiled regular expression
Changes = dict[int, Change]  # of a plan's variables, by their indices


Entry = tuple[Selector, Change, int]  # one setting, and how many adjustments had been made before


@dataclass(frozen=True)
class Adjustments:
    """All that was changed: each setting of each selector once, in the order in which they came last.

    A later one counts, where two are of the same variable.
    """

    entries: Mapping[tuple[str, Any], Entry] = field(default_factory=dict)
    made: int = 0
    # What they come to, of plans that were asked for.
    known: WeakKeyDictionary[_native.Plan, Changes] = field(default_factory=WeakKeyDictionary, compare=False)

    def __reduce__(self) -> Any:
        return Adjustments.of_entries, (list(self.entries.values()), self.made)

    @classmethod
    def of_entries(cls, entries: Iterable[Entry], made: int) -> "Adjustments":
        """Return those of these entries, in their order."""
        ordered: dict[tuple[str, Any], Entry] = {}
        for entry in entries:
            key = _key_of(entry)
            ordered.pop(key, None)
            ordered[key] = entry
        return cls(ordered, made)

    def and_also(
        self, variables: Any, change: Change, who: str, plans: Sequence[_native.Plan] = ()
    ) -> "Adjustments":
        """Return these and the change of some more variables, of the plans where there are some."""
        selectors = list(variables) if isinstance(variables, (list, tuple)) else [variables]
        for selector in selectors:
            if not _is_by_name(selector) and not _native.is_array(selector):
                kind = type(selector).__name__
                raise TypeError(f"{who}: variables must be arrays or names, got {selector!r} of type {kind}")
            if plans and not any(_chosen(selector, plan) for plan in plans):
                raise ValueError(f"{who}: {_unknown(selector, plans)}")
        return self._and_then([(_as_built(selector, plans), change) for selector in selectors])

    def and_of(self, plan: _native.Plan, changes: Changes, made: int) -> "Adjustments":
        """Return these and changes of a plan's variables, which come after so many that were made."""
        before = [entry for entry in self.entries.values() if entry[2] < made]
        carried = [
            entry for i, change in changes.items() for entry in _entries(plan.variable(i), change, made - 1)
        ]
        since = [entry for entry in self.entries.values() if entry[2] >= made]
        return Adjustments.of_entries([*before, *carried, *since], self.made)

    def _and_then(self, more: Iterable[tuple[Selector, Change]]) -> "Adjustments":
        entries = dict(self.entries)
        known = WeakKeyDictionary({plan: dict(of_plan) for plan, of_plan in self.known.items()})
        for selector, change in more:
            for entry in _entries(selector, change, self.made):
                entries.pop(_key_of(entry), None)
                entries[_key_of(entry)] = entry
            for plan, of_plan in known.items():
                _put(of_plan, selector, change, plan)
        return Adjustments(entries, self.made + 1, known)

    def without(self, plans: Sequence[_native.Plan]) -> "Adjustments":
        """Return those that do not name arrays of these plans."""
        return Adjustments(
            {
                key: entry
                for key, entry in self.entries.items()
                if _is_by_name(entry[0]) or not any(plan.owns(entry[0]) for plan in plans)
            },
            self.made,
        )

    def of(self, plan: _native.Plan) -> Changes:
        """Return the changes of a plan's variables."""
        if plan not in self.known:
            self.known[plan] = {}
            for selector, change, _ in self.entries.values():
                _put(self.known[plan], selector, change, plan)
        return self.known[plan]

    def resolve(self, plan: _native.Plan, weight_decay: float) -> dict[int, _native.VariableSettings]:
        """Return the settings of those of a plan's variables that have some of their own."""
        made: dict[int, _native.VariableSettings] = {}  # few for many variables, mostly
        found = {}
        for index, change in self.of(plan).items():
            if id(change) not in made:
                made[id(change)] = _native.VariableSettings(
                    1.0 if change.multiplier is None else change.multiplier,
                    weight_decay if change.weight_decay is None else change.weight_decay,
                    bool(change.frozen),
                )
            found[index] = made[id(change)]
        return found


def _entries(selector: Selector, change: Change, made: int) -> list[Entry]:
    """Return an entry for each setting that is changed."""
    return [
        (selector, Change(**{name: value}), made) for name, value in vars(change).items() if value is not None
    ]


def _key_of(entry: Entry) -> tuple[str, Any]:
    """Return what a later entry takes the place of: the setting, and the selector itself (which stays)."""
    selector, change, _ = entry
    (setting,) = (name for name, value in vars(change).items() if value is not None)
    return setting, selector if _is_by_name(selector) else id(selector)


def _as_built(selector: Selector, plans: Sequence[_native.Plan]) -> Selector:
    """Return the very array that was built, in the place of another one over its memory."""
    if not _is_by_name(selector):
        for plan in plans:
            for index in _chosen(selector, plan):
                return plan.variable(index)
    return selector


def _put(changes: Changes, selector: Selector, change: Change, plan: _native.Plan) -> None:
    for index in _chosen(selector, plan):
        former = changes.get(index)
        changes[index] = change if former is None else change.after(former)


def _is_by_name(selector: Selector) -> bool:
    return isinstance(selector, (str, re.Pattern))


def _unknown(selector: Selector, plans: Sequence[_native.Plan]) -> str:
    if not _is_by_name(selector):
        return f"an array of shape {tuple(selector.shape)} was never built; build(variables) adds new ones"
    names = [name for plan in plans for name in _places(plan) if name]
    close = difflib.get_close_matches(str(selector), names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {names[:10]}"
    return f"no variable was built with the name '{selector}', or below it; {hint}"


_places_of_plans: WeakKeyDictionary[_native.Plan, dict[str, list[int]]] = WeakKeyDictionary()


def _places(plan: _native.Plan) -> dict[str, list[int]]:
    """Return, by each variable's name and each beginning of it before a slash, the indices in the plan."""
    if plan not in _places_of_plans:
        places = _places_of_plans[plan] = {}
        for index, name in enumerate(plan.names):
            places.setdefault(name, []).append(index)
            for end, letter in enumerate(name):
                if letter == "/":
                    places.setdefault(name[:end], []).append(index)
    return _places_of_plans[plan]


def _chosen(selector: Selector, plan: _native.Plan) -> list[int]:
    if isinstance(selector, str):
        return _places(plan).get(selector, [])
    if isinstance(selector, re.Pattern):
        return [i for i, name in enumerate(plan.names) if selector.search(name)]
    return [plan.index_of(selector)] if plan.owns(selector) else []
