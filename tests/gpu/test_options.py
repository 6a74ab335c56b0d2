"""What is folded into a step on a GPU, to the bits of the reference: clipping, averages, scales, replicas."""

from typing import Any

import numpy as np
import pytest

from conftest import DTYPES, OPTIONS, VARIANTS, random_array, with_arguments
from fusedstep import Adam, AdamW, LossScaleOptimizer, Optimizer
from gpu.libraries import GPU, assert_same, host, id_of, on_gpu, only_cupy
from reference import Reference

pytestmark = GPU

FEW = [(17, DTYPES[0]), (4097, DTYPES[0]), (513, DTYPES[1]), (4097, DTYPES[1])]
FEW += [(600, DTYPES[2]), (600, DTYPES[3]), (40_000, DTYPES[0])]


@only_cupy
@pytest.mark.parametrize("options", OPTIONS, ids=id_of)
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_every_option_with_every_rule(variant: Optimizer, options: dict[str, Any], library: Any) -> None:
    assert take_steps_with_options(library, with_arguments(variant, **options), special=False).skips == 0


@pytest.mark.parametrize("options", OPTIONS, ids=id_of)
def test_special_values(options: dict[str, Any], library: Any) -> None:
    """Infinities and NaNs go through as the formulas say, or the call is left out."""
    reference = take_steps_with_options(library, AdamW(0.01, **options), special=True)
    assert (reference.skips > 0) == ("skip_nonfinite" in options)


def take_steps_with_options(library: Any, optimizer: Optimizer, special: bool) -> Reference:
    rng = np.random.default_rng(4)
    start = [random_array(rng, size, dtype) for size, dtype in FEW]
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    for step in range(7):
        grads: list[Any] = [
            random_array(rng, size, dtype if number % 3 else np.float32, special=special and step % 2 == 1)
            for number, (size, dtype) in enumerate(FEW)
        ]
        grads[step % len(FEW)] = None
        reference.apply(grads)
        optimizer.apply(on_gpu(library, grads), variables)
        assert optimizer.iterations == reference.updates
        assert optimizer.skipped_calls == reference.skips
        if reference.norm is not None:
            np.testing.assert_equal(float(host(optimizer.gradient_norm)), reference.norm)
    assert_same(optimizer, variables, reference)
    return reference


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=id_of)
def test_replicas(options: dict[str, Any], mean: bool, library: Any) -> None:
    rng = np.random.default_rng(5)
    optimizer = Adam(0.01, **options)
    start = [random_array(rng, size, dtype) for size, dtype in FEW]
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    for step in range(4):
        replicas: list[list[Any]] = [
            [random_array(rng, size, DTYPES[(k + step) % 4]) for k, (size, _) in enumerate(FEW)]
            for _ in range(3)
        ]
        replicas[step % 3][4] = None
        reference.apply(replicas=replicas, mean=mean)
        given = [on_gpu(library, replica) for replica in replicas]
        optimizer.apply(variables=variables, replicas=given, mean=mean)
    assert_same(optimizer, variables, reference)


def test_settings_of_single_variables(library: Any) -> None:
    rng = np.random.default_rng(6)
    names = ["a/kernel", "a/bias", "b/kernel", "b/bias"]
    start = [random_array(rng, 5000, np.float32) for _ in names]
    optimizer = Adam(0.01, weight_decay=0.1, global_clipnorm=1.0)
    optimizer.adjust("a", learning_rate_multiplier=0.5)
    variables = on_gpu(library, start)
    optimizer.build(dict(zip(names, variables, strict=True)))
    optimizer.adjust([variables[2], "a/bias"], weight_decay=0.0)
    optimizer.adjust(variables[3], frozen=True)
    reference = Reference(
        optimizer,
        start,
        {
            0: {"learning_rate_multiplier": 0.5},
            1: {"learning_rate_multiplier": 0.5, "weight_decay": 0.0},
            2: {"weight_decay": 0.0},
            3: {"frozen": True},
        },
    )
    for _ in range(3):
        grads = [random_array(rng, 5000, np.float32) for _ in names]
        optimizer.apply(on_gpu(library, grads))
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


def test_a_dynamic_loss_scale(library: Any) -> None:
    """The scale's course, and a loss that is scaled on the device in its own dtype, the bits of the CPU."""
    optimizer, twin = (LossScaleOptimizer(Adam(0.01), 8.0, 2) for _ in range(2))
    start = random_array(np.random.default_rng(7), 5000, np.float32)
    here, variable, loss = start.copy(), library.array(start), library.array(np.array(3, np.float32))
    for mark in "++-+++--++":
        scaled = optimizer.scale_loss(loss)
        assert scaled.dtype == loss.dtype
        assert float(host(scaled)) == twin.scale_loss(3.0)
        gradient = random_array(np.random.default_rng(8), 5000, np.float16)
        gradient[-1] = np.inf if mark == "-" else 1
        optimizer.apply([library.array(gradient)], [variable])
        twin.apply([gradient], [here])
        assert optimizer.dynamic_scale == twin.dynamic_scale
    assert host(variable).tobytes() == here.tobytes()
