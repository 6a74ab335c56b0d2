"""The optimizer classes: arguments, configurations, learning rates, builds, and steps by all ways."""

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from conftest import classes_of_one_s_own
from fusedstep import SGD, Adagrad, Adam, AdamW, Ftrl, Nadam, Optimizer, RMSprop

Array = npt.NDArray[Any]
CLASSES: list[type[Optimizer]] = [SGD, Adam, AdamW, RMSprop, Adagrad]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)

# Keras 3's arguments that these classes have, with Keras' defaults.
KERAS_ADAM = {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False}
KERAS: dict[type[Optimizer], dict[str, Any]] = {
    SGD: {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": None},
    Adam: KERAS_ADAM | {"weight_decay": None},
    AdamW: KERAS_ADAM | {"weight_decay": 0.004},
    RMSprop: {
        "learning_rate": 0.001,
        "rho": 0.9,
        "momentum": 0.0,
        "epsilon": 1e-7,
        "centered": False,
        "weight_decay": None,
    },
    Adagrad: {
        "learning_rate": 0.001,
        "initial_accumulator_value": 0.1,
        "epsilon": 1e-7,
        "weight_decay": None,
    },
}

# Those that Keras has not; off by default.
OTHERS: dict[type[Optimizer], dict[str, Any]] = {
    SGD: {"form": "keras", "dampening": 0.0},
    Adam: {"epsilon_hat": False},
    AdamW: {"epsilon_hat": False},
    RMSprop: {"form": "keras"},
    Adagrad: {"form": "keras", "learning_rate_decay": 0.0},
}
# Those that all classes have.
COMMON: dict[str, Any] = {
    "l2": None,
    "maximize": False,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "skip_nonfinite": False,
    "lazy": False,
    "name": "",
}
ARGUMENTS = {cls: KERAS[cls] | OTHERS[cls] | COMMON for cls in CLASSES}

# Numbers in intervals: name -> interval.
INTERVALS: dict[type[Optimizer], dict[str, str]] = {
    SGD: {"momentum": "[0, 1]"},
    Adam: {"beta_1": "[0, 1)", "beta_2": "[0, 1)", "epsilon": "(0, inf)"},
    AdamW: {"beta_1": "[0, 1)", "beta_2": "[0, 1)", "epsilon": "(0, inf)"},
    RMSprop: {"rho": "[0, 1)", "momentum": "[0, 1]", "epsilon": "(0, inf)"},
    Adagrad: {"initial_accumulator_value": "[0, inf)", "epsilon": "(0, inf)"},
}
EVERY_CLASS = {
    "weight_decay": "[0, inf)",
    "l2": "[0, inf)",
    "clipnorm": "(0, inf)",
    "global_clipnorm": "(0, inf)",
    "clipvalue": "(0, inf)",
    "ema_momentum": "[0, 1]",
    "loss_scale_factor": "[2^-126, 2^126]",
}
TORCH: list[tuple[type[Optimizer], str, str]] = [
    (SGD, "dampening", "[0, 1]"),
    (Adagrad, "learning_rate_decay", "[0, inf)"),
]

# Slots by arguments.
SLOTS: list[tuple[Optimizer, list[str]]] = [
    (SGD(), []),
    (SGD(nesterov=True), []),
    (SGD(momentum=0.9), ["momentum"]),
    (SGD(momentum=0.9, nesterov=True), ["momentum"]),
    (Adam(), ["momentum", "velocity"]),
    (Adam(amsgrad=True), ["momentum", "velocity", "velocity_hat"]),
    (AdamW(), ["momentum", "velocity"]),
    (RMSprop(), ["velocity"]),
    (RMSprop(centered=True), ["velocity", "average_gradient"]),
    (RMSprop(momentum=0.9), ["velocity", "momentum"]),
    (RMSprop(centered=True, momentum=0.9), ["velocity", "average_gradient", "momentum"]),
    (Adagrad(), ["accumulator"]),
]


# Arguments.


@every_class
def test_signature_and_defaults(cls: type[Optimizer]) -> None:
    parameters = inspect.signature(cls).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == ARGUMENTS[cls]
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    assert kinds.pop("learning_rate") is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
    assert next(iter(parameters)) == "learning_rate"


@every_class
def test_arguments_are_attributes(cls: type[Optimizer]) -> None:
    opt = cls()
    for name, default in ARGUMENTS[cls].items():
        value = getattr(opt, name)
        assert value == (cls.__name__.lower() if name == "name" else default)
        assert type(value) is type(default)


@every_class
def test_the_learning_rate_may_be_given_by_position(cls: type[Optimizer]) -> None:
    assert cls(0.25).learning_rate == cls(learning_rate=0.25).learning_rate == 0.25


@pytest.mark.parametrize(
    ("opt", "text"),
    [
        (SGD(), "SGD(learning_rate=0.01)"),
        (SGD(0.5, nesterov=True, momentum=0.9), "SGD(learning_rate=0.5, momentum=0.9, nesterov=True)"),
        (AdamW(), "AdamW(learning_rate=0.001)"),
        (AdamW(weight_decay=None), "AdamW(learning_rate=0.001, weight_decay=None)"),
        (Adam(0.5, l2=0.25), "Adam(learning_rate=0.5, l2=0.25)"),
        (Adagrad(form="torch"), "Adagrad(learning_rate=0.001, form='torch')"),
    ],
    ids=repr,
)
def test_repr(opt: Optimizer, text: str) -> None:
    assert repr(opt) == text


@every_class
def test_configuration_round_trip(cls: type[Optimizer]) -> None:
    config = cls().get_config()
    assert config == ARGUMENTS[cls] | {"name": cls.__name__.lower()}
    other = config | {"learning_rate": 0.5, "maximize": True, "l2": 0.25, "name": "other"}
    opt = cls.from_config(other)
    assert opt.get_config() == other
    assert type(opt) is cls
    config["learning_rate"] = 7
    assert cls().get_config()["learning_rate"] != 7, "a configuration is a copy"


def test_a_callable_learning_rate_is_in_the_configuration() -> None:
    def rate(step: int) -> float:
        return 0.5 / (1 + step)

    assert Adam(rate).get_config()["learning_rate"] is rate
    assert Adam.from_config(Adam(rate).get_config()).learning_rate == 0.5


@every_class
def test_get(cls: type[Optimizer]) -> None:
    for name in (cls.__name__, cls.__name__.lower(), cls.__name__.upper()):
        opt = fusedstep.get(name)
        assert type(opt) is cls
        assert opt.get_config() == cls().get_config()
    assert fusedstep.get(opt) is opt
    config = {"class_name": cls.__name__, "config": {"learning_rate": 0.5}}
    assert fusedstep.get(config).get_config() == cls(0.5).get_config()
    assert fusedstep.get({"class_name": cls.__name__}).get_config() == cls().get_config()


def test_modules() -> None:
    module = importlib.import_module("fusedstep.optimizers")
    assert (module.SGD, module.Adam, module.get) == (SGD, Adam, fusedstep.get)
    assert all(hasattr(fusedstep, name) for name in fusedstep.__all__)
    assert {cls.__name__ for cls in CLASSES} <= set(fusedstep.__all__)


# Intervals.


def bounds(interval: str) -> tuple[list[float], list[float]]:
    """Numbers at the ends of an interval: those in it, and those outside."""
    ends = [end.strip() for end in interval[1:-1].split(",")]
    low, high = (2.0 ** int(end[2:]) if end.startswith("2^") else float(end) for end in ends)
    inside, outside = [np.nextafter(low, np.inf)], [np.nextafter(low, -np.inf), -np.inf, np.nan]
    (inside if interval[0] == "[" else outside).append(low)
    (inside if interval[-1] == "]" else outside).append(high)
    if high != np.inf:
        inside.append(np.nextafter(high, -np.inf))
        outside += [np.nextafter(high, np.inf), np.inf]
    else:
        inside.append(1e300)
    return inside, outside


@every_class
def test_ends_of_intervals(cls: type[Optimizer]) -> None:
    for name, interval in (INTERVALS[cls] | EVERY_CLASS).items():
        check_interval(cls, name, interval, {})


@pytest.mark.parametrize(("cls", "name", "interval"), TORCH)
def test_ends_of_intervals_of_pytorchs_forms(cls: type[Optimizer], name: str, interval: str) -> None:
    check_interval(cls, name, interval, {"form": "torch"})


def check_interval(cls: type[Optimizer], name: str, interval: str, others: dict[str, Any]) -> None:
    inside, outside = bounds(interval)
    opt = cls(**others)
    for value in inside:
        assert getattr(cls.from_config(others | {name: value}), name) == value
        setattr(opt, name, value)
        assert getattr(opt, name) == value
    before = opt.get_config()
    for value in outside:
        with pytest.raises(ValueError, match=f"{cls.__name__}: {name} must lie in") as caught:
            cls.from_config(others | {name: value})
        assert str(caught.value).endswith(f"{interval}, got {float(value)!r}")
        with pytest.raises(ValueError, match=f"{cls.__name__}: {name} must lie in"):
            setattr(opt, name, value)
    assert opt.get_config() == before


@every_class
def test_every_number_has_its_interval_in_the_tables(cls: type[Optimizer]) -> None:
    tried = set(INTERVALS[cls]) | {name for torch_class, name, _ in TORCH if torch_class is cls}
    numbers = {name for name, default in ARGUMENTS[cls].items() if type(default) is float}
    assert numbers - {"learning_rate"} - EVERY_CLASS.keys() == tried


@pytest.mark.parametrize(
    "value",
    [
        1,
        np.float64(1),
        np.float32(1),
        np.float16(1),
        ml_dtypes.bfloat16(1),
        np.int8(1),
        np.array(1.0),
        np.array(1),
    ],
    ids=repr,
)
def test_real_numbers_of_any_kind(value: Any) -> None:
    opt = SGD(value, momentum=value, weight_decay=value)
    assert (opt.learning_rate, opt.momentum, opt.weight_decay) == (1, 1, 1)
    assert {type(opt.learning_rate), type(opt.momentum), type(opt.weight_decay)} == {float}
    opt.learning_rate = opt.momentum = 0.5
    opt.learning_rate = opt.momentum = value
    assert (opt.learning_rate, opt.momentum) == (1, 1)


# The learning rate.


def step_sizes(opt: Optimizer, steps: int) -> list[float]:
    """How far each step takes a variable whose gradient is 1."""
    w, sizes = np.zeros(1), []
    for _ in range(steps):
        before = w.copy()
        opt.apply([np.ones(1)], [w])
        sizes.append(float((before - w)[0]))
    return sizes


class Schedule:
    def __call__(self, step: int) -> float:
        return 1.0 / (1 + step)


RATES: list[tuple[str, Any, list[float]]] = [
    ("number", 0.5, [0.5, 0.5, 0.5]),
    ("negative", -0.5, [-0.5, -0.5, -0.5]),
    ("zero", 0, [0, 0, 0]),
    ("lambda of the step", lambda step: 0.5**step, [1, 0.5, 0.25]),
    ("lambda of nothing", lambda: 0.25, [0.25, 0.25, 0.25]),
    ("object", Schedule(), [1, 0.5, 1.0 / 3]),
    ("partial", functools.partial(pow, 2.0), [1, 2, 4]),
    ("builtin", float, [0, 1, 2]),
    ("list's item", [1.0, 0.5, 0.25].__getitem__, [1, 0.5, 0.25]),
    ("NumPy scalars", lambda step: np.float32(0.5), [0.5, 0.5, 0.5]),
    ("arrays without dimensions", lambda step: np.array(step, np.float32), [0, 1, 2]),
    ("integers", lambda step: step, [0, 1, 2]),
]


@pytest.mark.parametrize(("rate", "sizes"), [row[1:] for row in RATES], ids=[row[0] for row in RATES])
def test_learning_rates(rate: Any, sizes: list[float]) -> None:
    np.testing.assert_allclose(step_sizes(SGD(rate), 3), sizes, rtol=1e-15)


def test_a_callable_learning_rate_gets_the_number_of_calls() -> None:
    steps: list[int] = []

    def rate(step: int) -> float:
        steps.append(step)
        return 0.5

    step_sizes(SGD(rate), 4)
    assert steps == [0, 1, 2, 3]


def test_learning_rate_as_it_is_now() -> None:
    w, opt = np.zeros(1), SGD(lambda step: 1.0 / (1 + step))
    assert opt.learning_rate == 1
    opt.apply([np.ones(1)], [w])
    assert opt.learning_rate == 0.5


def test_learning_rate_set_between_steps() -> None:
    w, opt = np.zeros(1), SGD(1.0)
    rates: list[Any] = [0.5, lambda: 0.25, np.float32(0.125), 1]
    for rate, expected in zip(rates, [-0.5, -0.75, -0.875, -1.875], strict=True):
        opt.learning_rate = rate
        opt.apply([np.ones(1)], [w])
        assert w[0] == expected


def test_an_array_without_dimensions_is_read_at_every_step() -> None:
    w, rate = np.zeros(1), np.array(0.5)
    opt = SGD(rate)
    opt.apply([np.ones(1)], [w])
    assert w[0] == -0.5
    rate[...] = 0.25
    assert opt.learning_rate == 0.25
    opt.apply([np.ones(1)], [w])
    assert w[0] == -0.75
    rate[...] = np.nan
    with pytest.raises(ValueError, match="SGD: learning_rate must be finite in float64, got nan"):
        opt.apply([np.ones(1)], [w])
    assert w[0] == -0.75


class OfAnotherLibrary:
    """An array without dimensions, as those of PyTorch and JAX are for a reader: no number of Python."""

    shape = ()

    def __init__(self, value: Any) -> None:
        self.value = value

    def item(self) -> Any:
        return self.value

    def __float__(self) -> float:
        return float(self.value)

    def __dlpack__(self, **_: Any) -> None:
        raise BufferError("it is not asked for")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def test_learning_rates_of_other_libraries() -> None:
    """Schedules of optax and of Keras return arrays; an array itself is read anew, as NumPy's is."""
    assert step_sizes(SGD(lambda step: OfAnotherLibrary(0.5**step)), 3) == [1, 0.5, 0.25]  # type: ignore[arg-type]
    rate, w = OfAnotherLibrary(0.5), np.zeros(1)
    opt = SGD(rate, momentum=OfAnotherLibrary(0.0))  # type: ignore[arg-type]
    opt.apply([np.ones(1)], [w])
    rate.value = 0.25
    opt.apply([np.ones(1)], [w])
    assert w[0] == -0.75
    assert opt.get_config()["learning_rate"] == 0.25
    for wrong in (True, 1j):
        with pytest.raises(TypeError, match="SGD: learning_rate must be a real number, got"):
            SGD(OfAnotherLibrary(wrong))


def test_attributes_that_are_no_hyperparameters_are_refused() -> None:
    opt = Adam(0.1)
    with pytest.raises(AttributeError, match=r"Adam: there is no argument beta1; did you mean beta_1\?"):
        opt.beta1 = 0.5  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match="lr is called learning_rate"):
        opt.lr = 0.25
    assert opt.learning_rate == 0.25
    with pytest.warns(DeprecationWarning, match="lr is called learning_rate"):
        assert opt.lr == 0.25


