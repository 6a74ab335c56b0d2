"""Schedules: formulas at their edges, arguments, configurations, and steps with them."""

import copy
import math
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusedstep
from fusedstep import SGD, Adam
from fusedstep.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)
from reference import Reference, same_bits

EXAMPLES: list[LearningRateSchedule] = [
    ExponentialDecay(0.1, 4, 0.5),
    ExponentialDecay(0.1, 2.5, 0.5, staircase=True, name="mine"),
    PiecewiseConstantDecay([3, 6.5], [0.1, 0.05, 0.01]),
    PiecewiseConstantDecay([], [0.1]),
    PolynomialDecay(0.1, 8),
    PolynomialDecay(0.1, 8, end_learning_rate=0.01, power=0.5, cycle=True),
    InverseTimeDecay(0.1, 3, 0.5),
    InverseTimeDecay(0.1, 3, 0.5, staircase=True),
    CosineDecay(0.1, 10, alpha=0.1),
    CosineDecay(0.01, 10, warmup_target=0.1, warmup_steps=4),
    CosineDecayRestarts(0.1, 4, t_mul=1.5, m_mul=0.9, alpha=0.1),
    CosineDecayRestarts(0.1, 4, t_mul=1.0),
]
every_schedule = pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)


# Formulas.


def test_at_a_boundary_the_rate_is_still_that_of_its_left() -> None:
    schedule = PiecewiseConstantDecay([3, 6], [1.0, 0.5, 0.25])
    assert [schedule(step) for step in (0, 3, 4, 6, 7, 10**12)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert PiecewiseConstantDecay([], [0.5])(7) == 0.5


@pytest.mark.parametrize(("decay_steps", "step", "stages"), [(100 / 3, 100, 3), (156.3, 1563, 10)])
def test_staircases_round_the_quotient_down(decay_steps: float, step: int, stages: int) -> None:
    """As floor(step / decay_steps) says; step // decay_steps falls a step later."""
    assert ExponentialDecay(1.0, decay_steps, 0.5, staircase=True)(step) == 0.5**stages
    assert InverseTimeDecay(1.0, decay_steps, 1.0, staircase=True)(step) == 1 / (1 + stages)


def test_staircases_fall_at_whole_multiples() -> None:
    schedule = ExponentialDecay(1.0, 4, 0.5, staircase=True)
    assert [schedule(step) for step in (0, 3, 4, 7, 8)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    slower = InverseTimeDecay(1.0, 4, 1.0, staircase=True)
    assert [slower(step) for step in (0, 3, 4, 7, 8)] == [1.0, 1.0, 0.5, 0.5, 1 / 3]


def test_a_polynomial_cycle_begins_at_the_initial_rate_and_ends_at_each_multiple() -> None:
    schedule = PolynomialDecay(1.0, 4, end_learning_rate=0.0, cycle=True)
    assert [schedule(step) for step in (0, 2, 4, 6, 8, 10)] == [1.0, 0.5, 0.0, 0.25, 0.0, 1 - 10 / 12]


def test_a_warmup_is_a_line_to_its_target() -> None:
    schedule = CosineDecay(0.0, 10, alpha=0.5, warmup_target=2.0, warmup_steps=4)
    assert [schedule(step) for step in (0, 1, 3, 4, 14, 99)] == [0.0, 0.5, 1.5, 2.0, 1.0, 1.0]
    assert CosineDecay(0.5, 10, warmup_target=2.0)(0) == 2.0


@pytest.mark.parametrize("t_mul", [1, 1.5, 2, 3])
def test_restarts_are_where_the_cycles_end(t_mul: float) -> None:
    """Just at a sum of cycles' lengths the rate is the highest; with logarithms some are missed."""
    schedule = CosineDecayRestarts(1.0, 2**20, t_mul=t_mul, m_mul=0.5, alpha=0.0)
    start, length = 0, 2**20
    for cycle in range(20):
        assert schedule(start) == 0.5**cycle
        assert schedule(start + int(length) // 2) == pytest.approx(0.5**cycle / 2)
        assert start == 0 or schedule(start - 1) < 1e-9
        start, length = int(start + length), int(length * t_mul)
        if start != sum(2**20 * t_mul**i for i in range(cycle + 1)):
            break  # the cycle's length is not whole
    assert cycle > 15


def test_large_steps_take_no_time() -> None:
    begin = time.perf_counter()
    for t_mul in (1, 1.1, 2):
        assert 0 <= CosineDecayRestarts(0.1, 1, t_mul=t_mul, m_mul=1.0)(10**9) <= 0.1
    assert CosineDecayRestarts(1.0, 7, t_mul=1)(7 * 10**17) == 1.0, "integers, not floats"
    assert time.perf_counter() - begin < 1


def test_integer_rates_work_and_zero_is_no_trap() -> None:
    """An integer initial rate is a float; in Keras 0 stays 0 for ever."""
    assert CosineDecay(0, 10, warmup_target=1, warmup_steps=4)(2) == 0.5
    assert PolynomialDecay(0, 10, end_learning_rate=1)(5) == 0.5
    for schedule in (
        ExponentialDecay(1, 1, 1),
        PiecewiseConstantDecay([1], [1, 0]),
        InverseTimeDecay(1, 1, 1),
    ):
        assert type(schedule(0)) is float
    assert ExponentialDecay(1, 4, 0.5)(2) == math.sqrt(0.5)


def test_what_is_beyond_all_floats_is_refused_by_the_step() -> None:
    w, opt = np.zeros(1), SGD(ExponentialDecay(1.0, 1, 2.0))
    opt.apply([np.ones(1)], [w])
    opt._plans[0].calls = 5000
    with pytest.raises(ValueError, match="SGD: learning_rate must be finite in float64, got inf"):
        opt.apply([np.ones(1)], [w])
    assert w[0] == -1


@every_schedule
def test_rates_are_python_floats(schedule: LearningRateSchedule) -> None:
    assert {type(schedule(step)) for step in range(40)} == {float}
    assert math.isfinite(schedule(10**12))


rates = st.floats(-10, 10)
parts = st.floats(0, 1)
lengths = st.integers(1, 10**6) | st.floats(0.01, 1e6)
steps = st.integers(0, 10**12)


@given(rates, lengths, parts, st.booleans(), steps)
def test_exponential_and_inverse_time_fall_between_the_rate_and_0(
    rate: float, length: float, part: float, staircase: bool, step: int
) -> None:
    for cls in (ExponentialDecay, InverseTimeDecay):
        schedule = cls(rate, length, part, staircase)
        assert schedule(0) == rate
        assert abs(schedule(step + 1)) <= abs(schedule(step)) <= abs(rate)


@given(rates, rates, lengths, st.floats(0, 5), st.booleans(), steps)
def test_polynomials_stay_between_their_ends(
    rate: float, end: float, length: float, power: float, cycle: bool, step: int
) -> None:
    schedule = PolynomialDecay(rate, length, end, power, cycle)
    low, high = min(rate, end), max(rate, end)
    assert low - 1e-12 <= schedule(step) <= high + 1e-12
    assert schedule(0) == pytest.approx(rate, abs=1e-12)


@given(st.floats(0, 10), lengths, parts, st.floats(1, 3), parts, steps)
def test_cosines_stay_between_alpha_and_the_rate(
    rate: float, length: float, alpha: float, t_mul: float, m_mul: float, step: int
) -> None:
    t_mul = 1.0 if t_mul < 1.01 else t_mul
    for schedule in (
        CosineDecay(rate, length, alpha),
        CosineDecayRestarts(rate, length, t_mul, m_mul, alpha),
    ):
        assert rate * alpha * (1 - 1e-12) <= schedule(step) <= rate * (1 + 1e-12)
        assert schedule(0) == pytest.approx(rate)


@given(st.lists(st.integers(0, 100), unique=True).map(sorted), steps)
def test_piecewise_constants_count_the_boundaries_below(boundaries: list[int], step: int) -> None:
    schedule = PiecewiseConstantDecay(boundaries, range(len(boundaries) + 1))
    assert schedule(step) == sum(boundary < step for boundary in boundaries)


# Arguments.

REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: ExponentialDecay(math.nan, 1, 1),
        r"ValueError: ExponentialDecay: initial_learning_rate must be finite, got nan",
    ),
    (
        lambda: ExponentialDecay("0.1", 1, 1),  # type: ignore[arg-type]
        "TypeError: ExponentialDecay: initial_learning_rate must be a real number, got '0.1' of type str",
    ),
    (
        lambda: ExponentialDecay(0.1, 0, 1),
        r"ValueError: ExponentialDecay: decay_steps must lie in \(0, inf\), got 0.0",
    ),
    (
        lambda: ExponentialDecay(0.1, 1, -0.5),
        r"ValueError: ExponentialDecay: decay_rate must lie in \[0, inf\), got -0.5",
    ),
    (
        lambda: ExponentialDecay(0.1, 1, 0.5, staircase=1),  # type: ignore[arg-type]
        "TypeError: ExponentialDecay: staircase must be True or False, got 1",
    ),
    (
        lambda: InverseTimeDecay(0.1, 1, -1),
        r"ValueError: InverseTimeDecay: decay_rate must lie in \[0, inf\), got -1.0",
    ),
    (
        lambda: PolynomialDecay(0.1, 1, power=-1),
        r"ValueError: PolynomialDecay: power must lie in \[0, inf\), got -1.0",
    ),
    (
        lambda: PolynomialDecay(0.1, math.inf),
        r"ValueError: PolynomialDecay: decay_steps must lie in \(0, inf\), got inf",
    ),
    (
        lambda: CosineDecay(0.1, 10, warmup_steps=5),
        "ValueError: CosineDecay: warmup_steps is 5 and warmup_target None, it must be the learning rate to"
        " warm up to; give both or neither",
    ),
    (
        lambda: CosineDecay(0.1, 10, warmup_target=1, warmup_steps=-1),
        r"ValueError: CosineDecay: warmup_steps must lie in \[0, inf\), got -1.0",
    ),
    (
        lambda: CosineDecayRestarts(0.1, 10, t_mul=0.5),
        r"ValueError: CosineDecayRestarts: t_mul must lie in \[1, inf\), got 0.5",
    ),
    (
        lambda: CosineDecayRestarts(0.1, 10, m_mul=-1),
        r"ValueError: CosineDecayRestarts: m_mul must lie in \[0, inf\), got -1.0",
    ),
    (
        lambda: PiecewiseConstantDecay([1, 2], [0.1, 0.2]),
        "ValueError: PiecewiseConstantDecay: there must be one more value than boundaries, got 2 values and 2"
        " boundaries",
    ),
    (
        lambda: PiecewiseConstantDecay([1, 1], [0.1, 0.2, 0.3]),
        r"ValueError: PiecewiseConstantDecay: boundaries\[1\] must be greater than 1, got 1",
    ),
    (
        lambda: PiecewiseConstantDecay(5, [0.1, 0.2]),  # type: ignore[arg-type]
        "TypeError: PiecewiseConstantDecay: boundaries must be a list, got 5 of type int",
    ),
    (
        lambda: PiecewiseConstantDecay([1], [0.1, math.inf]),
        r"ValueError: PiecewiseConstantDecay: values\[1\] must be finite, got inf",
    ),
    (
        lambda: SGD(LearningRateSchedule()).learning_rate,
        "NotImplementedError: LearningRateSchedule: the base class gives no learning rate; define"
        r" __call__\(step\)",
    ),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSALS, ids=[row[1][:60] for row in REFUSALS])
def test_bad_arguments(make: Callable[[], Any], sentence: str) -> None:
    kind, _, text = sentence.partition(": ")
    with pytest.raises(Exception, match=f"^{text}$") as caught:
        make()
    assert type(caught.value).__name__ == kind


@every_schedule
def test_configuration_round_trip(schedule: LearningRateSchedule) -> None:
    config = schedule.get_config()
    twin = type(schedule).from_config(config)
    assert twin == schedule
    assert twin.get_config() == config
    assert [twin(step) for step in range(40)] == [schedule(step) for step in range(40)]
    for value in config.values():
        if isinstance(value, list):
            value.append(7.0)
    assert schedule == twin, "a configuration is a copy"
    assert eval(repr(schedule), vars(fusedstep)) == schedule


def test_arguments_without_names_have_no_configuration() -> None:
    """They were written under the name of all of them, and read as one argument of this name."""

    class Pieces(LearningRateSchedule):
        def __init__(self, *rates: float) -> None:
            self.rates = rates

    class Other(LearningRateSchedule):
        def __init__(self, **others: Any) -> None:
            self.others = others

    for schedule, text in ((Pieces(1.0, 2.0), r"Pieces: \*rates"), (Other(a=1), r"Other: \*\*others")):
        with pytest.raises(NotImplementedError, match=f"^{text}.* in __init__ .*, or define get_config$"):
            schedule.get_config()
        assert "Pieces" in repr(schedule) or "Other" in repr(schedule)


def test_equality_is_of_class_and_configuration() -> None:
    for left in EXAMPLES:
        assert [right for right in EXAMPLES if left == right] == [left]
    assert ExponentialDecay(0.1, 4.0, 0.5) == EXAMPLES[0]
    assert InverseTimeDecay(0.1, 4, 0.5) != EXAMPLES[0]
    assert EXAMPLES[0] != 0.1


@every_schedule
def test_copies_are_equal(schedule: LearningRateSchedule) -> None:
    assert copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule)) == schedule


