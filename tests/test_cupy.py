"""CuPy's own arrays where there is no GPU: over the memory of simulated ones.

Two functions of CuPy need a driver and have stand-ins here: that which gives the current stream, and that
which takes memory over. All else of an array is CuPy's.
"""

import contextlib
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import DTYPES, VARIANTS, random_array, with_arguments
from fusedstep import SGD, Adam, LossScaleOptimizer, Optimizer
from fusedstep._native import DeviceArray, simulation
from reference import Reference, same_bits

Array = npt.NDArray[Any]
SHAPES: list[tuple[int, ...]] = [(5, 7), (), (0,), (4097,), (3, 4, 5)]

asked_for: set[int] = set()  # devices whose current stream was wanted


def current_stream(device: int) -> Any:
    asked_for.add(device)
    return SimpleNamespace(ptr=0)


class CuPy:
    def __init__(self, module: Any) -> None:
        self.module, self.memory = module, module.cuda.memory

    def over(self, memory: DeviceArray, offset: int = 0) -> Any:
        """An array that keeps the memory it is over; its buffer begins so many bytes before."""
        begin = memory.__cuda_array_interface__["data"][0] - offset
        size = offset + int(np.prod(memory.shape)) * memory.dtype.itemsize
        buffer = self.memory.UnownedMemory(begin, size, memory, memory.device)
        return self.module.ndarray(memory.shape, memory.dtype, self.memory.MemoryPointer(buffer, offset))

    def array(self, values: Array, device: int = 0, offset: int = 0) -> Any:
        return self.over(simulation.array_on(device, values, offset), offset)

    def arrays(self, values: list[Any]) -> list[Any]:
        """On one device and the other, in turns."""
        return [None if one is None else self.array(one, k % 2) for k, one in enumerate(values)]


def host(array: Any) -> Array:
    """A copy of an array over memory of a simulated GPU, which is memory of the host."""
    shown = {
        "shape": array.shape,
        "typestr": f"|V{array.dtype.itemsize}",
        "data": (array.data.ptr, False),
        "version": 3,
    }
    copy: Array = np.array(SimpleNamespace(__array_interface__=shown))
    return copy.view(array.dtype)


@pytest.fixture
def cupy(gpus: None, monkeypatch: pytest.MonkeyPatch) -> CuPy:
    module = pytest.importorskip("cupy", reason="CuPy is not installed")
    with contextlib.suppress(module.cuda.runtime.CUDARuntimeError):
        if module.cuda.runtime.getDeviceCount() > 0:
            pytest.skip("there is a GPU, and tests/gpu is for it")
    library = CuPy(module)
    monkeypatch.setattr(module.cuda, "get_current_stream", current_stream)
    monkeypatch.setattr(module, "from_dlpack", library.over)
    return library


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0, "use_ema": True, "weight_decay": 0.01}])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_every_rule(variant: Optimizer, dtype: Any, options: dict[str, Any], cupy: CuPy) -> None:
    """On two devices, on the current streams of both; slots are CuPy's, on the device of their variable."""
    rng = np.random.default_rng(1)
    optimizer = with_arguments(variant, **options)
    start = [random_array(rng, shape, dtype) for shape in SHAPES]
    variables, reference = cupy.arrays(start), Reference(optimizer, start)
    asked_for.clear()
    for step in range(3):
        grads: list[Any] = [random_array(rng, shape, dtype if step else np.float32) for shape in SHAPES]
        grads[step] = None
        optimizer.apply(cupy.arrays(grads), variables)
        reference.apply(grads)
    assert asked_for == {0, 1}
    for number, (variable, expected) in enumerate(zip(variables, reference.variables, strict=True)):
        assert same_bits(host(variable), expected)
        slots: dict[str, Any] = optimizer.slots(variable)
        for name, slot in slots.items():
            assert type(slot) is cupy.module.ndarray
            assert slot.data.device_id == number % 2
            assert same_bits(host(slot), reference.slots[number][name])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_offsets(dtype: Any, cupy: CuPy) -> None:
    rng = np.random.default_rng(2)
    itemsize = np.dtype(dtype).itemsize
    for offset in range(0, 32, itemsize):
        optimizer, start, gradient = Adam(0.01), random_array(rng, 99, dtype), random_array(rng, 99, dtype)
        variable, reference = cupy.array(start, offset=offset), Reference(optimizer, [start])
        optimizer.apply([cupy.array(gradient, offset=(offset + 3 * itemsize) % 32)], [variable])
        reference.apply([gradient])
        assert same_bits(host(variable), reference.variables[0])


