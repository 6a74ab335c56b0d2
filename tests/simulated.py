"""What tests of simulated GPUs share: arrays there, what was done, and a look at all bits."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from conftest import Array, random_array
from fusedstep import Optimizer
from fusedstep._native import DeviceArray, simulation
from reference import Reference, same_bits

Rows = tuple[Array, Array]


def put(arrays: Sequence[Any], device: int = 0) -> list[Any]:
    return [None if array is None else simulation.array_on(device, array) for array in arrays]


def kernels() -> list[str]:
    """What was launched since this was asked, or built; nothing else may have been done meanwhile."""
    return [what for what, _, _ in simulation.take_events()]


def assert_same(optimizer: Optimizer, variables: Sequence[Any], reference: Reference) -> None:
    for index, (variable, expected) in enumerate(zip(variables, reference.variables, strict=True)):
        assert same_bits(variable.copy(), expected), f"{optimizer}: variable {index}, {expected.dtype}"
        for name, slot in optimizer.slots(variable).items():
            assert same_bits(slot.copy(), reference.slots[index][name]), f"{optimizer}: {name} of {index}"


class Indices:
    """Integers on a simulated GPU, whose arrays are of floats, by the interface that Numba uses."""

    def __init__(self, indices: Array, device: int = 0) -> None:
        self.dtype = indices.dtype
        self.memory = simulation.array_on(device, self.as_floats(indices))
        described = {"typestr": indices.dtype.str, "mask": None}
        self.__cuda_array_interface__ = self.memory.__cuda_array_interface__ | described

    def as_floats(self, indices: Array) -> Array:
        return indices.view(f"f{indices.dtype.itemsize}")

    def assign(self, indices: Array) -> None:
        self.memory.assign(self.as_floats(indices))


def put_any(grads: Sequence[Any], device: int = 0) -> list[Any]:
    """Arrays, rows and None there."""
    return [
        (Indices(one[0], device), simulation.array_on(device, one[1]))
        if isinstance(one, tuple)
        else put([one], device)[0]
        for one in grads
    ]


def random_rows(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    count: int,
    dtype: Any = np.float32,
    integers: Any = np.int64,
    special: bool = False,
) -> Rows:
    """Rows of a variable of this shape, in any order."""
    indices = rng.integers(0, max(shape[0], 1), count).astype(integers)
    return indices, random_array(rng, (count, *shape[1:]), dtype, special)


def put_on(arrays: Sequence[Any], places: Sequence[int | None]) -> list[Any]:
    """Copies, on these devices; None is for the CPU."""
    return [
        copy.deepcopy(array) if place is None else put_any([array], place)[0]
        for array, place in zip(arrays, places, strict=True)
    ]


class Plain:
    """An array over a simulated GPU's memory, by the interface that Numba uses."""

    def __init__(self, memory: DeviceArray, read_only: bool = False) -> None:
        self.memory = memory
        described = memory.__cuda_array_interface__
        self.__cuda_array_interface__ = described | {"data": (described["data"][0], read_only)}


class OnStream(Plain):
    """The same, which tells the stream that its library uses now, as Numba's."""

    def __init__(self, memory: DeviceArray, stream: int) -> None:
        super().__init__(memory)
        self.__cuda_array_interface__ |= {"stream": stream}


class Strided:
    """The same, not contiguous."""

    def __init__(self, memory: DeviceArray) -> None:
        self.memory, (rows, columns) = memory, memory.shape
        itemsize = memory.dtype.itemsize
        self.__cuda_array_interface__ = memory.__cuda_array_interface__ | {
            "shape": (columns, rows),
            "strides": (itemsize, itemsize * columns),
        }


def capture(work: Callable[[], object]) -> None:
    """Do the work while a graph is captured, which simulation.replay() plays."""
    simulation.begin_capture()
    try:
        work()
    finally:
        simulation.end_capture()
