"""Optimizers whose rule is a method in Python: all of the base works on them, to a built-in one's bits."""

import copy
import gc
import itertools
import pickle
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from conftest import DTYPES, OPTIONS, STAGES, VARIANTS, random_array
from fusedstep import SGD, Adam, AdamW, CustomOptimizer, Optimizer, hyperparameter
from reference import densified, same_bits
from spelled import some_gradients, spelled_out

Array = npt.NDArray[Any]
SIZES = [0, 1, 17, 513, 4097]


@fusedstep.register
class Mean(CustomOptimizer):
    """Steps along a mean gradient."""

    decay: float = hyperparameter(default=0.9, interval="[0, 1)", meaning="weight of the former mean")
    slot_names = ("m",)

    def update(
        self, variable: Array, gradient: Array, slots: dict[str, Array], learning_rate: float, t: int
    ) -> None:
        m = slots["m"]
        m *= self.decay
        m += (1 - self.decay) * gradient
        variable -= learning_rate * m


class Rows(Mean):
    """The same, of rows."""

    def update_rows(
        self,
        variable: Array,
        indices: Array,
        values: Array,
        slots: dict[str, Array],
        learning_rate: float,
        t: int,
    ) -> None:
        m = slots["m"]
        m[indices] = self.decay * m[indices] + (1 - self.decay) * values
        variable[indices] -= learning_rate * m[indices]


def assert_equal(one: Optimizer, ours: Sequence[Array], other: Optimizer, theirs: Sequence[Array]) -> None:
    assert (one.iterations, one._calls()) == (other.iterations, other._calls())
    assert (one.skipped_calls, one.gradient_norm) == (other.skipped_calls, other.gradient_norm)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert same_bits(a, b), f"variable {index} of {a.dtype}, {a.shape}"
        assert one.slots(a).keys() == other.slots(b).keys()
        for name, slot in one.slots(a).items():
            assert same_bits(slot, other.slots(b)[name]), f"{name} of variable {index}"


SHAPES: list[tuple[int, ...]] = [(), (30, 7), (5, 0), *((size,) for size in SIZES)]


