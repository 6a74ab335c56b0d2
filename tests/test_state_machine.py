"""Random programs: steps, settings, copies and checkpoints in any order, to the bits of the reference."""

import copy
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fusedstep
from conftest import DTYPES, OPTIONS, TARGETS, VARIANTS, random_array, with_arguments
from fusedstep import LearningRateSchedule, Optimizer, _native
from fusedstep.optimizers import ALL
from fusedstep.schedules import ExponentialDecay, PiecewiseConstantDecay
from reference import Reference, assert_same, same_bits

Array = npt.NDArray[Any]

SHAPES: list[tuple[int, ...]] = [(7, 3), (), (36_000,), (0, 2), (513,), (4, 5, 2)]
OF: list[Any] = [np.float32, np.float32, np.float64, np.float16, *DTYPES[2:]]
RATES: list[float | LearningRateSchedule] = [
    0.01,
    0.3,
    ExponentialDecay(0.1, 3, 0.5),
    PiecewiseConstantDecay([2, 5], [0.1, 0.2, 0.05]),
]
HYPERPARAMETERS: list[tuple[str, Any]] = [
    ("l2", 0.25),
    ("l2", None),
    ("weight_decay", 0.5),
    ("weight_decay", None),
    ("maximize", True),
    ("maximize", False),
    ("loss_scale_factor", 3.0),
    ("loss_scale_factor", None),
]
SETTINGS: list[dict[str, Any]] = [
    {"frozen": True},
    {"frozen": False},
    {"learning_rate_multiplier": 3.0},
    {"learning_rate_multiplier": -0.5},
    {"weight_decay": 0.0},
    {"weight_decay": 0.125},
]
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["dense", "dense", "of float32", "none", "rows", "no rows", "strided"])