# Of one's own.


class Linear(LearningRateSchedule):
    def __init__(self, slope: float, start: float = 1.0) -> None:
        self.slope = slope
        self.start = start

    def __call__(self, step: int) -> float:
        return self.start - self.slope * step


class Forgetful(LearningRateSchedule):
    def __init__(self, slope: float) -> None:
        self._slope = slope

    def __call__(self, step: int) -> float:
        return self._slope * step


def test_ones_own_schedule_has_configuration_repr_and_equality() -> None:
    assert Linear(0.25).get_config() == {"slope": 0.25, "start": 1.0}
    assert Linear.from_config({"slope": 0.25}) == Linear(0.25)
    assert repr(Linear(0.25)) == "Linear(slope=0.25)"
    assert Linear(0.25) != Linear(0.5)


def test_a_schedule_of_another_class_is_another_one() -> None:
    """Also with the same arguments."""

    class Further(Linear):
        pass

    assert Further(0.25) != Linear(0.25)
    assert Further(0.25) == Further(0.25)


def test_ones_own_configuration_may_have_other_names_than_the_arguments() -> None:
    class Renamed(Linear):
        def get_config(self) -> dict[str, Any]:
            return {"steepness": self.slope, "start": self.start}

    assert repr(Renamed(0.25)) == "Renamed(steepness=0.25)"
    assert Renamed(0.25) == Renamed(0.25) != Renamed(0.5)