@pytest.mark.parametrize("options", [*STAGES, *OPTIONS], ids=str)
@pytest.mark.parametrize("builtin", [SGD(0.01), SGD(0.01, momentum=0.9), Adam(0.01)], ids=repr)
def test_the_bits_are_those_of_the_rule_in_every_option(builtin: Optimizer, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    builtin = type(builtin).from_config(builtin.get_config() | options)
    custom = spelled_out(builtin)
    cases = list(itertools.product(SHAPES, DTYPES))
    ours = [random_array(rng, shape, dtype) for shape, dtype in cases]
    theirs = [w.copy() for w in ours]
    for step in range(7):
        grads = some_gradients(rng, [shape for shape, _ in cases], step)
        assert custom.apply(grads, ours) == builtin.apply(grads, theirs)
    assert_equal(custom, ours, builtin, theirs)
    custom.finalize_variable_values()
    builtin.finalize_variable_values()
    assert_equal(custom, ours, builtin, theirs)


@pytest.mark.parametrize("builtin", VARIANTS, ids=repr)
def test_the_bits_are_those_of_every_rule(builtin: Optimizer) -> None:
    rng = np.random.default_rng(2)
    custom, builtin = spelled_out(builtin), builtin.clone()
    ours = [random_array(rng, (30, 7), dtype) for dtype in DTYPES]
    theirs = [w.copy() for w in ours]
    for _ in range(4):
        grads = [random_array(rng, (30, 7), dtype, special=True) for dtype in DTYPES]
        custom.apply(grads, ours)
        builtin.apply(grads, theirs)
    assert_equal(custom, ours, builtin, theirs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_replicas(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    builtin = SGD(0.1, momentum=0.9, **options)
    custom = spelled_out(builtin)
    ours = [random_array(rng, (40, 30), dtype) for dtype in DTYPES]
    theirs = [w.copy() for w in ours]
    for step in range(1, 5):
        replicas = [some_gradients(rng, [w.shape for w in ours], step + k) for k in range(3)]
        custom.apply(variables=ours, replicas=replicas, mean=step % 2 == 0)
        builtin.apply(variables=theirs, replicas=replicas, mean=step % 2 == 0)
    assert_equal(custom, ours, builtin, theirs)


def test_settings_of_single_variables_and_schedules() -> None:
    schedule = fusedstep.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)
    builtin = SGD(schedule, momentum=0.9, weight_decay=0.1)
    custom = spelled_out(SGD(momentum=0.9, weight_decay=0.1))
    custom.learning_rate = schedule
    ours: dict[str, Array] = {"a": np.ones(3, np.float32), "b": np.ones(3), "c": np.ones(2)}
    theirs = copy.deepcopy(ours)
    for opt, model in ((custom, ours), (builtin, theirs)):
        opt.build(model)
        opt.adjust("a", learning_rate_multiplier=0.5)
        opt.adjust("b", frozen=True)
        opt.exclude_from_weight_decay(var_names=["c"])
        for _ in range(3):
            opt.apply({name: np.ones_like(w) for name, w in model.items()})
    assert_equal(custom, list(ours.values()), builtin, list(theirs.values()))
    assert (ours["b"] == 1).all()


def test_the_rule_of_the_documentation() -> None:
    w, m = np.array([1.0, 2.0]), np.zeros(2)
    opt, expected = Mean(0.5), w.copy()
    for _ in range(3):
        g = w * w
        m = 0.9 * m + (1 - 0.9) * g
        expected -= 0.5 * m
        opt.apply_gradients([(g, w)])
    assert (w == expected).all()
    assert (opt.slots(w)["m"] == m).all()


# What the method gets.


class Spy(CustomOptimizer):
    """Keeps what it gets."""

    @property
    def slot_names(self) -> Iterable[str] | Mapping[str, float]:
        return ("m",)

    def update(self, *given: Any) -> None:
        self._given = given


def test_no_copies_where_nothing_is_to_be_done() -> None:
    for dtype in (np.float32, np.float64):
        opt, w, g = Spy(0.5), np.ones((2, 3), dtype), np.ones((2, 3), dtype)
        for step in range(3):  # the first, the careful and the ordinary way
            opt.apply([g], [w])
            variable, gradient, slots, rate, t = opt._given
            assert type(variable) is type(gradient) is np.ndarray
            assert np.shares_memory(variable, w)
            assert np.shares_memory(gradient, g)
            assert np.shares_memory(slots["m"], opt.slots(w)["m"])
            assert variable.shape == gradient.shape == slots["m"].shape == (2, 3)
            assert variable.flags.writeable
            assert not gradient.flags.writeable
            assert (rate, t) == (0.5, step + 1)


def test_gradients_outlive_the_call_where_they_are_kept() -> None:
    opt, w = Spy(), np.ones(5000)
    opt.apply([np.full(5000, 7.0)], [w])
    kept = opt._given[1]
    gc.collect()
    np.full(5000, 8.0)
    assert (kept == 7).all()


def test_sixteen_bits_come_in_float32_and_are_rounded_once() -> None:
    class Small(CustomOptimizer):
        def update(self, variable: Array, *_: Any) -> None:
            assert variable.dtype == np.float32
            variable += np.float32(2**-12)
            variable += np.float32(2**-12)

    for dtype, expected in ((np.float16, 1.0), (DTYPES[3], 1.0)):
        w = np.ones(3, dtype)
        Small().apply([w.copy()], [w])
        assert (w.astype(float) == expected).all()
    w = np.full(3, 0.5, np.float16)
    Small().apply([w.copy()], [w])
    assert (w == 0.5 + 2**-11).all(), "half of a step each, which are lost where each is rounded"


def test_a_gradient_that_is_its_variable() -> None:
    class Twice(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            variable *= 0
            variable += gradient

    w = np.ones(3)
    Twice().apply([w], [w])
    assert (w == 1).all()


def test_slots_begin_with_their_values() -> None:
    class Two(Spy):
        slot_names = {"a": 0.1, "b": -2}  # noqa: RUF012

    w = np.ones(2, np.float32)
    opt = Two()
    opt.build([w])
    assert [slot[0] for slot in opt.slots(w).values()] == [np.float32(0.1), -2]
    assert list(opt.slots(w)) == ["a", "b"]


def test_slots_that_are_assigned_to_one_another() -> None:
    class Swaps(CustomOptimizer):
        slot_names = ("a", "b", "c")

        def update(self, variable: Array, gradient: Array, slots: dict[str, Array], *_: Any) -> None:
            slots["a"], slots["b"], slots["c"] = slots["b"][...], slots["a"], gradient

    opt, w = Swaps(), np.ones(2)
    opt.build([w])
    for k, name in enumerate("abc"):
        opt.slots(w)[name][...] = k
    opt.apply([np.full(2, 7.0)], [w])
    assert [opt.slots(w)[name].tolist() for name in "abc"] == [[1, 1], [0, 0], [7, 7]]


def test_many_slots() -> None:
    class Many(CustomOptimizer):
        slot_names = tuple("abcdefgh")

        def update(self, variable: Array, gradient: Array, slots: dict[str, Array], *_: Any) -> None:
            for number, slot in enumerate(slots.values()):
                slot += number

    w = np.ones(2)
    opt = Many(use_ema=True)
    opt.apply([w.copy()], [w])
    assert [slot[0] for slot in opt.slots(w).values()] == [*range(8), 1]


# Rows.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clipnorm": 0.5},
        {"weight_decay": 0.1, "l2": 0.1},
        {"use_ema": True, "ema_overwrite_frequency": 2},
    ],
    ids=str,
)
def test_lazy_steps_touch_only_their_rows(options: dict[str, Any], dtype: Any) -> None:
    """To the bits of the ordinary method on each row as a variable of its own, but for norms."""
    rng = np.random.default_rng(4)
    table = random_array(rng, (50, 6), dtype)
    opt = Rows(0.1, lazy=True, **options)
    rows = [row.copy() for row in table]
    same_norm = {"global_clipnorm": options["clipnorm"]} if "clipnorm" in options else options
    twin = Mean(0.1, **same_norm)
    twin.build(rows)
    for _ in range(4):
        indices = rng.integers(0, 50, 12)
        values = random_array(rng, (12, 6), np.float32)
        touched = set(indices)
        sums = densified((indices, values), table)
        dense = [sums[index] if index in touched else None for index in range(50)]
        opt.apply([(indices, values)], [table])
        before = [[a.copy() for a in (row, *twin.slots(row).values())] for row in rows]
        twin.apply(dense, rows)
        for index in set(range(50)) - touched:  # averages of the others do not move
            for now, then in zip(
                (rows[index], *twin.slots(rows[index]).values()), before[index], strict=True
            ):
                now[...] = then
    assert same_bits(table, np.array(rows))
    for name, slot in opt.slots(table).items():
        assert same_bits(slot, np.array([twin.slots(row)[name] for row in rows]))


def test_rows_that_are_given_nothing_or_all() -> None:
    opt, w, b = Rows(1.0, decay=0.0, lazy=True), np.ones((4, 2)), np.ones(3)
    opt.apply([(np.array([], int), np.ones((0, 2))), np.ones(3)], [w, b])
    assert (w == 1).all()
    assert (b == 0).all()
    opt.apply(variables=[w, b], replicas=[[([0], np.ones((1, 2))), None], [np.ones((4, 2)), None]])
    assert w[:, 0].tolist() == [-1, 0, 0, 0]


def test_rows_beside_all_rows_need_no_method_for_them() -> None:
    opt, w = Lists(1.0, lazy=True), np.zeros((3, 1))
    opt.apply(variables=[w], replicas=[[([1], np.ones((1, 1)))], [np.ones((3, 1))]])
    assert w[:, 0].tolist() == [-1, -2, -1]


class Lists(CustomOptimizer):
    """One without update_rows."""

    def update(self, variable: Array, gradient: Array, slots: Any, learning_rate: float, t: int) -> None:
        variable -= learning_rate * gradient


def test_methods_are_not_called_for_nothing() -> None:
    called = []

    class Counts(CustomOptimizer):
        def update(self, variable: Array, *_: Any) -> None:
            called.append(variable.shape)

        def update_rows(self, variable: Array, indices: Array, *_: Any) -> None:
            called.append(indices.shape)

    empty, table, b = np.ones((0, 2)), np.ones((4, 2)), np.ones(3)
    grads = [np.ones((0, 2)), (np.array([], int), np.ones((0, 2))), np.ones(3)]
    Counts(lazy=True).apply(grads, [empty, table, b])
    assert called == [(3,)]


def test_rows_without_a_method_for_them() -> None:
    opt, w, b = Mean(lazy=True), np.ones((4, 2)), np.ones(3)
    opt.build([w, b])
    with pytest.raises(
        NotImplementedError, match=r"^Mean\.apply: a gradient is sparse and lazy is True, but Mean"
    ):
        opt.apply([([1], np.ones((1, 2))), np.ones(3)])
    assert (w == 1).all()
    assert (b == 1).all()
    opt.apply([np.ones((4, 2)), None])
    opt.lazy = False
    assert opt.apply([([1], np.ones((1, 2))), np.ones(3)]) == 2


# State.


COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))]