class Program(RuleBasedStateMachine):
    """An optimizer and its reference."""

    cls: type[Optimizer]

    @initialize(
        variant=st.integers(0, 2**16),
        options=st.sampled_from([{}, *OPTIONS]),
        rate=st.sampled_from(RATES),
        named=st.booleans(),
        seed=seeds,
    )
    def begin(
        self,
        variant: int,
        options: dict[str, Any],
        rate: float | LearningRateSchedule,
        named: bool,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        variants = [one for one in VARIANTS if type(one) is self.cls]
        self.target = _native.current_target()
        self.named = named
        self.rate = rate
        self.optimizer = with_arguments(variants[variant % len(variants)], **options, learning_rate=rate)
        self.variables = [random_array(rng, s, d) for s, d in zip(SHAPES, OF, strict=True)]
        self.reference = Reference(self.optimizer, self.variables)
        self.saved: tuple[Any, ...] | None = None
        self.left: list[tuple[Array, Array]] = []  # arrays of former owners, and what they must remain
        self.build()

    def build(self) -> None:
        names = [f"layer{i % 2}/{i}" for i in range(len(SHAPES))]
        self.optimizer.build(dict(zip(names, self.variables, strict=True)) if self.named else self.variables)

    # Steps.

    def gradient(self, index: int, kind: str, rng: np.random.Generator) -> Any:
        shape, dtype = SHAPES[index], OF[index]
        if kind == "none":
            return None
        if kind in ("rows", "no rows") and shape:
            count = int(rng.integers(1, 9)) if kind == "rows" and shape[0] else 0
            chosen = rng.integers(0, max(shape[0], 1), count)
            return chosen, random_array(rng, (count, *shape[1:]), dtype)
        if kind == "strided" and shape:
            return random_array(rng, shape[::-1], dtype).T
        return random_array(rng, shape, np.float32 if kind == "of float32" else dtype)

    def gradients(self, chosen: list[str], rng: np.random.Generator) -> list[Any]:
        return [self.gradient(index, kind, rng) for index, kind in enumerate(chosen)]

    def before_step(self) -> None:
        calls = self.reference.calls
        self.reference.config["learning_rate"] = self.rate(calls) if callable(self.rate) else self.rate
        assert self.optimizer.learning_rate == self.reference.config["learning_rate"]

    def after_step(self, calls: int) -> None:
        assert calls == self.reference.calls
        assert self.optimizer.gradient_norm == self.reference.norm

    @rule(chosen=st.tuples(*[kinds] * len(SHAPES)), seed=seeds, how=st.sampled_from(["all", "pairs", "some"]))
    def step(self, chosen: tuple[str, ...], seed: int, how: str) -> None:
        rng = np.random.default_rng(seed)
        grads = self.gradients([*chosen[:-1], "dense"], rng)
        self.before_step()
        self.reference.apply(grads)
        if how == "all":
            self.after_step(self.optimizer.apply(grads))
            return
        pairs = list(zip(grads, self.variables, strict=True))
        if how == "some":
            pairs = [pairs[i] for i in rng.permutation(len(pairs)) if grads[i] is not None]
        self.after_step(self.optimizer.apply_gradients(iter(pairs)))

    @rule(
        chosen=st.lists(st.tuples(*[kinds] * len(SHAPES)), min_size=1, max_size=3),
        mean=st.booleans(),
        seed=seeds,
    )
    def step_of_replicas(self, chosen: list[tuple[str, ...]], mean: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        replicas = [self.gradients([*one[:-1], "dense"], rng) for one in chosen]
        self.before_step()
        self.reference.apply(replicas=replicas, mean=mean)
        self.after_step(self.optimizer.apply(replicas=replicas, mean=mean))

    @precondition(lambda self: self.optimizer.skip_nonfinite)
    @rule(index=st.sampled_from([0, 2, 4]), bad=st.sampled_from([np.inf, -np.inf, np.nan]), seed=seeds)
    def step_that_is_not_finite(self, index: int, bad: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        grads = self.gradients(["dense"] * len(SHAPES), rng)
        grads[index].reshape(-1)[rng.integers(grads[index].size)] = bad
        self.before_step()
        self.reference.apply(grads)
        assert self.optimizer.apply(grads, self.variables) == self.reference.calls

    @rule()
    def refused_step(self) -> None:
        try:
            self.optimizer.apply([np.ones(5)] * len(SHAPES))
        except ValueError:
            return
        raise AssertionError("a gradient of another shape was taken")

    @precondition(lambda self: self.optimizer.use_ema)
    @rule()
    def finalize(self) -> None:
        self.optimizer.finalize_variable_values()
        for variable, slots in zip(self.reference.variables, self.reference.slots, strict=True):
            variable[...] = slots["average"].astype(variable.dtype)

    # Settings.

    @rule(index=st.sampled_from([0, 2]), values=st.sampled_from(SETTINGS))
    def adjust(self, index: int, values: dict[str, Any]) -> None:
        self.optimizer.adjust(self.variables[index], **values)
        self.reference.settings.setdefault(index, {}).update(values)

    @rule(rate=st.sampled_from(RATES))
    def set_learning_rate(self, rate: float | LearningRateSchedule) -> None:
        self.optimizer.learning_rate = rate
        self.rate = rate

    @rule(value=st.sampled_from(HYPERPARAMETERS))
    def set_hyperparameter(self, value: tuple[str, Any]) -> None:
        setattr(self.optimizer, *value)
        self.reference.config[value[0]] = value[1]

    @rule(way=st.sampled_from(["clipnorm", "global_clipnorm", "clipvalue"]), at=st.sampled_from([0.5, 40.0]))
    def set_clip(self, way: str, at: float) -> None:
        for name in ("clipnorm", "global_clipnorm", "clipvalue"):
            self.set_hyperparameter((name, None))
        self.set_hyperparameter((way, at))

    @rule(name=st.sampled_from(TARGETS), threads=st.sampled_from([1, 2, 7]))
    def set_target_and_threads(self, name: str, threads: int) -> None:
        _native.select_target(name)
        fusedstep.set_num_threads(threads)

    # Copies and checkpoints.

    def leave(self) -> None:
        """From now on the copies are the variables; what was is not to change."""
        former = [*self.variables, *self.optimizer.variables]
        self.left = [(array, array.copy()) for array in former]
        self.variables = [variable.copy() for variable in self.variables]

    @rule(how=st.sampled_from(["copy", "deepcopy", "pickle"]))
    def go_on_with_a_copy(self, how: str) -> None:
        if how == "pickle":
            twin = pickle.loads(pickle.dumps(self.optimizer))
        else:
            twin = getattr(copy, how)(self.optimizer)
        self.leave()
        self.optimizer = twin
        self.build()

    @rule(built=st.booleans(), dirty=st.booleans(), in_file=st.booleans())
    def go_on_from_a_checkpoint(self, built: bool, dirty: bool, in_file: bool) -> None:
        fresh = self.optimizer.clone()
        if isinstance(self.rate, float):
            fresh.learning_rate = 0.7  # the state's is taken
        self.leave()
        former, self.optimizer = self.optimizer, fresh
        if built or dirty:
            self.build()
        if dirty:
            before = [variable.copy() for variable in self.variables]
            fresh.apply([np.ones(variable.shape, np.float32) for variable in self.variables])
            for variable, value in zip(self.variables, before, strict=True):
                variable[...] = value
        if in_file:
            with tempfile.TemporaryDirectory() as folder:
                former.save(Path(folder) / "state")
                fresh.load(Path(folder) / "state")
        else:
            fresh.load_state_dict(former.state_dict())
        if not (built or dirty):
            self.build()
        for index, values in self.reference.settings.items():  # they are no part of a state
            fresh.adjust(self.variables[index], **values)

    @rule()
    def save_or_go_back(self) -> None:
        """Load the state saved before into the optimizer, whose settings stay."""
        if self.saved is None:
            variables = [variable.copy() for variable in self.variables]
            self.saved = (self.optimizer.state_dict(), variables, copy.deepcopy(self.reference), self.rate)
            return
        state, variables, reference, rate = self.saved
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hyperparameters that have changed since
            self.optimizer.load_state_dict(state)
        for variable, value in zip(self.variables, variables, strict=True):
            variable[...] = value
        reference.config, reference.settings = self.reference.config, self.reference.settings
        self.reference, self.saved = reference, None
        if isinstance(rate, float) and isinstance(self.rate, float):
            self.rate = rate

    # What holds after each of them.

    @invariant()
    def same(self) -> None:
        assert_same(self.optimizer, self.variables, self.reference)
        assert self.optimizer.iterations == self.reference.updates
        assert self.optimizer.skipped_calls == self.reference.skips
        assert all(same_bits(array, before) for array, before in self.left), "a former owner's array changed"

    def teardown(self) -> None:
        fusedstep.set_num_threads(None)
        if hasattr(self, "target"):
            _native.select_target(self.target)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_random_programs(cls: type[Optimizer]) -> None:
    """About 2 seconds for each class."""
    run_state_machine_as_test(
        type(f"{cls.__name__}Program", (Program,), {"cls": cls}),
        settings=settings(
            max_examples=15,
            stateful_step_count=15,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
