"""Learning-rate schedules: from the number of calls so far to a learning rate, in float64."""

import inspect
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fusedstep.checks import boolean, real_in
from fusedstep.serialization import plain, register

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
]


class LearningRateSchedule:
    """What all schedules share; the base of your own.

    A subclass has ``__call__(step)``, which returns the learning rate after so many calls. Where each
    argument of its ``__init__`` is an attribute of the same name, its configuration, repr and equality
    follow; else write ``get_config``. :func:`fusedstep.register` makes its name known where
    configurations are read.

    Raises:
        NotImplementedError: the subclass has no ``__call__``, or no configuration.

    >>> class Linear(LearningRateSchedule):
    ...     def __init__(self, slope):
    ...         self.slope = slope
    ...
    ...     def __call__(self, step):
    ...         return self.slope * step
    >>> Linear(0.5)(3)
    1.5
    >>> Linear(0.5)
    Linear(slope=0.5)
    >>> Linear.from_config(Linear(0.5).get_config()) == Linear(0.5)
    True
    """

    def __call__(self, step: int) -> float:
        """Return the learning rate after so many calls."""
        raise NotImplementedError(
            f"{type(self).__name__}: the base class gives no learning rate; define __call__(step)"
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments; ``from_config`` makes an equal schedule of them."""
        names = inspect.signature(type(self)).parameters
        for name, parameter in names.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                given = parameter.replace(annotation=parameter.empty)
                raise NotImplementedError(
                    f"{type(self).__name__}: {given} in __init__ are arguments without names, by which"
                    " from_config could give them back; name them, or define get_config"
                )
            if not hasattr(self, name):
                raise NotImplementedError(
                    f"{type(self).__name__}: the argument {name} is no attribute;"
                    f" keep it as self.{name}, or define get_config"
                )
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, list) else value for name, value in values.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Self":
        """Make a schedule of what ``get_config`` returned."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        """Whether it has the same class and configuration."""
        if not isinstance(other, LearningRateSchedule) or type(self) is not type(other):
            return NotImplemented
        try:
            return self is other or _comparable(self.get_config()) == _comparable(other.get_config())
        except NotImplementedError:
            return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # attributes can change

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        try:
            config = self.get_config()
        except NotImplementedError:
            return super().__repr__()
        defaults = _comparable({name: parameter.default for name, parameter in parameters.items()})
        values = _comparable(config)
        shown = [
            f"{name}={value!r}"
            for name, value in config.items()
            if name not in defaults or values[name] != defaults[name]
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@register
class ExponentialDecay(LearningRateSchedule):
    """Exponential decay.

    At step s::

        lr = initial_learning_rate * decay_rate^(s / decay_steps)

    With ``staircase=True`` the quotient is rounded down, so that the rate falls at once.

    Args:
        initial_learning_rate: the learning rate at step 0.
        decay_steps: in how many steps it falls by the decay rate once, in (0, inf).
        decay_rate: in [0, inf).
        staircase: fall every ``decay_steps`` steps only.
        name: the schedule's name.

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind.

    >>> schedule = ExponentialDecay(0.1, decay_steps=2, decay_rate=0.25)
    >>> [schedule(step) for step in range(3)]
    [0.1, 0.05, 0.025]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str = "ExponentialDecay",
    ) -> None:
        self.initial_learning_rate = real_in(initial_learning_rate, "ExponentialDecay: initial_learning_rate")
        self.decay_steps = _steps(decay_steps, "ExponentialDecay: decay_steps")
        self.decay_rate = real_in(decay_rate, "ExponentialDecay: decay_rate", "[0, inf)")
        self.staircase = boolean(staircase, "ExponentialDecay: staircase")
        self.name = name

    def __call__(self, step: int) -> float:
        """Return the learning rate after so many calls."""
        times = _stages(step, self.decay_steps) if self.staircase else step / self.decay_steps
        return self.initial_learning_rate * _power(self.decay_rate, times)


@register
class PiecewiseConstantDecay(LearningRateSchedule):
    """Constant between boundaries.

    At step s::

        lr = values[i],  i = how many boundaries are less than s

    so at a boundary the rate is still that of its left.

    Args:
        boundaries: steps, each greater than the one before.
        values: learning rates, one more than boundaries.
        name: the schedule's name.

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind, the boundaries do
            not increase, or there are more or fewer values.

    >>> schedule = PiecewiseConstantDecay([2, 3], [0.1, 0.05, 0.01])
    >>> [schedule(step) for step in range(5)]
    [0.1, 0.1, 0.1, 0.05, 0.01]
    """

    def __init__(
        self, boundaries: Iterable[float], values: Iterable[float], name: str = "PiecewiseConstant"
    ) -> None:
        who = "PiecewiseConstantDecay"
        self.boundaries = [
            _steps(boundary, f"{who}: boundaries[{i}]", "(-inf, inf)")
            for i, boundary in enumerate(_items(boundaries, f"{who}: boundaries"))
        ]
        self.values = [
            real_in(value, f"{who}: values[{i}]") for i, value in enumerate(_items(values, f"{who}: values"))
        ]
        self.name = name
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"{who}: there must be one more value than boundaries,"
                f" got {len(self.values)} values and {len(self.boundaries)} boundaries"
            )
        for i, (left, right) in enumerate(zip(self.boundaries, self.boundaries[1:], strict=False), 1):
            if not left < right:
                raise ValueError(f"{who}: boundaries[{i}] must be greater than {left!r}, got {right!r}")

    def __call__(self, step: int) -> float:
        """Return the learning rate after so many calls."""
        return self.values[bisect_left(self.boundaries, step)]