def test_a_callable_gets_the_step_only_where_it_requires_an_argument() -> None:
    assert SGD(lambda rate=0.5: rate).learning_rate == 0.5
    assert SGD(lambda *steps: 1.0 + steps[0]).learning_rate == 1.0
    assert SGD(lambda step: 2.0 + step).learning_rate == 2.0


def test_lr_is_an_alias() -> None:
    with pytest.warns(DeprecationWarning, match="Adam: lr is called learning_rate") as caught:
        opt = Adam(lr=0.5)  # type: ignore[call-arg]
    assert opt.learning_rate == 0.5
    assert caught[0].filename == __file__, "the warning is about the caller's line"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Adam(0.5)


# Steps by all ways.


def test_apply_in_all_ways() -> None:
    """Pairs, lists, tuples, generators, dicts, gradients alone: the same step, and the count of calls."""
    a, b = np.zeros(2), np.zeros((2, 2))
    ga, gb = np.ones(2), np.full((2, 2), 2.0)
    opt = SGD(1.0)
    ways: list[Callable[[], int]] = [
        lambda: opt.apply_gradients(zip([ga, gb], [a, b], strict=True)),
        lambda: opt.apply_gradients([(ga, a), (gb, b)]),
        lambda: opt.apply_gradients(pair for pair in ((ga, a), (gb, b))),
        lambda: opt.apply_gradients({1: (ga, a), 2: (gb, b)}.values()),
        lambda: opt.apply([ga, gb], [a, b]),
        lambda: opt.apply((ga, gb), (a, b)),
        lambda: opt.apply(iter([ga, gb]), iter([a, b])),
        lambda: opt.apply((g for g in (ga, gb)), [a, b]),
        lambda: opt.apply({"x": ga, "y": gb}.values(), {"x": a, "y": b}.values()),
        lambda: opt.apply(grads=[ga, gb], variables=[a, b]),
        lambda: opt.apply([ga, gb]),
        lambda: opt.apply({"a": ga, "b": gb}, {"b": b, "a": a}),
        lambda: opt.apply({"n": {"a": ga}, "b": [gb]}, {"b": [b], "n": {"a": a}}),
        lambda: opt.apply({"n/a": ga, "n/b": gb}, {"n": {"a": a, "b": b}}),
        lambda: opt.apply([gb, ga], [b, a]),
    ]
    for number, way in enumerate(ways, 1):
        assert way() == number
        assert (a == -number).all()
        assert (b == -2 * number).all()
    assert opt.iterations == len(ways)