class Table(LearningRateSchedule):
    def __init__(self, rates: Any, factor: Any = 1.0) -> None:
        self.rates = np.asarray(rates)
        self.factor = factor

    def __call__(self, step: int) -> float:
        return float(self.rates[step])


def test_ones_own_schedule_may_have_arrays() -> None:
    """They are equal or not by element, which is no answer to whether a schedule is another one."""
    table = Table([0.5, 0.25])
    assert repr(SGD(table)) == "SGD(learning_rate=Table(rates=array([0.5 , 0.25])))"
    assert table == Table(np.array([0.5, 0.25])) != Table([0.5, 0.5])
    assert table != Table([0.5, 0.25, 0.125])
    assert Table([0.5], factor=abs) == Table([0.5], factor=abs) != Table([0.5], factor=max)
    assert copy.deepcopy(table) == Table.from_config(table.get_config()) == table


def test_ones_own_schedule_may_have_one_without_a_configuration() -> None:
    """To print or compare it ended with NotImplementedError, or said that it was another one."""
    inner = Forgetful(0.5)
    table = Table([0.5], factor=inner)
    assert repr(table).startswith("Table(rates=array([0.5]), factor=<")
    assert table == Table([0.5], factor=inner)
    assert table != Table([0.5], factor=Forgetful(0.5))