@pytest.mark.parametrize("how", COPIES)
def test_copies_continue(how: Callable[[Any], Any]) -> None:
    opt, w = Mean(0.1, decay=0.5, use_ema=True), np.ones(3)
    opt.apply([w.copy()], [w])
    twin, v = how(opt), w.copy()
    for one, variable in ((opt, w), (twin, v)):
        one.apply([np.ones(3)], [variable])
    assert_equal(opt, [w], twin, [v])


def test_checkpoints(tmp_path: Path) -> None:
    opt, w = Mean(0.1, decay=0.5), np.ones(3, np.float16)
    opt.apply({"w": w.copy()}, {"w": w})
    opt.save(tmp_path / "state")
    twin, v = fusedstep.get(opt.state_dict()), w.copy()
    assert repr(twin) == repr(opt) == "Mean(learning_rate=0.1, decay=0.5)"
    twin.load(tmp_path / "state")
    for one, variable in ((opt, w), (twin, v)):
        one.apply({"w": np.ones(3)}, {"w": variable})
    assert_equal(opt, [w], twin, [v])


def test_configurations() -> None:
    opt = Mean(0.5, decay=0.25, clipnorm=1.0)
    again = fusedstep.deserialize(fusedstep.serialize(opt))
    assert type(again) is Mean
    assert again.get_config() == opt.get_config()
    with pytest.raises(ValueError, match=re.escape("Mean: decay must lie in [0, 1), got 1.0")):
        Mean(decay=1.0)
    opt.decay = 0.0
    assert opt.decay == 0