def test_names_from_keys() -> None:
    """After a build of dicts gradients alone are found by name, in any order."""
    a, b, c = np.zeros(1), np.zeros(1), np.zeros(1)
    opt = SGD(1.0)
    opt.build({"dense": {"kernel": a, "bias": b}, "layers": [c]})
    assert opt.apply({"layers": [np.full(1, 3.0)], "dense": {"bias": np.full(1, 2.0), "kernel": None}}) == 1
    assert (a[0], b[0], c[0]) == (0, -2, -3)
    assert opt.apply({"layers/0": None, "dense/bias": None, "dense/kernel": np.ones(1)}) == 2
    assert (a[0], b[0], c[0]) == (-1, -2, -3)


@every_class
def test_subsets_and_other_orders(cls: type[Optimizer]) -> None:
    """A variable that is not named is one whose gradient is None."""
    opt, twin = cls(0.1), cls(0.1)
    ours, theirs = ([np.full(n, 0.5) for n in (3, 4, 5, 6)] for _ in range(2))
    opt.build(ours)
    for numbers in ([0, 1, 2, 3], [3, 1], [2], [1, 0], [3, 2, 1, 0], [0, 1]):
        grads = [np.full(n, n / 10) for n in (3, 4, 5, 6)]
        opt.apply([grads[i] for i in numbers], [ours[i] for i in numbers])
        twin.apply([grads[i] if i in numbers else None for i in range(4)], theirs)
        assert [a.tobytes() for a in (*ours, *opt.variables)] == [
            a.tobytes() for a in (*theirs, *twin.variables)
        ]
    assert opt.iterations == 6


