"""What nvcc's code reads and writes of a GPU's memory; tests/test_gpu_rehearsal.py runs it.

A large step takes the time of its bytes, if it moves each of them once, and in accesses of 16 bytes.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from conftest import with_arguments
from fusedstep import SGD, Adam, AdamW, Ftrl, Lamb, Lion, Nadam, Optimizer, RMSprop, _native
from gpu.libraries import CuPy

module = ctypes.CDLL(_native.__file__)
module.watch.argtypes = [ctypes.c_uint64, ctypes.c_uint64]

SIZE = 1 << 16
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
# How often every element is read and written.
READ, READ_AND_WRITTEN = (1.0, 0.0), (1.0, 1.0)
# More accesses than bytes and packets ask for: at both ends of a slice of 4096 elements.
ENDS = 1.03
PACKET = 16
PACKET_IN_TILES = 8  # of arrays of 16 bits, where stages or an average take slots of 32 bits in their place


@dataclass
class Traffic:
    """Of one array in one step."""

    loads: int
    bytes_loaded: int
    stores: int
    bytes_stored: int


def traffic_of(step: Callable[[], object], arrays: Sequence[Any]) -> list[Traffic]:
    synchronize = CuPy().cupy.cuda.runtime.deviceSynchronize
    synchronize()
    for array in arrays:
        module.watch(array.data.ptr, array.data.ptr + array.nbytes)
    try:
        step()
        synchronize()
        found = []
        for number in range(len(arrays)):
            counts = (ctypes.c_uint64 * 4)()
            module.seen(number, counts)
            found.append(Traffic(*counts))
        return found
    finally:
        module.watch_nothing()


def times_moved(
    optimizer: Optimizer,
    dtype: npt.DTypeLike = np.float32,
    size: int = SIZE,
    offset: int = 0,
    packet: int = PACKET,
) -> dict[str, tuple[float, float]]:
    """How often the second step reads and writes an array: a mean over its elements."""
    optimizer, library = with_arguments(optimizer), CuPy()
    variable, gradient = (library.array(np.full(size, x).astype(dtype), offset) for x in (1, 0.5))
    optimizer.apply([gradient], [variable])
    arrays = {"gradient": gradient, "variable": variable, **optimizer.slots(variable)}
    moved = {}
    found = traffic_of(lambda: optimizer.apply([gradient], [variable]), list(arrays.values()))
    for (name, array), traffic in zip(arrays.items(), found, strict=True):
        moved[name] = traffic.bytes_loaded / array.nbytes, traffic.bytes_stored / array.nbytes
        accesses = ENDS * array.nbytes / (packet if array.dtype.itemsize == 2 else PACKET)
        assert traffic.loads <= accesses * moved[name][0], (name, traffic)
        assert traffic.stores <= accesses * moved[name][1], (name, traffic)
    return moved


BARE = [
    SGD(),
    SGD(momentum=0.9),
    Adam(),
    Adam(amsgrad=True),
    RMSprop(centered=True, momentum=0.9),
    Ftrl(),
    Lion(),
    Nadam(),
]
IN_TILES = [
    AdamW(weight_decay=0.1),
    AdamW(weight_decay=0.1, maximize=True, clipvalue=1.0, loss_scale_factor=2.0, l2=0.1),
    Adam(use_ema=True),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optimizer", [*BARE, *IN_TILES], ids=str)
@pytest.mark.parametrize(("size", "offset"), [(SIZE, 0), (SIZE + 1, 0), (SIZE, 1), (SIZE - 3, 3)])
def test_all_is_read_and_written_once(
    optimizer: Optimizer, dtype: np.dtype[Any], size: int, offset: int
) -> None:
    packet = PACKET_IN_TILES if optimizer in IN_TILES else PACKET
    moved = times_moved(optimizer, dtype, size, offset * dtype.itemsize, packet)
    assert moved.pop("gradient") == READ
    assert set(moved.values()) == {READ_AND_WRITTEN}


@pytest.mark.parametrize(
    "options", [{"global_clipnorm": 0.1}, {"clipnorm": 0.1}, {"skip_nonfinite": True}], ids=str
)
def test_a_norm_takes_one_more_reading_of_the_gradients(options: dict[str, Any]) -> None:
    moved = times_moved(Adam(**options))
    assert moved.pop("gradient") == (2.0, 0.0)
    assert set(moved.values()) == {READ_AND_WRITTEN}


def test_two_passes_read_twice() -> None:
    """But the gradient: what it came to is in the slots."""
    moved = times_moved(Lamb())
    assert moved.pop("gradient") == READ
    assert set(moved.values()) == {(2.0, 1.0)}


def test_a_call_without_an_update_leaves_the_rest_alone() -> None:
    moved = times_moved(Adam(gradient_accumulation_steps=3))
    assert moved.pop("gradient") == READ
    assert moved.pop("gradient_accumulator") == READ_AND_WRITTEN
    assert set(moved.values()) == {(0.0, 0.0)}