@register
class PolynomialDecay(LearningRateSchedule):
    """Polynomial decay to an end.

    At step s, with D = ``decay_steps``::

        lr = (initial_learning_rate - end_learning_rate) * (1 - min(s, D)/D)^power + end_learning_rate

    With ``cycle=True`` it begins anew, lower each time: min(s, D)/D becomes s/(D * ceil(s/D)), and 0 at
    step 0.

    Args:
        initial_learning_rate: the learning rate at step 0.
        decay_steps: how many steps it falls, in (0, inf).
        end_learning_rate: the learning rate at the end.
        power: in [0, inf); 1 is a straight line.
        cycle: begin anew at the end.
        name: the schedule's name.

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind.

    >>> schedule = PolynomialDecay(1.0, decay_steps=4, end_learning_rate=0.5)
    >>> [schedule(step) for step in (0, 1, 4, 9)]
    [1.0, 0.875, 0.5, 0.5]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str = "PolynomialDecay",
    ) -> None:
        self.initial_learning_rate = real_in(initial_learning_rate, "PolynomialDecay: initial_learning_rate")
        self.decay_steps = _steps(decay_steps, "PolynomialDecay: decay_steps")
        self.end_learning_rate = real_in(end_learning_rate, "PolynomialDecay: end_learning_rate")
        self.power = real_in(power, "PolynomialDecay: power", "[0, inf)")
        self.cycle = boolean(cycle, "PolynomialDecay: cycle")
        self.name = name

    def __call__(self, step: int) -> float:
        """Return the learning rate after so many calls."""
        if self.cycle:
            cycles = max(-(-step // self.decay_steps), 1)  # rounded up
            done = min(step / (self.decay_steps * cycles), 1)
        else:
            done = min(step, self.decay_steps) / self.decay_steps
        fall = self.initial_learning_rate - self.end_learning_rate
        return fall * float((1 - done) ** self.power) + self.end_learning_rate


@register
class InverseTimeDecay(LearningRateSchedule):
    """Decay like one over time.

    At step s::

        lr = initial_learning_rate / (1 + decay_rate * s / decay_steps)

    With ``staircase=True`` s / decay_steps is rounded down.

    Args:
        initial_learning_rate: the learning rate at step 0.
        decay_steps: how many steps count as one unit of time, in (0, inf).
        decay_rate: in [0, inf).
        staircase: fall every ``decay_steps`` steps only.
        name: the schedule's name.

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind.

    >>> schedule = InverseTimeDecay(1.0, decay_steps=1, decay_rate=1.0)
    >>> [schedule(step) for step in (0, 1, 3)]
    [1.0, 0.5, 0.25]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str = "InverseTimeDecay",
    ) -> None:
        self.initial_learning_rate = real_in(initial_learning_rate, "InverseTimeDecay: initial_learning_rate")
        self.decay_steps = _steps(decay_steps, "InverseTimeDecay: decay_steps")
        self.decay_rate = real_in(decay_rate, "InverseTimeDecay: decay_rate", "[0, inf)")
        self.staircase = boolean(staircase, "InverseTimeDecay: staircase")
        self.name = name

    def __call__(self, step: int) -> float:
        """Return the learning rate after so many calls."""
        if self.staircase:
            return self.initial_learning_rate / (1 + self.decay_rate * _stages(step, self.decay_steps))
        return self.initial_learning_rate / (1 + self.decay_rate * step / self.decay_steps)