@every_class
def test_no_gradient_means_no_change(cls: type[Optimizer]) -> None:
    """No update, no decay and no change of slots; but slots are made at the first step."""
    opt = cls(0.1, weight_decay=0.1, l2=0.1)
    a, b = np.ones(3), np.ones(4)
    opt.apply([None, np.ones(4)], [a, b])
    before = [array.tobytes() for array in (a, *opt.slots(a).values())]
    for _ in range(2):
        opt.apply([None, np.ones(4)], [a, b])
    assert [array.tobytes() for array in (a, *opt.slots(a).values())] == before
    assert (a == 1).all()
    assert (b != 1).all()
    assert opt.iterations == 3


def test_one_optimizer_for_several_models() -> None:
    """Each build has counts and slots of its own; schedules and corrections see those."""
    rates: list[int] = []

    def rate(step: int) -> float:
        rates.append(step)
        return 0.1

    opt, first, second = Adam(rate), [np.zeros(2)], [np.zeros(3), np.zeros(1)]
    opt.build(first)
    opt.build(second)
    twin, alone = Adam(0.1), [np.zeros(3), np.zeros(1)]
    for _ in range(3):
        opt.apply([np.ones(2)], first)
    assert opt.iterations == 3
    for step in range(2):
        grads = [np.ones(3), np.ones(1)]
        assert opt.apply(grads, second) == step + 1
        twin.apply(grads, alone)
    assert opt.iterations == 2
    assert opt.apply([np.ones(2)], first) == 4
    assert rates == [0, 1, 2, 0, 1, 3]
    assert [a.tobytes() for a in second] == [a.tobytes() for a in alone]
    assert len(opt.variables) == 6