def test_a_schedule_without_a_configuration_says_what_to_do() -> None:
    schedule = Forgetful(0.5)
    with pytest.raises(
        NotImplementedError, match=r"Forgetful: the argument slope is no attribute; keep it as self\.slope"
    ):
        schedule.get_config()
    assert "Forgetful object" in repr(schedule)
    assert schedule == schedule
    assert (schedule == Forgetful(0.5)) is False


# Steps.


def test_steps_take_the_schedules_rates() -> None:
    w, opt = np.zeros(1), SGD(Linear(0.25))
    for step in range(4):
        assert opt.learning_rate == 1 - 0.25 * step
        opt.apply([np.ones(1)], [w])
    assert w[0] == -(1 + 0.75 + 0.5 + 0.25)
    opt.learning_rate = PiecewiseConstantDecay([4], [0.5, 0.25])
    opt.apply([np.ones(1)], [w])
    opt.apply([np.ones(1)], [w])
    assert w[0] == -3.25
    assert repr(Adam(Linear(0.25))) == "Adam(learning_rate=Linear(slope=0.25))"


def test_steps_have_the_references_bits() -> None:
    """Calls that are left out are none of the schedule's."""
    optimizer = Adam(ExponentialDecay(0.1, 2, 0.5), skip_nonfinite=True)
    variable = np.ones(5, np.float32)
    reference = Reference(optimizer, [variable])
    for gradient in (0.5, np.inf, -0.25, 0.125):
        grads = [np.full(5, gradient, np.float32)]
        optimizer.apply(grads, [variable])
        reference.apply(grads)
    assert optimizer.skipped_calls == 1
    assert same_bits(variable, reference.variables[0])
