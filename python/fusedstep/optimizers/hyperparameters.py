"""Hyperparameters: declared once, with default, interval and meaning.

From a class's declarations follow its ``__init__``, signature, ``repr``, ``get_config`` and checks.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from fusedstep import _native
from fusedstep.checks import FINITE, Interval, boolean, integer_in, real_in

if TYPE_CHECKING:
    from fusedstep.optimizers.declared import Declared

T = TypeVar("T")


class Hyperparameter(Generic[T]):
    """The descriptor behind ``beta_1: float = hyperparameter(default=0.9, ...)``."""

    def __init__(
        self,
        *,
        default: T,
        meaning: str,
        interval: str = "(-inf, inf)",
        choices: tuple[T, ...] = (),
        optional: bool = False,
        integer: bool = False,
        number: Callable[[float], float] = float,
    ) -> None:
        self.default = default
        self.meaning = meaning
        self.interval = FINITE if interval == FINITE.text else Interval(interval)
        self.choices = choices
        self.optional = optional
        self.integer = integer
        self.to_number = number
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "Hyperparameter[T]": ...
    @overload
    def __get__(self, instance: "Declared", owner: type) -> T: ...
    def __get__(self, instance: "Declared | None", owner: type) -> "Hyperparameter[T] | T":
        if instance is None:
            return self
        value: T = instance._values[self.name]
        return value

    def __set__(self, instance: "Declared", value: T) -> None:
        instance._set(self.name, self.check(value, type(instance).__name__))

    def check(self, value: Any, who: str) -> Any:
        """Return the value in the declared type, or raise."""
        what = f"{who}: {self.name}"
        if value is None and self.optional:
            return None
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{what} must be one of {self.choices}, got {value!r}")
            return value
        if isinstance(self.default, bool):
            return boolean(value, what)
        if isinstance(self.default, str):
            if not isinstance(value, str):
                raise TypeError(f"{what} must be a string, got {value!r}")
            return value
        if self.integer:
            return integer_in(value, what, self.interval)
        return real_in(value, what, self.interval)

    def check_in_float32(self, value: Any, who: str) -> None:
        """Raise where a value leaves its interval when it is rounded to float32."""
        if isinstance(value, float):
            rounded = _native.round_to_float32(value)
            if rounded not in self.interval:
                raise ValueError(
                    f"{who}: {self.name} must lie in {self.interval.text},"
                    f" but {value!r} rounds to {rounded!r} in float32, the compute type"
                )

    def number(self, value: Any) -> float:
        """Return the value as the kernels take it."""
        return float(self.choices.index(value)) if self.choices else self.to_number(value)


def hyperparameter(
    *,
    default: T,
    meaning: str,
    interval: str = "(-inf, inf)",
    choices: tuple[T, ...] = (),
    optional: bool = False,
    integer: bool = False,
    number: Callable[[float], float] = float,
) -> Any:
    """Declare a hyperparameter, an argument that must be named.

    Args:
        default: its default, which also tells its type: float, bool or str.
        meaning: what it means, in a few words.
        interval: where a number must lie, "[0, 1)", also after rounding to the compute type.
        choices: the values it may have, where they are few.
        optional: whether it may be None, which switches it off.
        integer: whether it is an integer.
        number: what the kernels take for a value, where that is another number.
    """
    return Hyperparameter(
        default=default,
        meaning=meaning,
        interval=interval,
        choices=choices,
        optional=optional,
        integer=integer,
        number=number,
    )