def test_strides(cupy: CuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a gradient that is not contiguous CuPy makes a copy; a variable that is not is refused."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    copy = "fusedstep.device_arrays.contiguous_copy"
    monkeypatch.setattr(copy, lambda library, x: cupy.array(host(x.T).T.copy()))
    w = cupy.array(np.zeros((3, 2), np.float32))
    optimizer = SGD(1.0)
    optimizer.apply([cupy.array(values).T], [w])
    assert host(w).tolist() == (-values.T).tolist()
    with pytest.raises(ValueError, match=re.escape("shape (3, 2), strides (4, 12)")):
        SGD(1.0).build([cupy.array(values).T])


@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_rows(integer: Any, cupy: CuPy) -> None:
    values, w = cupy.array(np.ones((3, 2), np.float32)), cupy.array(np.zeros((5, 2), np.float32))
    given = np.array([4, 1, 4], integer)  # there are simulated arrays of variables' dtypes only
    bytes_of_given = given.view(np.float32 if integer is np.int32 else np.float64)
    indices = cupy.module.ndarray((3,), integer, cupy.array(bytes_of_given).data)
    SGD(1.0).apply([(indices, values)], [w])
    assert host(w)[:, 1].tolist() == [0, -1, 0, 0, -2]


def test_a_learning_rate_and_a_norm(cupy: CuPy) -> None:
    rate, w = cupy.array(np.array(0.5)), cupy.array(np.ones(3, np.float32))
    optimizer = SGD(rate, global_clipnorm=100.0)
    optimizer.apply([cupy.array(np.ones(3, np.float32))], [w])
    assert host(w).tolist() == [0.5] * 3
    assert host(optimizer.gradient_norm) == np.sqrt(3)
    assert type(optimizer.gradient_norm) is cupy.module.ndarray


def test_a_loss_scale(cupy: CuPy) -> None:
    optimizer, w = LossScaleOptimizer(SGD(0.5), initial_scale=4.0), cupy.array(np.ones(3, np.float32))
    for gradient in (np.inf, 4.0):
        optimizer.apply([cupy.array(np.full(3, gradient, np.float32))], [w])
    assert optimizer.dynamic_scale == 2.0
    assert optimizer.iterations == 1
    assert host(w).tolist() == [0.0] * 3


def test_a_state_goes_on(cupy: CuPy) -> None:
    rng = np.random.default_rng(3)
    grads = [[random_array(rng, shape, np.float32) for shape in SHAPES] for _ in range(4)]
    start = [random_array(rng, shape, np.float32) for shape in SHAPES]
    first, second, whole = Adam(0.01), Adam(0.01), Adam(0.01)
    there, here = cupy.arrays(start), [one.copy() for one in start]
    for number in (0, 1):
        first.apply(cupy.arrays(grads[number]), there)
    moved = cupy.arrays([host(one) for one in there])
    second.build(moved)
    second.load_state_dict(first.state_dict())
    for number in (2, 3):
        second.apply(cupy.arrays(grads[number]), moved)
    for each in grads:
        whole.apply(each, here)
    assert all(same_bits(host(one), other) for one, other in zip(moved, here, strict=True))


def test_refusals(cupy: CuPy) -> None:
    ones = np.ones((4, 4), np.float32)
    w = cupy.array(ones)
    as_dtype = cupy.module.ndarray
    cases = [
        (cupy.array(ones, 1), ValueError, "variables[0] is on cuda:0 but its gradient on cuda:1"),
        (ones, ValueError, "variables[0] is on cuda:0 but its gradient on the CPU"),
        (
            cupy.array(np.ones(16, np.float32)),
            ValueError,
            "grads[0] has shape (16,), its variable has (4, 4)",
        ),
        (
            as_dtype((4, 4), np.int32, w.data),
            TypeError,
            "cupy.ndarray and dtype int32 on",
        ),
        (as_dtype((4, 2), np.complex64, w.data), TypeError, "cupy.ndarray and dtype complex64 on"),
        (
            as_dtype((4, 4), np.float32, w.data + 4),
            ValueError,
            "shares memory with a part of its own",
        ),
    ]
    optimizer = Adam(0.01)
    optimizer.build([w])
    for gradient, error, sentence in cases:
        with pytest.raises(error, match=re.escape(sentence)):
            optimizer.apply([gradient])
    assert (host(w) == 1).all()
    assert optimizer.iterations == 0
    with pytest.raises(ValueError, match=re.escape("variables[0] and variables[1] share memory")):
        SGD().build([w, as_dtype((4, 4), np.float32, w.data)])