def test_a_gradient_of_another_dtype_over_the_same_memory() -> None:
    w, gradient, opt = np.zeros(3), np.ones(3, np.float16), SGD(1.0)
    for one in (gradient, gradient.view(ml_dtypes.bfloat16), gradient):
        w[...] = 0
        opt.apply([one], [w])
        assert (w == -one.astype(np.float64)).all()


def test_before_anything_is_built() -> None:
    opt = SGD(skip_nonfinite=True)
    assert (opt.iterations, opt.skipped_calls, opt.skipped, opt.gradient_norm) == (0, 0, False, None)
    assert opt.variables == []


def test_iterators_are_read_once() -> None:
    """Of gradients and variables, in the first step, a later one, and over replicas."""
    opt, ws = SGD(1.0), [np.zeros(1), np.zeros(2)]
    grads = [np.ones(1), np.ones(2)]
    assert opt.apply(iter(grads), iter(ws)) == 1
    assert opt.apply(iter(grads), iter(ws)) == 2
    assert opt.apply(variables=iter(ws), replicas=iter([iter(grads), iter(grads)])) == 3
    other, vs = SGD(1.0), [np.zeros(1), np.zeros(2)]
    assert other.apply(variables=iter(vs), replicas=iter([iter(grads), iter(grads)]), mean=True) == 1
    assert [w[0] for w in ws] == [-4, -4]
    assert [v[0] for v in vs] == [-1, -1]


