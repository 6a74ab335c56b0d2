"""The bits of the definition, and so of the CPU, for every optimizer on a GPU."""

import itertools
from typing import Any

import numpy as np
import pytest

from conftest import DTYPES, STAGES, VARIANTS, WITH_POW, Array, random_array, with_arguments
from fusedstep import SGD, Adam, Lamb, Nadam, Optimizer, RAdam
from gpu.libraries import GPU, assert_same, fresh, host, id_of, on_gpu, only_cupy
from reference import Reference, same_bits

pytestmark = GPU

SIZES = [0, 1, 3, 15, 16, 17, 511, 513, 4095, 4096, 4097]
PAIRS = list(itertools.product(DTYPES, DTYPES))
CANARY = 0xA5


def take_steps(
    library: Any, optimizer: Optimizer, cases: list[tuple[int, Any, Any]], steps: int = 3
) -> tuple[list[Any], Reference]:
    """Steps over arrays of some sizes and dtypes, with values of all kinds in the longer ones."""
    rng = np.random.default_rng(1)
    start = [random_array(rng, size, of, special=size > 100) for size, of, _ in cases]
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    for _ in range(steps):
        grads = [random_array(rng, size, of, special=size > 100) for size, _, of in cases]
        optimizer.apply(on_gpu(library, grads), variables)
        reference.apply(grads)
    return variables, reference


@only_cupy
@pytest.mark.parametrize("stages", STAGES, ids=id_of)
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_all_sizes_and_dtypes(variant: Optimizer, stages: dict[str, Any], library: Any) -> None:
    """All sizes in all pairs of dtypes of variable and gradient, in one step."""
    optimizer = with_arguments(variant, **stages)
    cases = [(size, *pair) for size, pair in itertools.product(SIZES, PAIRS)]
    variables, reference = take_steps(library, optimizer, cases)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("optimizer", [SGD(0.1), Adam(0.01, weight_decay=0.01), Lamb(0.01)], ids=repr)
def test_all_sizes_and_dtypes_of_each_library(optimizer: Optimizer, library: Any) -> None:
    optimizer = fresh(optimizer)
    cases = [(size, *pair) for size, pair in itertools.product(SIZES, PAIRS)]
    variables, reference = take_steps(library, optimizer, cases)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("stages", [{}, {"weight_decay": 0.01}, {"clipnorm": 0.5}], ids=id_of)
def test_offsets_and_canaries(stages: dict[str, Any], dtype: Any, library: Any) -> None:
    """Variables and gradients at every phase of what a thread loads at once; no byte beside them changes."""
    rng = np.random.default_rng(2)
    itemsize = np.dtype(dtype).itemsize
    for size, phase in itertools.product([1, 17, 2049, 4097], range(0, 64, max(itemsize, 4))):
        optimizer, start = Adam(0.01, **stages), random_array(rng, size, dtype)
        buffer, variable = framed(library, start, phase)
        reference = Reference(optimizer, [start])
        for _ in range(2):
            gradient = random_array(rng, size, dtype)
            optimizer.apply([library.array(gradient, (3 * phase + itemsize) % 64)], [variable])
            reference.apply([gradient])
        assert_same(optimizer, [variable], reference)
        beside = np.delete(host(buffer), slice(phase + 64, phase + 64 + size * itemsize))
        assert (beside == CANARY).all()


def framed(library: Any, values: Array, offset: int) -> tuple[Any, Any]:
    """A buffer of canaries, and an array inside it."""
    frame = np.full(64 + offset + values.nbytes + 64, CANARY, np.uint8)
    frame[64 + offset : -64] = np.frombuffer(values.tobytes(), np.uint8)
    buffer = library.array(frame)
    return buffer, library.inside(buffer, 64 + offset, values)


@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_the_same_step_on_the_cpu_and_the_gpu(variant: Optimizer, library: Any) -> None:
    """Arrays that many blocks share, among small and empty ones, and None here and there."""
    rng = np.random.default_rng(3)
    shapes = [(0,), (100_003,), (7, 0), (64, 65), (), (262_144,), (3,), (5, 4096)]
    dtypes = [DTYPES[i] for i in (0, 0, 1, 1, 0, 3, 2, 0)]
    on_cpu, on_device = (with_arguments(variant, weight_decay=0.01, global_clipnorm=1.0) for _ in range(2))
    here = [random_array(rng, shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    there = on_gpu(library, here)
    for step in range(3):
        grads: list[Any] = [random_array(rng, shape, np.float32) for shape in shapes]
        if step == 1:
            grads[1] = grads[-1] = None
        on_cpu.apply(grads, here)
        on_device.apply(on_gpu(library, grads), there)
        assert on_cpu.gradient_norm == float(host(on_device.gradient_norm))
    for ours, theirs in zip(here, there, strict=True):
        assert same_bits(ours, host(theirs))
        for name, slot in on_cpu.slots(ours).items():
            assert same_bits(slot, host(on_device.slots(theirs)[name]))


@pytest.mark.parametrize(
    "optimizer", [Adam(0.01), Nadam(0.01), Nadam(0.01, momentum_decay=0.004), RAdam(0.01)], ids=repr
)
def test_many_steps(optimizer: Optimizer, library: Any) -> None:
    """Coefficients for large t, which the GPU computes for itself."""
    optimizer = fresh(optimizer)
    variables, reference = take_steps(library, optimizer, [(37, dtype, np.float32) for dtype in DTYPES], 300)
    assert_same(optimizer, variables, reference)


@pytest.mark.parametrize("variant", WITH_POW, ids=repr)
def test_rules_with_pow_keep_a_bound(variant: Optimizer, library: Any) -> None:
    """Where a library's pow takes part: 16 units in the last place of the largest value of an array."""
    rng = np.random.default_rng(7)
    optimizer = fresh(variant)
    start = [random_array(rng, 4097, dtype) for dtype in DTYPES[:2]]
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    for _ in range(3):
        grads = [random_array(rng, 4097, dtype) for dtype in DTYPES[:2]]
        optimizer.apply(on_gpu(library, grads), variables)
        reference.apply(grads)
    for variable, expected, slots in zip(variables, reference.variables, reference.slots, strict=True):
        pairs = [(variable, expected), *((optimizer.slots(variable)[name], slots[name]) for name in slots)]
        for ours, theirs in pairs:
            bound = 16 * np.finfo(theirs.dtype).eps * np.max(np.abs(theirs))
            assert np.max(np.abs(host(ours) - theirs)) <= bound