class OwnInit(CustomOptimizer):
    def __init__(self, factor: float) -> None:
        super().__init__(0.1)
        self.factor = factor  # which a program would go on with as if it were in configurations and copies


def test_attributes_of_ones_own_are_told_how_to_be_declared() -> None:
    told = (
        r"there is no argument {0}; .*; what a class has besides is declared in its body,"
        r" {0}: float = fusedstep\.hyperparameter\(\.\.\.\), or named _{0}$"
    )
    with pytest.raises(AttributeError, match="^OwnInit: " + told.format("factor")):
        OwnInit(2.0)
    with pytest.raises(TypeError, match="^Mean: " + told.format("factor")):
        Mean(factor=2.0)  # type: ignore[call-arg]


def test_several_builds_have_counts_of_their_own() -> None:
    opt, first, second = Spy(), np.ones(2), np.ones(3)
    opt.build([first])
    opt.build([second])
    opt.apply([first.copy()], [first])
    opt.apply([first.copy()], [first])
    assert opt._given[4] == 2
    opt.apply([second.copy()], [second])
    assert opt._given[4] == 1


def test_nothing_keeps_an_optimizer_alive() -> None:
    opt, w = Mean(), np.ones(3)
    opt.apply([w.copy()], [w])
    gone = weakref.ref(opt)
    gc.disable()
    try:
        del opt
        assert gone() is None
    finally:
        gc.enable()


# What goes wrong.