def test_build_more_after_the_first_step() -> None:
    opt, a, b = SGD(1.0, momentum=0.5), np.zeros(1), np.zeros(1)
    opt.apply([np.ones(1)], [a])
    with pytest.raises(ValueError, match="never built"):
        opt.apply([np.ones(1)], [b])
    opt.build([b])
    assert opt.apply([np.ones(1)], [b]) == 1
    assert opt.apply([np.ones(1)], [a]) == 2
    assert (a[0], b[0]) == (-2.5, -1)


# Slots.


@pytest.mark.parametrize(("optimizer", "names"), SLOTS, ids=[repr(row[0]) for row in SLOTS])
def test_slots_by_name(optimizer: Optimizer, names: list[str]) -> None:
    opt = type(optimizer).from_config(optimizer.get_config())
    assert opt.variables == []
    variables = [np.ones((2, 3), dtype) for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
    opt.build(variables)
    start = 0.1 if isinstance(opt, Adagrad) else 0
    for variable in variables:
        slots = opt.slots(variable)
        assert list(slots) == names
        compute = np.float64 if variable.dtype == np.float64 else np.float32
        for slot in slots.values():
            assert slot.shape == (2, 3)
            assert slot.dtype == compute
            assert (slot == compute(start)).all()
    assert len(opt.variables) == 4 * len(names)
    in_order = [slot for variable in variables for slot in opt.slots(variable).values()]
    assert all(np.shares_memory(a, b) for a, b in zip(opt.variables, in_order, strict=True))
    assert opt.slots(variables[0][:]).keys() == set(names), "a view of the very memory is the variable"


def test_slots_are_live() -> None:
    opt, w = SGD(1.0, momentum=0.5), np.zeros(2)
    opt.build([w])
    momentum = opt.slots(w)["momentum"]
    opt.apply([np.ones(2)], [w])
    assert (momentum == -1).all()
    momentum[...] = 4
    opt.apply([np.zeros(2)], [w])
    assert (momentum == 2).all()
    assert (w == 1).all()


@pytest.mark.parametrize("name", ["acumulator", "gradient_accumulator", "average"])
def test_an_initial_value_of_no_slot_of_the_rule_is_refused(name: str) -> None:
    class Mistaken(Adagrad):
        def _initial(self) -> dict[str, float]:
            return {name: 0.1}

    with pytest.raises(
        ValueError, match=f"initial value of '{name}', which is no slot of the rule 'adagrad'"
    ):
        Mistaken(use_ema=True, gradient_accumulation_steps=2).build([np.ones(3)])


def test_initial_accumulator_value() -> None:
    opt, w = Adagrad(initial_accumulator_value=0.5), np.zeros(2, np.float32)
    opt.build([w])
    assert (opt.slots(w)["accumulator"] == 0.5).all()
    assert opt.slots(w)["accumulator"].dtype == np.float32


# Stages around the rule, by hand.


def test_weight_decay_is_times_the_learning_rate_and_before_the_rule() -> None:
    w = np.array([2.0])
    SGD(0.5, weight_decay=0.25).apply([np.array([1.0])], [w])
    assert w[0] == (2 - 2 * 0.125) - 0.5
    w = np.array([2.0])
    AdamW(0.5, weight_decay=0.25).apply([np.array([0.0])], [w])
    assert w[0] == 2 - 2 * 0.125


def test_l2_adds_to_the_gradient() -> None:
    w = np.array([2.0])
    SGD(0.5, l2=0.25).apply([np.array([1.0])], [w])
    assert w[0] == 2 - 0.5 * (1 + 0.25 * 2)
    w = np.array([2.0])
    opt = SGD(0.5, l2=0.25, weight_decay=0.5)
    opt.apply([np.array([1.0])], [w])
    assert w[0] == (2 - 2 * 0.25) - 0.5 * (1 + 0.25 * 2), "the penalty sees the variable before the decay"


def test_maximize_negates_the_gradient_before_the_penalty() -> None:
    w = np.array([2.0])
    SGD(0.5, maximize=True).apply([np.array([1.0])], [w])
    assert w[0] == 2.5
    w = np.array([2.0])
    SGD(0.5, maximize=True, l2=0.25).apply([np.array([1.0])], [w])
    assert w[0] == 2 - 0.5 * (-1 + 0.25 * 2)


@pytest.mark.parametrize("stage", ["weight_decay", "l2"])
def test_zero_and_none_are_off(stage: str) -> None:
    """A stage that is off is absent: with a coefficient of 0 an infinite variable would become NaN."""
    off: list[dict[str, Any]] = [{stage: 0}, {stage: None}]
    for arguments in off:
        w = np.array([np.inf, 1.0])
        SGD(0.5, **arguments).apply([np.zeros(2)], [w])
        assert w.tolist() == [np.inf, 1.0]
    opt = AdamW(0.5, weight_decay=None)
    w = np.array([2.0])
    opt.apply([np.array([0.0])], [w])
    assert w[0] == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta_1", 0.5),
        ("beta_2", 0.25),
        ("epsilon", 0.5),
        ("epsilon_hat", True),
        ("weight_decay", 0.5),
        ("l2", 0.5),
        ("maximize", True),
        ("learning_rate", 0.5),
    ],
)
def test_hyperparameters_set_between_steps_take_effect(name: str, value: Any) -> None:
    """The next step is that of an optimizer with the new value and the same state."""
    opt, w = Adam(0.125), np.ones(3)
    opt.apply([np.full(3, 0.5)], [w])
    twin, v = Adam.from_config(opt.get_config() | {name: value}), w.copy()
    twin.build([v])
    for slot, theirs in opt.slots(w).items():
        twin.slots(v)[slot][...] = theirs
    twin._plans[0].calls = twin._plans[0].updates = 1
    unchanged, u = Adam(0.125), np.ones(3)
    unchanged.apply([np.full(3, 0.5)], [u])

    setattr(opt, name, value)
    assert getattr(opt, name) == value
    for one, array in ((opt, w), (twin, v), (unchanged, u)):
        one.apply([np.full(3, 0.25)], [array])
    assert w.tobytes() == v.tobytes()
    assert w.tobytes() != u.tobytes()


