"""Groups of variables that are apart: hyperparameters and counts of their own, in one call."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fusedstep import SGD, AdamW, Nadam, Optimizer, _native
from fusedstep._native import simulation

Array = npt.NDArray[Any]
SIZES = (3, 5000, 17, 4097)


@pytest.fixture
def gpu() -> Iterator[None]:
    simulation.start(1, 3)
    yield
    simulation.stop()


def arrays(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(np.float32) for size in SIZES]


def numbers_of(optimizer: Optimizer) -> list[float]:
    names = _native.rules()[optimizer._rule()][1]
    hyperparameters: Any = optimizer._hyperparameters
    return [hyperparameters[name].number(optimizer._values[name]) for name in names]


def plan_over(variables: list[Any], rule: str) -> tuple[_native.Plan, int]:
    """A plan without settings, and how many hyperparameters its groups have."""
    plan = _native.Plan("Groups", rule, False, False, variables, [], {}, [])
    names = _native.rules()[rule][1]
    plan.configure(
        rule, dict.fromkeys(names, 0.0), _native.Options(), _native.VariableSettings(1, 0, False), {}
    )
    return plan, len(names)


@pytest.mark.parametrize("ask", ["variable", "shape", "dtype"])
def test_an_index_beyond_the_variables_is_refused(ask: str) -> None:
    plan, _ = plan_over([np.zeros(3)], "sgd")
    with pytest.raises(IndexError):
        getattr(plan, ask)(1 << 40)


def take_steps(put: Callable[[Array], Any], optimizers: list[Optimizer]) -> list[bytes]:
    """Variables after some steps, each of a group; the second one has no gradient in the first two."""
    first = optimizers[0]
    variables = [put(array) for array in arrays(0)]
    plan, _ = plan_over(variables, first._rule())
    for step in range(5):
        behind = [0, min(step, 2), 0, 0]
        groups = [
            _native.Group(
                optimizer.learning_rate,
                optimizer.weight_decay or 0.0,
                optimizer.l2 or 0.0,
                numbers_of(optimizer),
                behind[k],
                1.0 if step == behind[k] else plan.carried_of(k),  # before its first update
            )
            for k, optimizer in enumerate(optimizers)
        ]
        plan.set_groups(groups, list(range(4)) if step == 0 else None)
        grads: list[Any] = [put(array) for array in arrays(step + 1)]
        if step < 2:
            grads[1] = None
        plan.step(grads, None, 1.0)
    return [np.asarray(variable.copy()).tobytes() for variable in variables]


@pytest.mark.parametrize("cls", [AdamW, Nadam])
def test_each_group_is_as_if_alone(cls: type[Optimizer], gpu: None) -> None:
    """To the bits, on the host and on a GPU."""
    given: list[dict[str, Any]] = [{}, {"beta_1": 0.5}, {"l2": 0.1, "epsilon": 1e-3}, {"weight_decay": 0.1}]
    optimizers = [cls(0.01 * (k + 1), **arguments) for k, arguments in enumerate(given)]
    expected = []
    for k, (optimizer, w) in enumerate(zip(optimizers, arrays(0), strict=True)):
        for step in range(5):
            if k != 1 or step >= 2:
                optimizer.apply([arrays(step + 1)[k]], [w])
        expected.append(w.tobytes())
    assert take_steps(np.array, optimizers) == expected
    assert take_steps(lambda array: simulation.array_on(0, array), optimizers) == expected


def test_settings_of_variables_on_the_host_beside_others_on_a_gpu(gpu: None) -> None:
    here, there = np.ones(3), simulation.array_on(0, np.ones(3))
    optimizer = SGD(0.5)
    optimizer.build({"there": there, "here": here})
    optimizer.adjust("here", learning_rate_multiplier=0.5)
    optimizer.apply([simulation.array_on(0, np.ones(3)), np.ones(3)])
    assert here.tolist() == [0.75] * 3
    assert there.copy().tolist() == [0.5] * 3


def test_groups_that_do_not_fit_are_refused() -> None:
    w = np.zeros(2, np.float32)
    plan = _native.Plan("Groups", "sgd", False, False, [w], [], {}, [])
    group = _native.Group(0.1, 0.0, 0.0, [], 0, 1.0)
    for groups, of in (
        ([group], [1]),
        ([group], [0, 0]),
        ([], None),
        ([group, group], None),
        ([group, group], [0]),
    ):
        with pytest.raises(
            ValueError, match=r"Groups: \d groups do not fit to 1 variables; each must be of one"
        ):
            plan.set_groups(groups, of)


@pytest.mark.parametrize("behind", [0, 2])
def test_what_groups_carry_is_carried_on_where_they_are(behind: int, gpu: None) -> None:
    """In steps for which nobody tells the groups anew, as replays of a graph are."""
    optimizer = Nadam(0.01)

    def found(put: Callable[[Array], Any]) -> list[bytes]:
        variables = [put(np.ones(5)) for _ in range(2)]
        plan, _ = plan_over(variables, optimizer._rule())
        numbers = numbers_of(optimizer)
        plan.set_groups([_native.Group(0.01, 0.0, 0.0, numbers, 0, 1.0) for _ in variables], [0, 1])
        for step in range(6):
            if behind and step == behind:
                first = _native.Group(0.01, 0.0, 0.0, numbers, 0, plan.carried_of(0))
                plan.set_groups([first, _native.Group(0.01, 0.0, 0.0, numbers, behind, 1.0)], None)
            late = None if step < behind else put(np.full(5, 2.0 + step))
            plan.step([put(np.full(5, 1.0 + step)), late], None, 1.0)
        return [one.copy().tobytes() for one in variables]

    assert found(np.array) == found(lambda array: simulation.array_on(0, array))


def test_variables_change_no_group_while_a_graph_is_captured(gpu: None) -> None:
    ws = [simulation.array_on(0, np.ones(2)) for _ in range(2)]
    plan, count = plan_over(ws, "sgd")
    groups = [_native.Group(rate, 0.0, 0.0, [0.0] * count, 0, 1.0) for rate in (0.5, 1.0)]
    plan.set_groups(groups, [0, 1])
    simulation.begin_capture()
    try:
        with pytest.raises(
            RuntimeError, match="a graph is captured, and a change of settings would have to wait"
        ):
            plan.set_groups(groups, [1, 0])
    finally:
        simulation.end_capture()
    plan.step([simulation.array_on(0, np.ones(2)) for _ in ws], None, 1.0)
    assert [w.copy().tolist() for w in ws] == [[0.5] * 2, [0.0] * 2]


def test_a_penalty_of_a_group_alone(gpu: None) -> None:
    for w, g in ((np.ones(5), np.ones(5)), [simulation.array_on(0, np.ones(5)) for _ in range(2)]):
        plan, count = plan_over([w], "sgd")
        plan.set_groups([_native.Group(0.5, 0.0, 0.5, [0.0] * count, 0, 1.0)], [0])
        plan.step([g], None, 1.0)
        assert w.copy().tolist() == [0.25] * 5
