"""What all tests share: the targets of this machine, threads, variants of every optimizer, and arrays."""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from fusedstep import Ftrl, Optimizer, _native
from fusedstep._native import simulation
from fusedstep.optimizers import ALL
from fusedstep.optimizers.hyperparameters import Hyperparameter

Array = npt.NDArray[Any]

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is imported

TARGETS = [name for name, supported in _native.targets().items() if supported]
DTYPES: list[Any] = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each target that this CPU runs, in turn."""
    before = _native.current_target()
    _native.select_target(request.param)
    yield request.param
    _native.select_target(before)


@pytest.fixture(params=[1, 2, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Some numbers of threads, more than there are CPUs among them."""
    fusedstep.set_num_threads(request.param)
    yield request.param
    fusedstep.set_num_threads(None)


@pytest.fixture(params=[1, 3, 100], ids=lambda blocks: f"{blocks} blocks")
def blocks(request: pytest.FixtureRequest) -> Iterator[int]:
    """One simulated GPU, with grids of various sizes."""
    simulation.start(1, request.param)
    yield request.param
    simulation.stop()


@pytest.fixture
def gpus() -> Iterator[None]:
    """Two simulated GPUs."""
    simulation.start(2, 3)
    yield
    simulation.stop()


def variants() -> list[Optimizer]:
    """Every optimizer in every combination of its switches, read from the declarations.

    A hyperparameter is a switch where it is a bool, has choices, or is a number that is off by default. Of
    more than two numbers only one is on, or all are.
    """
    found: list[Optimizer] = []
    for cls in ALL:
        switches: dict[str, tuple[Any, ...]] = {}
        numbers: set[str] = set()
        for name, parameter in cls._hyperparameters.items():
            if name in Optimizer._hyperparameters or not isinstance(parameter, Hyperparameter):
                continue
            if isinstance(parameter.default, bool):
                switches[name] = (False, True)
            elif parameter.choices:
                switches[name] = parameter.choices
            elif parameter.default == 0:
                switches[name] = (0.0, 0.875)
                numbers.add(name)
        for values in itertools.product(*switches.values()):
            arguments: dict[str, Any] = dict(zip(switches, values, strict=True))
            if 1 < sum(arguments[name] != 0 for name in numbers) < len(numbers):
                continue
            try:
                found.append(cls(0.01, **arguments))
            except ValueError:  # switches that contradict each other
                continue
    return found


VARIANTS = variants()
# The only ones without the promise of equal bits: their power is a library's.
WITH_POW: list[Optimizer] = [
    Ftrl(0.01, learning_rate_power=-0.7),
    Ftrl(0.01, learning_rate_power=-0.7, l2_shrinkage_regularization_strength=0.875),
]
STAGES: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.01},
    {"l2": 0.02},
    {"weight_decay": 0.01, "l2": 0.02, "maximize": True},
]
OPTIONS: list[dict[str, Any]] = [
    {"clipnorm": 0.5},
    {"global_clipnorm": 2.0, "weight_decay": 0.01},
    {"global_clipnorm": 2.0, "l2": 0.02},
    {"clipvalue": 0.25, "l2": 0.02},
    {"use_ema": True, "ema_momentum": 0.9},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2, "weight_decay": 0.01},
    {"loss_scale_factor": 3.0},
    {"gradient_accumulation_steps": 2, "loss_scale_factor": 3.0, "maximize": True},
    {"gradient_accumulation_steps": 3, "use_ema": True, "ema_overwrite_frequency": 2, "clipnorm": 0.5},
    {"gradient_accumulation_steps": 2, "global_clipnorm": 1.0, "skip_nonfinite": True, "use_ema": True},
    {"skip_nonfinite": True},
]


# Of lazy steps, which do not accumulate.
LAZY_OPTIONS: list[dict[str, Any]] = [
    {"lazy": True, **one} for one in ({}, *OPTIONS) if "gradient_accumulation_steps" not in one
]


def with_arguments(optimizer: Optimizer, **arguments: Any) -> Optimizer:
    """An optimizer like this one, but for the arguments."""
    return type(optimizer).from_config(optimizer.get_config() | arguments)


def random_array(rng: np.random.Generator, shape: Any, dtype: Any, special: bool = False) -> Array:
    """Ordinary values, or with zeros, subnormals, huge values, inf and NaN among them."""
    values = rng.standard_normal(shape)
    if special and values.size:
        tiny, huge = (2.0**-149, 2.0**100) if dtype != np.float16 else (2.0**-24, 60000.0)
        chosen = np.array([0.0, -0.0, tiny, -3 * tiny, 2.0**-126, huge, -huge, np.inf, -np.inf, np.nan, 1.0])
        places = rng.random(shape) < 0.3
        values = np.where(places, rng.choice(chosen, shape), values)
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(dtype)


def classes_of_one_s_own(cls: Any) -> list[type]:
    """With an __init__ of their own: in the class, in one before, and in one beside ours."""

    class Halved(cls):  # type: ignore[misc]
        def __init__(self, rate: float = 1.0) -> None:
            super().__init__(rate / 2)

    class Further(Halved):
        pass

    class Mixin:
        def __init__(self, rate: float = 1.0) -> None:
            super().__init__(rate / 2)  # type: ignore[call-arg]

    class Mixed(Mixin, cls):  # type: ignore[misc]
        pass

    return [Halved, Further, Mixed]


def check_that_other_bases_hear_of_subclasses(cls: type) -> None:
    """Of a class that has them beside `cls`, through __init_subclass__, with its keywords."""
    known = {}

    class Registered:
        def __init_subclass__(cls, key: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            known[key] = cls

    class Own(cls, Registered, key="own"):  # type: ignore[misc]
        pass

    assert known == {"own": Own}