def test_hyperparameters_set_between_steps_reach_every_build() -> None:
    opt, a, b = SGD(1.0, momentum=0.5), np.zeros(1), np.zeros(1)
    opt.build([a])
    opt.build([b])
    opt.momentum = 0.25
    for array in (a, b):
        for _ in range(2):
            opt.apply([np.ones(1)], [array])
        assert array[0] == -2.25


# What the build tells.


def test_build_info() -> None:
    info = fusedstep.build_info()
    assert set(info) == {"version", "compiler", "target", "targets", "openmp", "num_threads", "cuda"}
    assert info["version"] == fusedstep.__version__
    assert info["targets"][info["target"]] is True
    assert info["cuda"] == (fusedstep._native.cuda_version or None)
    assert info["num_threads"] == fusedstep.get_num_threads() >= 1


# What single classes do.


def test_nadam_keeps_the_momenta_of_former_updates() -> None:
    """The product of momenta is state: those before a change of beta_1 stay in it."""
    w, g = np.zeros(1), np.ones(1)
    opt = Nadam(1.0, beta_1=0.5, beta_2=0.0, epsilon=1e-300)
    opt.apply([g], [w])
    opt.beta_1 = 0.75
    before = w.copy()
    opt.apply([g], [w])
    mu = [0.5 * (1 - 0.5 * 0.96), 0.75 * (1 - 0.5 * 0.96**2), 0.75 * (1 - 0.5 * 0.96**3)]
    momentum = 0.75 * 0.5 + 0.25
    product = mu[0] * mu[1]
    expected = mu[2] * momentum / (1 - product * mu[2]) + (1 - mu[1]) / (1 - product)
    assert abs((before - w)[0] - expected) < 1e-14


