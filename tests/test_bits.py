"""The same bits everywhere: every optimizer against the reference, on every target."""

import itertools
from typing import Any

import numpy as np
import pytest

from conftest import DTYPES, STAGES, VARIANTS, WITH_POW, random_array, with_arguments
from fusedstep import Adam, Nadam, Optimizer, RAdam
from fusedstep.optimizers import ALL
from reference import REFERENCES, Reference, assert_same

SIZES = [0, 1, 3, 15, 16, 17, 511, 512, 513, 4097]
PAIRS = list(itertools.product(DTYPES, DTYPES))
CANARY = 0xA5


def test_every_optimizer_has_a_reference_and_variants() -> None:
    assert set(REFERENCES) == set(ALL)
    assert {type(variant) for variant in VARIANTS} == set(ALL)


@pytest.mark.parametrize("stages", STAGES, ids=lambda stages: "+".join(stages) or "bare")
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_all_sizes_and_dtypes(variant: Optimizer, stages: dict[str, Any], target: str) -> None:
    """All sizes in all pairs of dtypes of variable and gradient, in one step; special values too."""
    rng = np.random.default_rng(1)
    optimizer = with_arguments(variant, **stages)
    cases = list(itertools.product(SIZES, PAIRS))
    variables = [random_array(rng, size, pair[0], special=size > 100) for size, pair in cases]
    reference = Reference(optimizer, variables)
    for _ in range(3):
        grads = [random_array(rng, size, pair[1], special=size > 100) for size, pair in cases]
        optimizer.apply(grads, variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("stages", STAGES[:2], ids=lambda stages: "+".join(stages) or "bare")
def test_alignments_and_canaries(stages: dict[str, Any], dtype: Any, target: str) -> None:
    """Variables and gradients at every phase of a cache line; no byte beside them changes."""
    rng = np.random.default_rng(2)
    itemsize = np.dtype(dtype).itemsize
    for size in [1, 17, 513, 2049, 4097]:
        for phase in range(0, 64, max(itemsize, 4)):
            optimizer = Adam(0.01, **stages)
            buffers = []
            for shift in (phase, (3 * phase + itemsize) % 64):
                buffer = np.full(64 + 64 + size * itemsize + 64, CANARY, np.uint8)
                start = -buffer.ctypes.data % 64 + shift
                inside = buffer[start : start + size * itemsize]
                inside.view(dtype)[...] = random_array(rng, size, dtype)
                buffers.append((buffer, inside, start))
            (variable_buffer, variable_bytes, start), (gradient_buffer, gradient_bytes, _) = buffers
            variable, gradient = variable_bytes.view(dtype), gradient_bytes.view(dtype)
            gradient_before = gradient_buffer.copy()
            reference = Reference(optimizer, [variable])
            for _ in range(2):
                optimizer.apply([gradient], [variable])
                reference.apply([gradient])
            assert_same(optimizer, [variable], reference)
            assert (gradient_buffer == gradient_before).all()
            beside = np.delete(variable_buffer, slice(start, start + size * itemsize))
            assert (beside == CANARY).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_threads_and_splits(variant: Optimizer, target: str, threads: int) -> None:
    """Large arrays, cut across threads and inside arrays, among small and empty ones."""
    rng = np.random.default_rng(3)
    shapes = [(0,), (100003,), (7, 0), (64, 65), (), (262144,), (3,), (5, 4096)]
    dtypes = [DTYPES[0], DTYPES[0], DTYPES[1], DTYPES[1], DTYPES[0], DTYPES[3], DTYPES[2], DTYPES[0]]
    optimizer = with_arguments(variant, weight_decay=0.01)
    variables = [random_array(rng, shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    reference = Reference(optimizer, variables)
    for step in range(3):
        grads: list[Any] = [random_array(rng, shape, np.float32) for shape in shapes]
        if step == 1:
            grads[1] = grads[-1] = None
        optimizer.apply(grads, variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [
        (Adam(0.01), 2000),
        (Nadam(0.01), 400),
        (Nadam(0.01, momentum_decay=0.004), 400),
        (RAdam(0.01), 400),  # rectified from the sixth update on
        (RAdam(0.01, beta_2=0.66), 40),  # and never
    ],
)
def test_many_steps(optimizer: Optimizer, steps: int, target: str) -> None:
    """Coefficients for large t, in both compute types: 1 - beta^t loses nothing, products neither."""
    rng, optimizer = np.random.default_rng(4), optimizer.clone()
    variables = [random_array(rng, 37, dtype) for dtype in DTYPES]
    reference = Reference(optimizer, variables)
    for _ in range(steps):
        grads = [random_array(rng, 37, np.float32) for _ in DTYPES]
        optimizer.apply(grads, variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("stages", STAGES, ids=lambda stages: "+".join(stages) or "bare")
@pytest.mark.parametrize("variant", WITH_POW, ids=repr)
def test_rules_with_pow_keep_a_bound(variant: Optimizer, stages: dict[str, Any], target: str) -> None:
    """Where a library's pow takes part: 16 units in the last place of the largest value of an array."""
    rng = np.random.default_rng(7)
    optimizer = with_arguments(variant, **stages)
    variables = [random_array(rng, 4097, dtype) for dtype in DTYPES[:2]]
    reference = Reference(optimizer, variables)
    for _ in range(3):
        grads = [random_array(rng, 4097, dtype) for dtype in DTYPES[:2]]
        optimizer.apply(grads, variables)
        reference.apply(grads)
    for variable, expected, slots in zip(variables, reference.variables, reference.slots, strict=True):
        pairs = [(variable, expected), *((optimizer.slots(variable)[name], slots[name]) for name in slots)]
        for ours, theirs in pairs:
            bound = 16 * np.finfo(theirs.dtype).eps * np.max(np.abs(theirs))
            assert np.max(np.abs(ours - theirs)) <= bound
