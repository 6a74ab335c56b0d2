"""Arrays of more than 2^31 elements, which a 32-bit index does not reach."""

from typing import Any

import numpy as np
import pytest

from conftest import DTYPES
from fusedstep import SGD, Adam, Optimizer
from gpu.libraries import GPU, fresh, host, loaded
from reference import Reference, same_bits

pytestmark = GPU

SIZE = 2**31 + 5
PART = 2**28  # what one operation of CuPy is given
PLACES = [0, 1, 2**30, 2**31 - 1, 2**31, SIZE - 1]


def filled(cupy: Any, value: Any) -> Any:
    """So many numbers of 16 bits, by their bits."""
    bits = cupy.empty(SIZE, np.uint16)
    for begin in range(0, SIZE, PART):
        bits[begin : begin + PART].fill(value)
    return bits


def need(cupy: Any, needed: int) -> None:
    cupy.get_default_memory_pool().free_all_blocks()
    free = cupy.cuda.runtime.memGetInfo()[0]
    if free < needed + 2**31:
        pytest.skip(f"needs {needed >> 30} GiB on the GPU and some more, {free >> 30} are free")


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("optimizer", [SGD(0.5), Adam(0.01), Adam(0.01, global_clipnorm=1e9)], ids=repr)
def test_every_element_is_updated(optimizer: Optimizer, dtype: Any, cupy: Any) -> None:
    """All have the bits of one that was alone; some at the ends and in the middle have another gradient."""
    optimizer = fresh(optimizer)
    reference = Reference(optimizer, [np.ones(2, dtype)])
    need(cupy, SIZE * (2 + 2 + 4 * len(reference.slots[0])))
    one, half, two = np.array([1.0, 0.5, 2.0]).astype(dtype).view(np.uint16)
    bits, gradient_bits = filled(cupy, one), filled(cupy, half)
    for place in PLACES:
        gradient_bits[place : place + 1].fill(two)

    variable, gradient = bits.view(dtype), gradient_bits.view(dtype)
    for _ in range(2):
        optimizer.apply([gradient], [variable])
        reference.apply([np.array([0.5, 2.0]).astype(dtype)])
    ordinary, other = reference.variables[0].view(np.uint16)
    assert optimizer.iterations == 2
    assert one != ordinary
    assert [int(bits[place]) for place in PLACES] == [int(other)] * len(PLACES)
    different = 0
    for begin in range(0, SIZE, PART):
        different += int(cupy.count_nonzero(bits[begin : begin + PART] != ordinary))
    assert different == (len(PLACES) if other != ordinary else 0)
    if reference.norm is not None:
        norm = np.sqrt(0.25 * (SIZE - len(PLACES)) + 4.0 * len(PLACES))
        assert float(host(optimizer.gradient_norm)) == pytest.approx(norm, rel=1e-12)


def test_an_array_behind_a_large_one(cupy: Any) -> None:
    """The slices of the next array begin where they should."""
    need(cupy, 4 * SIZE)
    library = loaded("cupy")
    zeros = filled(cupy, 0).view(np.float16)
    small = [library.array(np.full(4097, x, np.float16)) for x in (1.0, 2.0)]
    gradients = [library.array(np.full(4097, 0.5, np.float16)) for _ in small]
    SGD(1.0).apply([gradients[0], zeros.copy(), gradients[1]], [small[0], zeros, small[1]])
    assert same_bits(host(small[0]), np.full(4097, 0.5, np.float16))
    assert same_bits(host(small[1]), np.full(4097, 1.5, np.float16))
    assert not any(bool(zeros[begin : begin + PART].any()) for begin in range(0, SIZE, PART))