@pytest.mark.parametrize("steps", [0, 2])
def test_ftrl_refuses_to_divide_by_a_learning_rate_of_zero(steps: int) -> None:
    w, g, opt = np.ones(3), np.ones(3), Ftrl(0.1)
    for _ in range(steps):
        opt.apply([g], [w])
    before = [a.tobytes() for a in (w, *opt.variables)]
    for zero in (0.0, -0.0, lambda step: 0):
        opt.learning_rate = zero
        with pytest.raises(
            ValueError,
            match=r"Ftrl: learning_rate must not be so near to 0 .* got -?0\.0; the rule divides by it",
        ):
            opt.apply([g], [w])
    assert [a.tobytes() for a in (w, *opt.variables)] == before
    opt.learning_rate = 0.1
    opt.apply([g], [w])
    assert opt.iterations == steps + 1


def test_ftrl_divides_by_the_learning_rate_of_each_variable() -> None:
    w, b, opt = np.ones(2), np.ones(2, np.float32), Ftrl(0.1)
    opt.build([w, b])
    opt.adjust(b, learning_rate_multiplier=1e-40)
    with pytest.raises(ValueError, match=r"so near to 0 .* in float32, got 0\.1 \* 1e-40; .*frozen=True"):
        opt.apply([np.ones(2), np.ones(2, np.float32)])
    opt.adjust(b, frozen=True)  # as the sentence advises
    opt.apply([np.ones(2), np.ones(2, np.float32)])
    assert (b == 1).all()
    opt.adjust(b, learning_rate_multiplier=1.0, frozen=False)
    opt.adjust(w, learning_rate_multiplier=1e-40)
    opt.apply([np.ones(2), np.ones(2, np.float32)])
    assert np.isfinite(w).all()


def test_ftrl_leaves_at_zero_what_has_had_no_gradient() -> None:
    """As the paper has it; 0/0 in other libraries, where the accumulator starts at 0."""
    w, opt = np.zeros(2), Ftrl(0.1, initial_accumulator_value=0.0, l1_regularization_strength=0.5)
    opt.apply([np.array([1.0, 0.0])], [w])
    assert w[0] < 0
    assert w[1] == 0


def test_ftrl_weights_that_l1_outweighs_are_exactly_zero() -> None:
    w, opt = np.zeros(3), Ftrl(0.1, l1_regularization_strength=1.0)
    opt.apply([np.array([0.5, -0.5, 4.0])], [w])
    assert (w[:2] == 0).all()
    assert w[2] < 0


def test_signatures_of_classes_of_one_s_own() -> None:
    """Also those of further classes, and of an __init__ that comes from a class before ours."""

    class Same(AdamW):
        pass

    for cls in classes_of_one_s_own(AdamW):
        assert list(inspect.signature(cls).parameters) == ["rate"]
    assert inspect.signature(Same) == inspect.signature(AdamW)
