"""State: copies and pickles that continue, builds that are dropped, and who keeps what alive."""

import copy
import gc
import itertools
import pickle
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from conftest import check_that_other_bases_hear_of_subclasses
from fusedstep import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    CustomOptimizer,
    Ftrl,
    LearningRateSchedule,
    Nadam,
    Optimizer,
    RMSprop,
    hyperparameter,
)

Array = npt.NDArray[Any]

MAKERS: list[Callable[[], Optimizer]] = [
    lambda: SGD(0.01),
    lambda: SGD(0.01, momentum=0.9, form="torch", dampening=0.5),
    lambda: Adam(0.01, epsilon_hat=True),
    lambda: AdamW(0.01, amsgrad=True, weight_decay=0.1),
    lambda: RMSprop(0.01, centered=True, momentum=0.9, maximize=True),
    lambda: Adagrad(0.01, form="torch", learning_rate_decay=0.1, l2=0.1),
    lambda: Nadam(0.01, momentum_decay=0.5),
    lambda: Ftrl(0.01, initial_accumulator_value=0.5, l1_regularization_strength=0.1),
]
every_optimizer = pytest.mark.parametrize("make", MAKERS, ids=lambda make: repr(make()))


def by_pickle(protocol: int) -> Callable[[Any], Any]:
    return lambda optimizer: pickle.loads(pickle.dumps(optimizer, protocol))


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    **{f"pickle {protocol}": by_pickle(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy of a copy": lambda optimizer: by_pickle(4)(copy.deepcopy(optimizer)),
}
SHAPES: list[tuple[int, ...]] = [(5,), (2, 3), (), (0,), (700,)]
DTYPES = [np.float32, np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def model(seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(s)).astype(d) for s, d in zip(SHAPES, DTYPES, strict=True)]


def bits(optimizer: Optimizer, variables: list[Array]) -> list[bytes]:
    return [array.tobytes() for array in (*variables, *optimizer.variables)]


def half_rate(step: int) -> float:
    return 0.5 / (1 + step)


# Copies and pickles.


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("steps", [0, 3])
@every_optimizer
def test_copies_continue_to_the_same_bits(make: Callable[[], Optimizer], steps: int, how: str) -> None:
    """Configuration, counts and slots come along; the variables are bound again at the next build."""
    opt, variables = make(), model()
    opt.build(variables)
    for step in range(steps):
        opt.apply(model(step + 1), variables)
    twin, twins = COPIES[how](opt), [v.copy() for v in variables]
    assert type(twin) is type(opt)
    assert twin.get_config() == opt.get_config()
    assert twin.iterations == opt.iterations == steps
    assert twin.variables == []
    twin.build(twins)
    assert bits(twin, twins) == bits(opt, variables)
    assert twin.iterations == steps
    for step in range(2):
        assert twin.apply(model(step + 9), twins) == steps + step + 1
        assert opt.apply(model(step + 9), variables) == steps + step + 1
    assert bits(twin, twins) == bits(opt, variables)


@pytest.mark.parametrize("option", [{"gradient_accumulation_steps": 4}, {"use_ema": True}], ids=repr)
@pytest.mark.parametrize("how", COPIES)
def test_slots_of_an_option_that_was_turned_off_come_along(how: str, option: dict[str, Any]) -> None:
    opt, variables = Adam(0.01, **option), model()
    for step in range(4):
        opt.apply(model(step), variables)
    for name in option:
        setattr(opt, name, type(opt)().get_config()[name])
    opt.apply(model(5), variables)
    twin, twins = COPIES[how](opt), [v.copy() for v in variables]
    assert twin.apply(model(6), twins) == opt.apply(model(6), variables) == 6
    assert bits(twin, twins) == bits(opt, variables)


@pytest.mark.parametrize("how", COPIES)
def test_settings_of_single_variables_come_along(how: str) -> None:
    """Those made before the build too, of arrays that are copied with the optimizer; later ones count."""
    w, opt = np.ones(1), SGD(1.0, weight_decay=0.5)
    opt.exclude_from_weight_decay([w])
    twin, v = COPIES["copy"](opt), w.copy()
    twin.apply([np.zeros(1)], [w])
    assert w[0] == 1
    if how != "copy":
        twin, v = COPIES[how]((opt, w)) if how != "copy of a copy" else COPIES["deepcopy"]((opt, w))
        twin.apply([np.zeros(1)], [v])
        assert v[0] == 1

    w, opt = np.ones(1), SGD(1.0)
    opt.build({"w": w})
    opt.adjust("w", learning_rate_multiplier=0.5)
    opt.adjust(w, learning_rate_multiplier=0.25)
    for later in (None, 2.0):
        twin, v = COPIES[how](opt), np.zeros(1)
        if later is not None:
            twin.adjust("w", learning_rate_multiplier=later)
        twin.apply({"w": np.ones(1)}, {"w": v})
        assert v[0] == -(later or 0.25)


@pytest.mark.parametrize("how", COPIES)
def test_settings_of_several_builds_come_along(how: str) -> None:
    """Of each build those that it had, whichever is built before."""
    models = [{"w": np.zeros(2)} for _ in range(2)]
    opt = SGD(1.0)
    for one in models:
        opt.build(one)
    opt.adjust("w", learning_rate_multiplier=0.5)
    opt.adjust(models[1]["w"], learning_rate_multiplier=2.0)
    twin, others = COPIES[how](opt), [{"w": np.zeros(2)} for _ in range(2)]
    for one in others:
        twin.build(one)
    for one in others:
        twin.apply({"w": np.ones(2)}, one)
    assert [one["w"][0] for one in others] == [-0.5, -2.0]


@pytest.mark.parametrize("how", COPIES)
def test_settings_made_between_two_copies_come_along(how: str) -> None:
    opt = SGD(1.0)
    opt.build({"w": np.zeros(2)})
    opt.adjust("w", learning_rate_multiplier=0.5)
    waiting = copy.copy(opt)
    waiting.adjust("w", learning_rate_multiplier=2.0)
    twin, w = COPIES[how](waiting), np.zeros(2)
    twin.apply({"w": np.ones(2)}, {"w": w})
    assert w[0] == -2


@pytest.mark.parametrize("how", COPIES)
def test_settings_of_single_variables_follow_their_names(how: str) -> None:
    opt = SGD(1.0)
    opt.build({"a": np.zeros(2), "b": np.zeros(2)})
    opt.adjust(opt._plan.variable(0), learning_rate_multiplier=0.5)  # type: ignore[union-attr]
    twin, (a, b) = COPIES[how](opt), (np.zeros(2), np.zeros(2))
    twin.build({"b": b, "a": a})
    twin.apply([np.ones(2), np.ones(2)], [b, a])
    assert (a[0], b[0]) == (-0.5, -1.0)


def test_settings_that_a_copy_carries_count_more_than_those_that_came_before() -> None:
    """By whatever selector."""
    w, v, opt = np.zeros(1), np.zeros(1), SGD(1.0)
    opt.adjust(v, learning_rate_multiplier=0.25)
    opt.adjust("w", learning_rate_multiplier=0.5)
    opt.build({"w": w})
    opt.adjust(w, learning_rate_multiplier=2.0)
    twin = copy.copy(opt)
    twin.build({"w": v})
    twin.apply([np.ones(1)])
    assert v[0] == -2


@pytest.mark.parametrize("named", [True, False], ids=["named", "listed"])
@pytest.mark.parametrize("how", COPIES)
def test_variables_with_names_in_one_place_alone_are_matched_in_order(how: str, named: bool) -> None:
    def built(opt: SGD, arrays: list[Array], by_name: bool) -> SGD:
        opt.build(dict(zip("ba", arrays, strict=True)) if by_name else arrays)
        return opt

    opt = built(SGD(1.0, momentum=0.5), [np.zeros(2), np.zeros(3)], named)
    opt.apply([np.ones(2), np.full(3, 2.0)])
    opt.adjust(opt._plan.variable(1), learning_rate_multiplier=0.5)  # type: ignore[union-attr]
    ws = [np.zeros(2), np.zeros(3)]
    twin = built(COPIES[how](opt), ws, not named)
    assert [twin.slots(w)["momentum"][0] for w in ws] == [-1, -2]
    twin.apply([np.zeros(2), np.full(3, 2.0)])
    assert [w[0] for w in ws] == [-0.5, -1 - 1]


def test_a_copy_knows_what_was_counted_before_it_is_built() -> None:
    opt, w = SGD(1.0, skip_nonfinite=True), np.zeros(1)
    for value in (1.0, np.inf, np.nan):
        opt.apply([np.full(1, value)], [w])
    twin = copy.deepcopy(opt)
    assert (twin.iterations, twin.skipped_calls) == (opt.iterations, opt.skipped_calls) == (1, 2)


def test_a_loaded_state_leaves_the_settings_of_single_variables() -> None:
    w, opt = np.ones(1), SGD(1.0)
    opt.build([w])
    opt.adjust(w, frozen=True)
    twin, v = copy.deepcopy(opt), np.zeros(1)
    twin.load_state_dict(opt.state_dict())
    twin.apply([np.ones(1)], [v])
    assert v[0] == 0


def test_a_state_that_is_loaded_over_a_copy_s_keeps_the_order_of_its_settings() -> None:
    """The later one counts, whatever named the variable."""
    w, v, opt = np.zeros(1), np.zeros(1), SGD(1.0)
    opt.adjust("w", learning_rate_multiplier=0.5)
    opt.build({"w": w})
    opt.adjust(w, learning_rate_multiplier=2.0)
    twin = copy.copy(opt)
    twin.load_state_dict(opt.state_dict())
    twin.build({"w": v})
    twin.apply([np.ones(1)])
    assert v[0] == -2


@pytest.mark.parametrize("others", [{"v": (1,)}, {"w": (2,)}, {"w": (1,), "v": (1,)}], ids=str)
def test_a_state_of_other_variables_has_no_settings_of_those_before(others: dict[str, Any]) -> None:
    opt = SGD(1.0)
    opt.build({"w": np.zeros(1)})
    opt.adjust(opt._plan.variable(0), frozen=True)  # type: ignore[union-attr]
    other = SGD(1.0)
    other.build({name: np.zeros(shape) for name, shape in others.items()})
    twin, ws = copy.copy(opt), {name: np.zeros(shape) for name, shape in others.items()}
    twin.load_state_dict(other.state_dict())
    twin.build(ws)
    twin.apply([np.ones(shape) for shape in others.values()])
    assert all((w == -1).all() for w in ws.values())


def test_what_build_refuses_at_its_end_leaves_the_state_that_waits() -> None:
    class Refusing(SGD):
        refuses = False

        def _configure(self, plan: Any) -> None:
            if self.refuses:
                raise ZeroDivisionError
            super()._configure(plan)

    opt, w = Refusing(1.0, momentum=0.5), np.zeros(1)
    opt.apply([np.ones(1)], [w])
    twin, v = copy.copy(opt), w.copy()
    Refusing.refuses = True
    with pytest.raises(ZeroDivisionError):
        twin.build([v])
    Refusing.refuses = False
    assert twin.apply([np.ones(1)], [v]) == 2
    assert v[0] == -2.5


class Tripled(SGD):
    """A class with arguments of its own, in the manner of Keras."""

    def __init__(self, third: float = 0.5) -> None:
        super().__init__(learning_rate=3 * third, momentum=0.5)
        self._third = third

    def get_config(self) -> dict[str, Any]:
        return {"third": self._third}


@pytest.mark.parametrize("how", COPIES)
def test_classes_with_arguments_of_their_own(how: str) -> None:
    opt, w = Tripled(0.25), np.zeros(1)
    opt.apply([np.ones(1)], [w])
    twin, v = COPIES[how](opt), w.copy()
    assert twin.apply([np.ones(1)], [v]) == opt.apply([np.ones(1)], [w]) == 2
    assert (twin._third, v[0]) == (0.25, w[0])
    assert repr(twin) == "Tripled(learning_rate=0.75, momentum=0.5)"
    again = opt.clone()
    again.load_state_dict(opt.state_dict())
    assert (again.learning_rate, again.iterations) == (0.75, 2)


class Sized(SGD):
    """A class whose __init__ takes what no configuration has, and with a count of its own."""

    def __init__(self, size: int) -> None:
        super().__init__(learning_rate=1 / size)
        self._seen: list[int] = [size]


class Keeping(SGD):
    """A class that adds to the configuration, as Keras' do."""

    def get_config(self) -> dict[str, Any]:
        return dict(super().get_config())


class Halving(LearningRateSchedule):  # not registered
    def __call__(self, step: int) -> float:
        return 0.5 ** (step + 1)


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_what_their_original_has_by_then(how: str) -> None:
    """Attributes of a subclass, what its __init__ was given, and a rate that get_config does not tell."""
    opt, w = Sized(4), np.zeros(1)
    opt._seen.append(3)
    opt.learning_rate = 0.5
    opt.apply([np.ones(1)], [w])
    twin = COPIES[how](opt)
    assert (twin._seen, twin.learning_rate, twin.iterations) == ([4, 3], 0.5, 1)
    assert (twin._seen is opt._seen) == (how == "copy")
    other = Tripled(0.25)
    other.learning_rate = 0.5
    assert COPIES[how](other).learning_rate == 0.5


@pytest.mark.parametrize("how", [*COPIES, "clone"])
def test_schedules_that_are_not_registered_come_along(how: str) -> None:
    opt = Keeping(Halving(), momentum=0.5)
    twin = opt.clone() if how == "clone" else COPIES[how](opt)
    assert repr(twin) == "Keeping(learning_rate=Halving(), momentum=0.5)"
    assert twin.learning_rate == 0.5


def test_a_class_does_not_hide_a_hyperparameter() -> None:
    with pytest.raises(
        TypeError, match=r"Hiding: momentum = 0\.5 would hide the hyperparameter momentum; give"
    ):
        type("Hiding", (SGD,), {"momentum": 0.5})


@pytest.mark.parametrize("value", [0.5, hyperparameter(default=0.5, meaning="step size")])
def test_a_new_default_of_the_learning_rate(value: Any) -> None:
    """As a hyperparameter it was a number alone: schedules were refused."""
    with pytest.raises(
        TypeError,
        match=r"^Other: learning_rate cannot be declared anew: .* __init__\(self, learning_rate=",
    ):
        type("Other", (SGD,), {"learning_rate": value})

    class Slow(SGD):
        def __init__(self, learning_rate: Any = 0.5, **others: Any) -> None:
            super().__init__(learning_rate=learning_rate, **others)

    assert (Slow().learning_rate, Slow(Halving()).clone().learning_rate) == (0.5, 0.5)


def test_other_bases_of_a_class_of_one_s_own_hear_of_it() -> None:
    check_that_other_bases_hear_of_subclasses(AdamW)


def test_an_interrupt_right_after_the_first_step_leaves_what_it_did() -> None:
    """A signal comes when the native call is over, and finds the step taken."""

    class Plan:
        def __init__(self, plan: Any) -> None:
            self.plan = plan

        def __getattr__(self, name: str) -> Any:
            return getattr(self.plan, name)

        def step(self, *arguments: Any) -> Any:
            self.plan.step(*arguments)
            raise KeyboardInterrupt

    class Interrupted(SGD):
        def build(self, variables: Any) -> None:
            super().build(variables)
            self._plan = self._plans[-1] = Plan(self._plan)  # type: ignore[assignment, call-overload]

    opt, w = Interrupted(1.0, momentum=0.5), np.zeros(1)
    with pytest.raises(KeyboardInterrupt):
        opt.apply([np.ones(1)], [w])
    assert (w[0], opt.iterations) == (-1, 1)


def test_copies_build_in_their_first_step_too() -> None:
    opt, variables = Adam(0.01), model()
    opt.apply(model(1), variables)
    twin, twins = copy.deepcopy(opt), [v.copy() for v in variables]
    assert twin.apply(model(2), twins) == opt.apply(model(2), variables) == 2
    assert bits(twin, twins) == bits(opt, variables)


def test_a_copy_is_independent() -> None:
    opt, variables = Adam(0.01), model()
    opt.apply(model(1), variables)
    twin, twins = copy.deepcopy(opt), [v.copy() for v in variables]
    before = bits(opt, variables)
    twin.beta_1 = 0.5
    twin.learning_rate = 0.5
    twin.apply(model(2), twins)
    assert bits(opt, variables) == before
    assert (opt.beta_1, opt.learning_rate, opt.iterations) == (0.9, 0.01, 1)


def test_a_copy_carries_what_its_original_had_when_it_was_made() -> None:
    opt, variables = Adam(0.01), model()
    opt.apply(model(1), variables)
    twin, twins = copy.deepcopy(opt), [v.copy() for v in variables]
    expected = bits(opt, variables)
    opt.apply(model(2), variables)
    twin.build(twins)
    assert bits(twin, twins) == expected
    assert twin.iterations == 1


def test_several_builds_come_along_in_order() -> None:
    opt = Adam(0.01)
    models = [[np.ones(3)], [np.ones(4), np.ones(2)]]
    for number, variables in enumerate(models):
        opt.build(variables)
        for _ in range(number + 2):
            opt.apply([np.ones_like(v) for v in variables], variables)
    twin, copies = copy.deepcopy(opt), copy.deepcopy(models)
    twin.build(copies[0])
    between = pickle.loads(pickle.dumps(twin))
    twin.build(copies[1])
    assert twin.apply([np.ones(3)], copies[0]) == 3
    assert twin.apply([np.ones(4), np.ones(2)], copies[1]) == 4
    others = copy.deepcopy(models)
    for variables in others:
        between.build(variables)
    assert between.apply([np.ones(3)], others[0]) == 3
    assert between.apply([np.ones(4), np.ones(2)], others[1]) == 4
    assert bits(twin, copies[0] + copies[1]) == bits(between, others[0] + others[1])


def test_callable_learning_rates_come_along() -> None:
    opt, w = SGD(half_rate), np.zeros(1)
    opt.apply([np.ones(1)], [w])
    for how in COPIES.values():
        twin, v = how(opt), w.copy()
        twin.apply([np.ones(1)], [v])
        assert v[0] == -0.75
    assert copy.deepcopy(SGD(lambda: 0.5)).learning_rate == 0.5


class Falling:
    """A learning rate with a state of its own."""

    def __init__(self) -> None:
        self.rate = 1.0

    def __call__(self) -> float:
        self.rate /= 2
        return self.rate


@pytest.mark.parametrize("how", [name for name in COPIES if name != "copy"])
def test_learning_rates_with_a_state_are_copied(how: str) -> None:
    """Steps of a copy do not advance the schedule of its original."""
    opt, w = SGD(Falling()), np.zeros(1)
    twin, v = COPIES[how](opt), np.zeros(1)
    for one, array in ((opt, w), (twin, v), (twin, v), (opt, w)):
        one.apply([np.ones(1)], [array])
    assert w[0] == v[0] == -0.75


def test_what_cannot_be_pickled_is_named() -> None:
    """A lambda cannot; the sentence says that it is the learning rate, and what to do."""
    with pytest.raises((TypeError, ValueError, pickle.PicklingError, AttributeError), match="learning_rate"):
        pickle.dumps(SGD(lambda: 0.5))


def test_a_pickle_is_read_by_another_process(tmp_path: Path) -> None:
    opt, w = AdamW(0.01), np.linspace(-1, 1, 50)
    opt.apply([np.ones(50)], [w])
    (tmp_path / "state").write_bytes(pickle.dumps((opt, w)))
    opt.apply([np.ones(50)], [w])
    script = """
        import pickle, sys
        from pathlib import Path
        import numpy as np
        opt, w = pickle.loads(Path(sys.argv[1]).read_bytes())
        opt.apply([np.ones(50)], [w])
        print(opt.iterations, w.tobytes().hex())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["2", w.tobytes().hex()]


# A build of other variables than those that were copied.

MISMATCHES: list[tuple[str, Callable[[], list[Array]], str]] = [
    ("fewer", lambda: [np.zeros(3)], "2 variables are in the state, 1 here"),
    (
        "more",
        lambda: [np.zeros(3), np.zeros((2, 2), np.float32), np.zeros(1)],
        "2 variables are in the state, 3 here",
    ),
    (
        "another order",
        lambda: [np.zeros((2, 2), np.float32), np.zeros(3)],
        r"'0' has shape \(3,\) in the state, \(2, 2\) here; '0' has dtype float64 in the state, float32 here;"
        r" '1' has shape \(2, 2\) in the state, \(3,\) here; '1' has dtype float32 in the state, .* here",
    ),
    (
        "another shape",
        lambda: [np.zeros(3), np.zeros(4, np.float32)],
        r"'1' has shape \(2, 2\) in the state, \(4,\) here",
    ),
    (
        "another dtype",
        lambda: [np.zeros(3), np.zeros((2, 2))],
        "'1' has dtype float32 in the state, float64 here",
    ),
]


@pytest.mark.parametrize("make", [lambda: Adam(0.1), lambda: SGD(0.1)], ids=["Adam", "SGD without slots"])
@pytest.mark.parametrize("row", MISMATCHES, ids=[row[0] for row in MISMATCHES])
@pytest.mark.parametrize("way", ["build", "first step"])
def test_a_build_of_others_is_refused_and_changes_nothing(
    way: str, row: tuple[str, Callable[[], list[Array]], str], make: Callable[[], Optimizer]
) -> None:
    opt: Optimizer = make()
    variables: list[Array] = [np.ones(3), np.ones((2, 2), np.float32)]
    opt.apply([np.ones(3), np.ones((2, 2))], variables)
    twin, twins, others = copy.deepcopy(opt), [v.copy() for v in variables], row[1]()
    grads = [np.ones(v.shape) for v in others]
    sentence = (
        rf"\.build: the state that was copied or loaded is of other variables: {row[2]};"
        " build the same ones, in the same order"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=sentence):
            twin.build(others) if way == "build" else twin.apply(grads, others)
        assert all((v == 0).all() for v in others)
        assert twin.variables == []
        assert twin.iterations == 1
    twin.build(twins)
    assert twin.apply([np.ones(3), np.ones((2, 2))], twins) == 2
    opt.apply([np.ones(3), np.ones((2, 2))], variables)
    assert bits(twin, twins) == bits(opt, variables)


def test_a_refused_first_step_keeps_what_a_copy_carries() -> None:
    opt, w = Adam(0.1), np.ones(3)
    opt.apply([np.ones(3)], [w])
    twin, v = copy.deepcopy(opt), w.copy()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"grads\[0\] has shape \(4,\), its variable has \(3,\)"):
            twin.apply([np.ones(4)], [v])
        assert twin.variables == []
        assert twin.iterations == 1
    assert twin.apply([np.ones(3)], [v]) == opt.apply([np.ones(3)], [w]) == 2
    assert bits(twin, [v]) == bits(opt, [w])


def test_names_in_another_order_do_not_exchange_state() -> None:
    """Two variables of one shape, built by name: in another order state goes by name, or is refused."""
    opt, a, b = SGD(1.0, momentum=0.5), np.zeros(2), np.zeros(2)
    opt.apply({"a": np.ones(2), "b": np.full(2, 5.0)}, {"a": a, "b": b})
    twin, c, d = copy.deepcopy(opt), a.copy(), b.copy()
    try:
        twin.build({"b": d, "a": c})
    except ValueError:
        return
    assert (twin.slots(c)["momentum"] == -1).all()
    assert (twin.slots(d)["momentum"] == -5).all()


def test_a_copy_with_other_slots_is_refused() -> None:
    opt, w = Adam(0.1), np.ones(3)
    opt.apply([np.ones(3)], [w])
    twin = copy.deepcopy(opt)
    twin.amsgrad = True
    with pytest.raises(ValueError, match=r"'0' has the slots \['momentum', 'velocity'\] in the state"):
        twin.build([w.copy()])
    twin.amsgrad = False
    twin.build([w.copy()])
    assert twin.iterations == 1


# Forget.


def test_forget_drops_slots_and_counts() -> None:
    opt, a, b = SGD(1.0, momentum=0.5), np.zeros(2), np.zeros(3)
    opt.build({"a": a})
    opt.build([b])
    for _ in range(2):
        opt.apply([np.ones(3)], [b])
    opt.apply([np.ones(2)], [a])
    opt.forget({"a": a})
    assert opt.iterations == 2
    assert len(opt.variables) == 1
    with pytest.raises(KeyError):
        opt.slots(a)
    with pytest.raises(ValueError, match="never built"):
        opt.apply([np.ones(2)], [a])
    with pytest.raises(ValueError, match=r"SGD\.forget"):
        opt.forget([a])
    opt.build([a])
    assert opt.iterations == 0
    assert opt.apply([np.ones(2)], [a]) == 1
    assert (a == -2).all(), "the momentum began anew"
    assert opt.apply([np.ones(3)], [b]) == 3


def test_forget_leaves_the_build_that_was_stepped_last() -> None:
    """Steps without variables, and counts, are of that one, whichever others are forgotten."""
    opt, (a, b, c) = SGD(1.0), (np.zeros(1), np.zeros(1), np.zeros(1))
    for variable in (a, b, c):
        opt.build([variable])
    opt.apply([np.ones(1)], [a])
    opt.forget([b])
    assert (opt.iterations, opt.apply([np.ones(1)])) == (1, 2)
    assert (a[0], c[0]) == (-2, 0)
    opt.forget([a])
    assert opt.iterations == 0


def test_forget_everything_and_begin_anew() -> None:
    opt, w = Adam(0.1), np.ones(3)
    opt.apply([np.ones(3)], [w])
    opt.forget([w])
    assert (opt.variables, opt.iterations) == ([], 0)
    with pytest.raises(ValueError, match="no variables were built"):
        opt.apply([np.ones(3)])
    fresh, v = Adam(0.1), w.copy()
    assert opt.apply([np.ones(3)], [w]) == fresh.apply([np.ones(3)], [v]) == 1
    assert bits(opt, [w]) == bits(fresh, [v])


# Who keeps what alive.


class Watched(np.ndarray[Any, Any]):
    """An array whose end can be seen."""


def watched(size: int) -> tuple[Any, "weakref.ref[Any]"]:
    array = np.ones(size).view(Watched)
    return array, weakref.ref(array)


def test_variables_live_as_long_as_their_build() -> None:
    """Their memory cannot be given to another array, which would then be taken for the variable."""
    opt = Adam(0.1)
    w, alive = watched(1000)
    opt.build([w])
    del w
    gc.collect()
    assert alive() is not None
    assert opt.apply([np.ones(1000)]) == 1
    assert not np.array_equal(np.asarray(alive()), np.ones(1000))
    opt.forget([alive()])
    gc.collect()
    assert alive() is None

    w, alive = watched(1000)
    opt.build([w])
    del w, opt
    gc.collect()
    assert alive() is None


def test_no_build_is_dropped_in_the_middle_of_its_step() -> None:
    """The step would make it the current one again."""
    opt, w = Adam(0.1), np.ones(3)
    opt.build([w])

    def gradients() -> Iterator[Any]:
        opt.forget([w])
        yield np.ones(3)

    with pytest.raises(RuntimeError, match="in the middle of another step"):
        opt.apply(gradients(), [w])
    assert w.tolist() == [1.0] * 3
    assert opt.apply([np.ones(3)], [w]) == 1
    opt.forget([w])
    with pytest.raises(ValueError, match="no variables were built"):
        opt.apply([np.ones(3)])


def test_gradients_live_no_longer_than_the_call() -> None:
    opt, w = Adam(0.1), np.ones(1000)
    for _ in range(2):
        gradient, alive = watched(1000)
        opt.apply([gradient], [w])
        del gradient
        assert alive() is None
    bad, alive = watched(999)
    with pytest.raises(ValueError, match="has shape"):
        opt.apply([bad], [w])
    del bad
    gc.collect()
    assert alive() is None


def test_a_refused_build_keeps_nothing_alive() -> None:
    opt = Adam(0.1)
    w, alive = watched(10)
    for bad in ([w, w], [w, w[::2]], [w, np.ones(3, int)]):
        with pytest.raises((ValueError, TypeError)):
            opt.build(bad)
    with pytest.raises(ValueError, match="has shape"):
        opt.apply([np.ones(9)], [w])
    del w, bad
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("size", [1 << 10, 1 << 16, 1 << 20])
def test_slots_of_one_variable_lie_apart_within_a_page(size: int) -> None:
    """Else a load is taken for one of what was just stored, and a step may take twice as long."""
    optimizer = Adam(use_ema=True, gradient_accumulation_steps=2)
    optimizer.build([np.ones(size, np.float32)])
    places = [slot.ctypes.data % 4096 for slot in optimizer.variables]
    assert len(places) == 4
    apart = [abs(a - b) for a, b in itertools.combinations(places, 2)]
    assert min(min(d, 4096 - d) for d in apart) >= 512


def test_slots_outlive_the_optimizer() -> None:
    opt, w = SGD(1.0, momentum=0.5), np.zeros(100_000)
    opt.apply([np.ones(100_000)], [w])
    momentum, everything = opt.slots(w)["momentum"], opt.variables
    part = momentum[10:20]
    opt.forget([w])
    del opt, momentum
    gc.collect()
    rubbish = [np.full(100_000, 7.0) for _ in range(20)]
    assert (part == -1).all()
    assert (everything[0] == -1).all()
    part[...] = 3
    assert (everything[0][10:20] == 3).all()
    assert len(rubbish) == 20


def test_no_reference_is_lost_or_kept() -> None:
    """Reference counts of all that goes in are afterwards as before, in good calls and bad ones."""
    opt, w, bad = Adam(0.1), np.ones(8), np.ones(7)
    gradient, strided = np.ones(8), np.ones(16)[::2]
    scalar, scalar_gradient = np.array(1.0), np.float64(1)
    opt.apply([gradient, scalar_gradient], [w, scalar])
    things = [w, bad, gradient, strided, scalar, scalar_gradient]

    def use() -> None:
        opt.apply([gradient, scalar_gradient], [w, scalar])
        opt.apply([strided, None], [w, scalar])
        opt.apply_gradients([(scalar_gradient, scalar), (gradient, w)])
        opt.apply((g for g in (gradient, None)), iter([w, scalar]))
        opt.slots(w)
        for refused in (bad, gradient.astype(int), "no array", w[:4]):
            with pytest.raises((ValueError, TypeError)):
                opt.apply([refused, None], [w, scalar])
            with pytest.raises((ValueError, TypeError)):
                opt.apply([gradient], [refused])
            with pytest.raises((ValueError, TypeError)):
                opt.build([refused, w])

    use()
    gc.collect()
    before = [sys.getrefcount(thing) for thing in things]
    for _ in range(20):
        use()
    gc.collect()
    assert [sys.getrefcount(thing) for thing in things] == before


class Descent(CustomOptimizer):
    """A rule in Python."""

    def update(self, variable: Array, gradient: Array, *_: Any) -> None:
        variable -= gradient


class KnowsItsOptimizer(np.ndarray):
    """An array that is in a circle with its optimizer."""

    optimizer: Optimizer


@pytest.mark.parametrize("kind", [Adam, Descent], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("make", [lambda: np.ones(3).view(KnowsItsOptimizer), lambda: KnowsItsOptimizer(3)])
def test_circles_are_collected(make: Callable[[], KnowsItsOptimizer], kind: type[Optimizer]) -> None:
    w, opt = make(), kind(0.1)
    opt.apply([np.ones(3)], [w])
    w.optimizer = opt
    kept = weakref.ref(w)
    del w, opt
    gc.collect()
    assert kept() is None


class Hoarding(Descent):
    """One that keeps what it is called with."""

    def update(self, variable: Array, gradient: Array, *_: Any) -> None:
        kept.append(variable)


kept: list[Array] = []


def test_what_a_method_keeps_is_not_collected() -> None:
    """The array over a variable, and so the variable, which is in a circle with its optimizer."""
    w, opt = KnowsItsOptimizer(3), Hoarding(0.1)
    opt.apply([np.ones(3)], [w])
    w.optimizer = opt
    del w, opt
    gc.collect()
    assert kept.pop().base.optimizer.iterations == 1  # type: ignore[union-attr]


def test_an_interrupt_leaves_no_plan_held() -> None:
    """A signal that comes while a state is copied, wherever it does."""
    opt, w, came, awaited = SGD(0.1, momentum=0.9), np.ones(3), 0, False

    def interrupt(*_: Any) -> None:
        if awaited:
            raise KeyboardInterrupt

    opt.apply([np.ones(3)], [w])
    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(2000):
            try:
                awaited = True
                signal.setitimer(signal.ITIMER_REAL, (5 + number % 60) * 1e-6)
                for _ in range(5):
                    opt.state_dict()
                awaited = False
            except KeyboardInterrupt:
                came += 1
            awaited = False
            opt.apply([np.ones(3)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert came > 100