def test_errors_of_the_method_pass_through() -> None:
    """The arrays before are updated; the call does not count."""

    class Fails(Mean):
        def update(self, variable: Array, *given: Any) -> None:
            if variable.size == 2:
                raise ZeroDivisionError("mine")
            super().update(variable, *given)

    opt, variables = Fails(1.0, decay=0.0), [np.ones(3), np.ones(2), np.ones(4)]
    with pytest.raises(ZeroDivisionError, match="mine"):
        opt.apply([np.ones_like(w) for w in variables], variables)
    assert [w[0] for w in variables] == [0, 1, 1]
    assert opt.iterations == 0
    opt = Fails(1.0, decay=0.0)
    opt.build(variables)
    with pytest.raises(ZeroDivisionError):
        opt.apply([np.ones_like(w) for w in variables])
    assert opt.apply([np.ones(3), None, np.ones(4)]) == 1
    assert [w[0] for w in variables] == [-2, 1, 0]


def test_a_method_that_steps_its_own_optimizer() -> None:
    class Again(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            self.apply([gradient])

    opt, w = Again(), np.ones(3)
    opt.build([w])
    with pytest.raises(RuntimeError, match="and what a step calls cannot step"):
        opt.apply([w.copy()])


def test_a_method_that_builds_another_model_and_raises() -> None:
    """The build that the step had made is dropped, and not the other."""
    other = np.ones(2)

    class Builds(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            if variable.shape == (3,):
                self.build([other])
                raise ZeroDivisionError

    opt, w = Builds(), np.ones(3)
    with pytest.raises(ZeroDivisionError):
        opt.apply([w.copy()], [w])
    assert opt.apply([other.copy()]) == 1
    with pytest.raises(ValueError, match="was never built"):
        opt.apply([w.copy()], [w])


def test_a_method_that_loads_a_state_into_its_own_step() -> None:
    """It is refused, and no other build has been written."""
    states: list[dict[str, Any]] = []

    class Loading(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            if variable.shape == (2,):
                self.load_state_dict(states[0])

    opt, models = Loading(), [np.ones(3), np.ones(2)]
    for w in models:
        opt.build([w])
    states.append(opt.state_dict())
    for _ in range(2):
        opt.apply([np.ones(3)], [models[0]])
    with pytest.raises(RuntimeError, match="in the middle of another step"):
        opt.apply([np.ones(2)], [models[1]])
    assert opt.apply([np.ones(3)], [models[0]]) == 3


def test_a_method_that_changes_the_list_of_gradients() -> None:
    grads, junk = list[Any](), list[Array]()

    class Clears(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            grads.clear()
            junk.extend(np.full(50, 7.0) for _ in range(20))
            variable -= gradient

    ws = [np.zeros(50) for _ in range(3)]
    opt = Clears(1.0)
    opt.build(ws)
    for _ in range(2):
        grads += [np.full(50, 1.0 + i) for i in range(3)]
        opt.apply(grads, ws)
    assert [w[0] for w in ws] == [-2, -4, -6]


def test_large_arrays_come_whole_and_with_the_lock() -> None:
    lengths = []

    class Looks(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            lengths.append(len(gradient))

    ws = [np.zeros(6_000_000, np.float32), np.zeros(5, np.float32)]
    opt, grads = Looks(1.0), [np.ones_like(w) for w in ws]
    for _ in range(2):
        opt.apply(grads, ws)
    assert lengths == [6_000_000, 5] * 2


def test_gradients_cannot_be_written() -> None:
    class Writes(CustomOptimizer):
        def update(self, variable: Array, gradient: Array, *_: Any) -> None:
            gradient *= 2

    for clipvalue in (None, 1.0):
        with pytest.raises(ValueError, match="read-only"):
            Writes(clipvalue=clipvalue).apply([np.ones(3)], [np.ones(3)])


METHODS: list[tuple[Callable[..., Any], type[Exception], str]] = [
    (
        lambda self, p, g, s, lr, t: p - lr * g,
        TypeError,
        "Bad.update returned an object of type ndarray, but must return None; change the variable in place,"
        " as in variable -= x",
    ),
    (
        lambda self, p, g, s, lr, t: s.update(n=g),
        ValueError,
        "Bad.update left slots with the names ['m', 'n'], but they must be those of slot_names;"
        " declare them there",
    ),
    (
        lambda self, p, g, s, lr, t: s.update(n=s.pop("m")),
        ValueError,
        "Bad.update left slots with the names ['n'], but they must be those of slot_names;"
        " declare them there",
    ),
    (
        lambda self, p, g, s, lr, t: s.update(m=np.ones(2)),
        ValueError,
        "Bad.update assigned to slots['m'] what it cannot hold: could not broadcast input array from shape"
        " (2,) into shape (3,); assign what has its shape",
    ),
]


@pytest.mark.parametrize(("method", "error", "text"), METHODS)
def test_methods_that_would_have_no_effect(method: Any, error: type[Exception], text: str) -> None:
    Bad = type("Bad", (CustomOptimizer,), {"slot_names": ("m",), "update": method})
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        Bad().apply([np.ones(3)], [np.ones(3)])


def test_a_slot_that_is_given_what_is_no_number() -> None:
    Bad = type("Bad", (CustomOptimizer,), {"slot_names": ("m",)})
    Bad.update = lambda self, p, g, s, lr, t: s.update(m={})  # type: ignore[attr-defined]
    with pytest.raises(
        TypeError, match=r"^Bad\.update assigned to slots\['m'\] what it cannot hold: .*dict"
    ) as raised:
        Bad().apply([np.ones(3)], [np.ones(3)])
    assert isinstance(raised.value.__cause__, TypeError)


class Unfinished:
    def __array__(self, *_: Any, **__: Any) -> Array:
        raise LookupError("not computed yet")


def test_an_error_of_what_a_slot_is_given_passes_through() -> None:
    Bad = type("Bad", (CustomOptimizer,), {"slot_names": ("m",)})
    Bad.update = lambda self, p, g, s, lr, t: s.update(m=Unfinished())  # type: ignore[attr-defined]
    with pytest.raises(LookupError, match="not computed yet"):
        Bad().apply([np.ones(3)], [np.ones(3)])


@pytest.mark.parametrize(
    ("names", "error"),
    [("m", TypeError), ((1,), TypeError), (("m", "m"), ValueError), (("a/b",), ValueError)]
    + [((name,), ValueError) for name in ("", "average", "gradient_accumulator")]
    + [(None, TypeError), ({"m": "a"}, TypeError), ({"m": None}, TypeError)],
)
def test_names_that_slots_cannot_have(names: Any, error: type[Exception]) -> None:
    Bad = type("Bad", (Spy,), {"slot_names": names})
    with pytest.raises(error, match=r"^Bad: slot_names"):
        Bad().build([np.ones(3)])


def test_other_slots_after_build() -> None:
    class Optional(Spy):
        momentum: float = hyperparameter(default=0.0, meaning="whether there is a slot")

        @property
        def slot_names(self) -> tuple[str, ...]:
            return ("m",) if self.momentum else ()

    opt = Optional()
    opt.build([np.ones(3)])
    with pytest.raises(ValueError, match="Optional: the change needs other slots than were built"):
        opt.momentum = 0.5
    assert opt.momentum == 0


def test_a_class_may_have_an_lr_of_its_own() -> None:
    """It was taken for the learning rate; so the class could not be cloned, which gives both."""

    class TwoRates(Mean):
        lr: float = hyperparameter(default=1.0, interval="(0, inf)", meaning="of something else")

    opt = TwoRates(0.5, lr=3.0)
    for one in (
        opt,
        TwoRates(learning_rate=0.5, lr=3.0),
        opt.clone(),
        TwoRates.from_config(opt.get_config()),
    ):
        assert (one.learning_rate, one.lr) == (0.5, 3.0)
    assert TwoRates(lr=3.0).learning_rate == Mean().learning_rate


@pytest.mark.parametrize("text", ["", "0 to 1", "0, 1", "[0, 1", "[0 1)", "[1, 0]", "[nan, 1)", "[zero, 1)"])
def test_what_is_no_interval_is_refused_as_a_class_declares_it(text: str) -> None:
    words = f"an interval must read like '[0, 1)', its lower end first, got {text!r}"
    with pytest.raises(ValueError, match=re.escape(words)):
        hyperparameter(default=0.5, interval=text, meaning="weight")


def test_a_class_without_a_rule() -> None:
    with pytest.raises(NotImplementedError, match=r"CustomOptimizer has no rule: define update\("):
        CustomOptimizer().build([np.ones(3)])
    assert isinstance(Mean(), Optimizer)
    assert not issubclass(AdamW, CustomOptimizer)
