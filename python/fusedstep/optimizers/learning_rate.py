"""The learning rate: a number, or what is asked for one at every step."""

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from fusedstep import _native
from fusedstep.checks import real, real_in
from fusedstep.schedules import LearningRateSchedule
from fusedstep.serialization import deserialize, serialize

if TYPE_CHECKING:
    from fusedstep.optimizers.declared import Declared

Schedule = Callable[[int], float] | Callable[[], float]


class SupportsDlpack(Protocol):
    """An array of any library, on a GPU."""

    def __dlpack_device__(self) -> tuple[int, int]: ...


class LearningRate:
    """The learning rate: a number, or something that is asked at every step.

    A schedule may be given by its configuration. A callable gets the number of calls so far, or nothing
    where it requires no argument. An array without dimensions is read anew, so whoever shares it can
    change it; one on the variables' GPU is read there.
    """

    def __init__(self, *, default: float, kw_only: bool) -> None:
        assert not kw_only  # what type checkers read: the learning rate may be given by position
        self.default = default
        self.name = "learning_rate"
        self.meaning = "step size; a real number, or a callable from the number of calls so far to one"

    @overload
    def __get__(self, instance: None, owner: type) -> "LearningRate": ...
    @overload
    def __get__(self, instance: "Declared", owner: type) -> float: ...
    def __get__(self, instance: "Declared | None", owner: type) -> "LearningRate | float":
        if instance is None:
            return self
        return instance._learning_rate_at(instance._calls())

    def __set__(
        self,
        instance: "Declared",
        value: "float | Schedule | Mapping[str, Any] | npt.NDArray[Any] | SupportsDlpack",
    ) -> None:
        rate = self.check(value, type(instance).__name__)
        instance._set_learning_rate(rate)
        instance._values["learning_rate"] = rate

    def check(self, value: Any, who: str) -> "float | AskedLearningRate":
        """Return a finite float, or what to ask at every step, or raise."""
        if isinstance(value, Mapping):
            value = deserialize(value)
        if isinstance(value, type) and issubclass(value, LearningRateSchedule):
            raise TypeError(
                f"{who}: learning_rate must be a number, a schedule or a callable, got the class"
                f" {value.__name__}; make an instance of it"
            )
        if callable(value) or _native.is_on_device(value):
            return AskedLearningRate(value)
        number = real_in(value, f"{who}: learning_rate")
        return AskedLearningRate(value) if is_memory(value) else number


class AskedLearningRate:
    """A learning rate that is asked at every step: a callable, or an array without dimensions."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.is_array = is_memory(source)
        self.takes_step = not self.is_array and takes_an_argument(source)
        # The package's own schedules are functions of the step and their arguments: they can be asked ahead.
        self.is_schedule = type(source).__module__ == LearningRateSchedule.__module__
        self._arguments: dict[str, Any] = {}

    def at(self, step: int, who: str) -> float:
        """Return the learning rate for the step."""
        if self.is_array:
            source = self.source if isinstance(self.source, np.ndarray) else float(self.source)
            return real(source, f"{who}: learning_rate")
        value = self.source(step) if self.takes_step else self.source()
        return real(value, f"{who}: what the callable learning_rate returned")

    def has_changed(self) -> bool:
        """Whether a schedule has other arguments than when this was asked last."""
        if vars(self.source) == self._arguments:
            return False
        self._arguments = {name: copy(value) for name, value in vars(self.source).items()}
        return True

    def config(self) -> Any:
        """Return what a configuration says of it: the schedule's own, the callable, or the number now."""
        if isinstance(self.source, LearningRateSchedule):
            return serialize(self.source)
        return self.argument()

    def argument(self) -> Any:
        """Return what makes another one: the schedule, the callable, or the number now."""
        return float(self.source) if self.is_array else self.source


def is_memory(rate: Any) -> bool:
    """Whether a learning rate is an array, which may change, and not a scalar."""
    return hasattr(rate, "__dlpack__") or _native.is_on_device(rate)


def takes_an_argument(function: Callable[..., Any]) -> bool:
    """Whether a callable asks for an argument. One with a name and a default may be a value bound to it."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return True
    return any(
        parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
        or (
            parameter.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
            and parameter.default is inspect.Parameter.empty
        )
        for parameter in parameters
    )
