"""Steps that set gradients to zero as they read them, which an adapter asks plans for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import DTYPES, random_array
from fusedstep import SGD, Adam, Lamb, Optimizer
from fusedstep._native import simulation
from reference import Reference, same_bits

Array = npt.NDArray[Any]

SIZES = [0, 1, 17, 513, 4097, 70_000]


def clearing(optimizer: Optimizer, variables: list[Any]) -> Any:
    """Build, and return the plan with that option."""
    optimizer.build(variables)
    plan, options = optimizer._plan, optimizer._options()
    assert plan is not None
    options.clears_gradients = True
    optimizer._options = lambda: options  # type: ignore[method-assign]
    optimizer._configure(plan)
    return plan


def on_cpu(array: Array) -> Any:
    return array.copy()


def on_gpu(array: Array) -> Any:
    return simulation.array_on(0, array)


@pytest.mark.parametrize("place", [on_cpu, on_gpu])
@pytest.mark.parametrize(
    "optimizer", [SGD(0.1), Adam(0.01, use_ema=True, clipnorm=1.0), Lamb(0.01)], ids=repr
)
def test_bits_and_zeros(
    optimizer: Optimizer, place: Callable[[Array], Any], target: str, threads: int, gpus: None
) -> None:
    """Also what was inf or NaN is +0, whatever the dtypes of variable and gradient."""
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        start = [random_array(rng, size, dtype) for size in SIZES]
        one = type(optimizer).from_config(optimizer.get_config())
        variables, reference = [place(array) for array in start], Reference(one, start)
        plan = clearing(one, variables)
        for step in range(3):
            given = [
                random_array(rng, size, DTYPES[(step + k) % 4], special=step == 2)
                for k, size in enumerate(SIZES)
            ]
            grads = [place(gradient) for gradient in given]
            plan.step(grads, None, one.learning_rate)
            reference.apply(given)
            assert all(not gradient.copy().tobytes().strip(b"\0") for gradient in grads)
        for variable, expected in zip(variables, reference.variables, strict=True):
            assert same_bits(variable.copy(), expected)


@pytest.mark.parametrize("place", [on_cpu, on_gpu])
def test_a_rule_without_any_stage(place: Callable[[Array], Any], gpus: None) -> None:
    """Else it would be taken by the loop, or kernel, that has none."""
    for dtype in DTYPES:
        w, g = place(np.ones(5000, dtype)), place(np.ones(5000, dtype))
        clearing(SGD(0.5), [w]).step([g], None, 0.5)
        assert not g.copy().any()
        assert (w.copy() == 0.5).all()


def test_what_lies_beside_a_gradient_stays(target: str, threads: int) -> None:
    whole, w = np.ones(20_000, np.float32), np.ones(19_001, np.float32)
    clearing(SGD(1.0), [w]).step([whole[3:19_004]], None, 1.0)
    assert (whole[:3] == 1).all()
    assert (whole[3:19_004] == 0).all()
    assert (whole[19_004:] == 1).all()
    assert (w == 0).all()


def test_a_gradient_that_is_read_through_a_copy() -> None:
    w, g = np.ones((3, 4), np.float32), np.ones((4, 3), np.float32)
    plan = clearing(SGD(0.5), [w])
    for expected in (0.5, 0.0):
        g[...] = 1
        plan.step([g.T], None, 0.5)
        assert (w == expected).all()
        assert (g == 0).all()


def test_none_and_accumulation() -> None:
    """Each call's gradient is set to zero, also where the call makes no update."""
    w, v = np.ones(5), np.ones(5)
    plan = clearing(SGD(0.5, gradient_accumulation_steps=2), [w, v])
    g = np.ones(5)
    plan.step([g, None], None, 0.5)
    assert not g.any()
    g[...] = 3
    plan.step([g, None], None, 0.5)
    assert not g.any()
    assert w.tolist() == [0.0] * 5
    assert v.tolist() == [1.0] * 5


def test_refusals() -> None:
    w, frozen = np.ones(5), np.ones(5)
    frozen.flags.writeable = False
    plan = clearing(SGD(0.5), [w])
    plan.step([np.zeros(5)], None, 0.5)
    rows = (np.array([0]), np.ones(1))
    bad: list[tuple[Any, Any, type[Exception], str]] = [
        (frozen, None, ValueError, r"grads\[0\] is read-only, but this step sets it to zero; pass g\.copy"),
        (w, None, ValueError, r"grads\[0\] shares memory with its own variable"),
        (rows, None, TypeError, r"grads\[0\] has rows, but this step sets gradients to zero; pass an array"),
        (np.ones(5), [[np.ones(5)]], ValueError, "there are replicas, but this step sets gradients to zero"),
    ]
    for gradient, replicas, error, sentence in bad:
        with pytest.raises(error, match=sentence):
            plan.step([gradient], None, 0.5, replicas)
        assert w.tolist() == [1.0] * 5
    assert (frozen == 1).all()