@register
class CosineDecay(LearningRateSchedule):
    """Half a wave of the cosine down to a part of the learning rate, after a linear warmup if asked for.

    At step s, with D = ``decay_steps``::

        lr = initial_learning_rate * ((1 - alpha) * 0.5 * (1 + cos(pi * min(s, D)/D)) + alpha)

    With a warmup of W steps to a target T::

        lr = (T - initial_learning_rate) * s/W + initial_learning_rate    for s < W

    and then the cosine from T, in D more steps.

    Args:
        initial_learning_rate: the learning rate at step 0.
        decay_steps: how many steps it falls, in (0, inf), those of the warmup not counted.
        alpha: which part of the rate is left at the end.
        name: the schedule's name.
        warmup_target: the learning rate at the end of the warmup; None for no warmup.
        warmup_steps: in [0, inf); needs a warmup target.

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind, or warmup steps have
            no target.

    Reference: Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm restarts",
    arXiv:1608.03983.

    >>> schedule = CosineDecay(0.0, decay_steps=4, warmup_target=1.0, warmup_steps=2)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 4, 6)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        alpha: float = 0.0,
        name: str = "CosineDecay",
        warmup_target: float | None = None,
        warmup_steps: float = 0,
    ) -> None:
        self.initial_learning_rate = real_in(initial_learning_rate, "CosineDecay: initial_learning_rate")
        self.decay_steps = _steps(decay_steps, "CosineDecay: decay_steps")
        self.alpha = real_in(alpha, "CosineDecay: alpha")
        self.name = name
        self.warmup_target = (
            None if warmup_target is None else real_in(warmup_target, "CosineDecay: warmup_target")
        )
        self.warmup_steps = _steps(warmup_steps, "CosineDecay: warmup_steps", "[0, inf)")
        if self.warmup_steps and self.warmup_target is None:
            raise ValueError(
                f"CosineDecay: warmup_steps is {self.warmup_steps} and warmup_target None, it must be the"
                " learning rate to warm up to; give both or neither"
            )

    def __call__(self, step: int) -> float:
        """Return the learning rate after so many calls."""
        start, past = self.initial_learning_rate, float(step)
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return (self.warmup_target - start) * (step / self.warmup_steps) + start
            start, past = self.warmup_target, step - self.warmup_steps
        done = min(past, self.decay_steps) / self.decay_steps
        return start * ((1 - self.alpha) * 0.5 * (1 + math.cos(math.pi * done)) + self.alpha)


@register
class CosineDecayRestarts(LearningRateSchedule):
    """Half waves of the cosine, one after another, each longer or lower than the one before.

    Cycle i, from 0, has ``first_decay_steps * t_mul^i`` steps. At the part x of it, in [0, 1)::

        lr = initial_learning_rate * ((1 - alpha) * 0.5 * m_mul^i * (1 + cos(pi * x)) + alpha)

    Args:
        initial_learning_rate: the learning rate at step 0.
        first_decay_steps: how many steps the first cycle has, in (0, inf).
        t_mul: how many times as long each cycle is, in [1, inf).
        m_mul: how many times as high each cycle begins, in [0, inf).
        alpha: which part of the first rate is left at the end of a cycle.
        name: the schedule's name.

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind.

    Reference: Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm restarts",
    arXiv:1608.03983.

    >>> schedule = CosineDecayRestarts(1.0, first_decay_steps=2, m_mul=0.5)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 4, 6)]
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: float,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str = "SGDRDecay",
    ) -> None:
        who = "CosineDecayRestarts"
        self.initial_learning_rate = real_in(initial_learning_rate, f"{who}: initial_learning_rate")
        self.first_decay_steps = _steps(first_decay_steps, f"{who}: first_decay_steps")
        self.t_mul = real_in(t_mul, f"{who}: t_mul", "[1, inf)")
        self.m_mul = real_in(m_mul, f"{who}: m_mul", "[0, inf)")
        self.alpha = real_in(alpha, f"{who}: alpha")
        self.name = name

    def __call__(self, step: int) -> float:
        """Return the learning rate after so many calls."""
        cycle, position, length = self._cycle_of(step)
        wave = 0.5 * _power(self.m_mul, cycle) * (1 + math.cos(math.pi * (position / length)))
        return self.initial_learning_rate * ((1 - self.alpha) * wave + self.alpha)

    def _cycle_of(self, step: int) -> tuple[float, float, float]:
        """Return the number of the cycle, how many steps of it are past, and its length.

        Logarithms would miss a restart by their rounding.
        """
        if self.t_mul == 1:
            return (*divmod(step, self.first_decay_steps), self.first_decay_steps)
        cycle, start, length = 0, 0.0, float(self.first_decay_steps)
        while step >= start + length:
            cycle, start, length = cycle + 1, start + length, length * self.t_mul
        return cycle, step - start, length


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose values are equal or not as a whole, where arrays would be by element."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        values[name] = value
        with suppress(TypeError, NotImplementedError):  # what is not plain data stays as it is
            values[name] = plain(value, name)
    return values


def _steps(value: Any, what: str, interval: str = "(0, inf)") -> int | float:
    """Return a number of steps; a whole one as an integer, for exact divisions."""
    number = real_in(value, what, interval)
    return int(number) if number.is_integer() else number


def _stages(step: int, decay_steps: float) -> float:
    """Return how many stages of a staircase are past: the quotient as it is rounded, rounded down."""
    quotient = step / decay_steps
    return math.floor(quotient) if math.isfinite(quotient) else quotient


def _items(values: Any, what: str) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{what} must be a list, got {values!r} of type {type(values).__name__}") from None


def _power(base: float, exponent: float) -> float:
    """Return the power, infinite where it is beyond all floats; optimizers refuse to step with that."""
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf
