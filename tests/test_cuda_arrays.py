"""Arrays on simulated GPUs: which a step takes, when it looks at them again, and who keeps their memory."""

import ctypes
import gc
import re
import shutil
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fusedstep
from fusedstep import SGD, Adam
from fusedstep._native import DeviceArray, simulation
from reference import Reference, same_bits
from simulated import Indices, Plain, Strided, assert_same, kernels, put


def test_arrays_by_the_cuda_array_interface(gpus: None) -> None:
    on_gpu = Plain(simulation.array_on(1, np.ones(5, np.float32)))
    optimizer = SGD(0.5)
    optimizer.apply([Plain(simulation.array_on(1, np.ones(5, np.float32)))], [on_gpu])
    assert on_gpu.memory.copy().tolist() == [0.5] * 5
    assert ("bare", 1, 0) in simulation.take_events()


Layout = tuple[dict[str, Any], list[float] | None]

LAYOUTS: list[Layout] = [
    ({"shape": [2, 3], "strides": [12, 4]}, [0.5] * 3),
    ({"shape": 6}, None),
    ({"shape": ("2", "3")}, None),
    ({"shape": (1,) * 65}, None),
    ({"strides": (12,)}, None),
    ({"strides": (4,) * 65}, None),
    ({"strides": 12}, None),
    ({"mask": 1}, None),
    ({"typestr": ">f4"}, None),
]


@pytest.mark.parametrize(("described", "expected"), LAYOUTS, ids=repr)
def test_how_a_layout_may_be_told(
    described: dict[str, Any], expected: list[float] | None, gpus: None
) -> None:
    """By tuples of integers, or lists; a stride for each dimension."""
    w = Plain(simulation.array_on(0, np.ones((2, 3), np.float32)))
    w.__cuda_array_interface__ |= described
    optimizer, gradient = SGD(0.5), simulation.array_on(0, np.ones((2, 3), np.float32))
    if expected is None:
        with pytest.raises(TypeError, match=r"^SGD\.build: variables\[0\] is of type simulated\.Plain"):
            optimizer.apply([gradient], [w])
    else:
        optimizer.apply([gradient], [w])
    assert w.memory.copy()[0].tolist() == (expected or [1.0] * 3)


class Empty:
    """An array without elements, whose memory is null, as PyTorch's is; it counts who looks at it."""

    looks = 0

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self.looks += 1
        return {"version": 3, "shape": (0,), "typestr": "<f4", "data": (0, False), "strides": None}


def test_an_empty_array_without_memory_is_looked_at_once_a_step(gpus: None) -> None:
    on_gpu, empty = simulation.array_on(0, np.zeros(3, np.float32)), Empty()
    variables, gradients = [on_gpu, empty], [simulation.array_on(0, np.ones(3, np.float32)), Empty()]
    optimizer = SGD(0.5)
    optimizer.build(variables)
    optimizer.apply(gradients, variables)
    before = empty.looks
    optimizer.apply(gradients, variables)
    assert empty.looks == before + 2, "whether it has the interface, and what that says"
    assert on_gpu.copy().tolist() == [-1.0] * 3
    with pytest.raises(ValueError, match="all 2 gradients are None"):
        optimizer.apply([None, None], variables)


class OfJax:
    """A stand-in for a jax.Array on a GPU, which has no stream that a caller could know."""

    __module__ = "jaxlib._jax"

    def __init__(self, memory: DeviceArray) -> None:
        self.memory = memory

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory.__dlpack_device__()

    def __dlpack__(self, stream: int | None = None, **more: Any) -> object:
        assert stream is None, "JAX takes any other for one of CUDA's, -1 too"
        return self.memory.__dlpack__(**more)


def test_a_gradient_of_jax(gpus: None) -> None:
    on_gpu = simulation.array_on(0, np.zeros(3, np.float32))
    SGD(0.5).apply([OfJax(simulation.array_on(0, np.ones(3, np.float32)))], [on_gpu])
    assert on_gpu.copy().tolist() == [-0.5] * 3


class OfOldPyTorch:
    """A stand-in for a tensor on a GPU of PyTorch before 2.10, which tells no stream."""

    __module__ = "torch"

    def __init__(self, memory: DeviceArray) -> None:
        self.__dlpack__, self.memory = memory.__dlpack__, memory

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory.__dlpack_device__()


def test_a_tensor_that_tells_no_stream_is_refused(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.9.1"))
    on_gpu = simulation.array_on(0, np.zeros(3, np.float32))
    ones = simulation.array_on(0, np.ones(3, np.float32))
    with pytest.raises(RuntimeError, match=r"PyTorch is 2\.9\.1, but .* 2\.10 or newer"):
        SGD(0.5).apply([OfOldPyTorch(ones)], [on_gpu])
    assert on_gpu.copy().tolist() == [0] * 3


def test_dlpack_names_the_device(gpus: None) -> None:
    w = simulation.array_on(1, np.ones(3))
    assert w.__dlpack_device__() == (2, 1)
    capsule = w.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    device_type, device = (ctypes.c_int32 * 2).from_address(get(capsule, b"dltensor") + 8)
    assert (device_type, device) == (2, 1)


def test_assign(gpus: None) -> None:
    w = simulation.array_on(0, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"values have shape \(3, 2\), the array has \(2, 3\)"):
        w.assign(np.ones((3, 2)))
    assert (w.copy() == 0).all()
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    w.assign(values)
    assert (w.copy() == values).all()


def test_former_gradients_come_again(gpus: None) -> None:
    """The very arrays of earlier steps, after a step that had others, in another order or in the same."""
    start = [np.zeros(500, np.float32) for _ in range(2)]
    optimizer, on_gpu, reference = SGD(1.0), put(start), Reference(SGD(1.0), start)
    values = [[np.full(500, 10.0**k + i, np.float32) for i in range(2)] for k in range(2)]
    first, second = (put(one) for one in values)
    for given, expected, order in [
        *3 * [(first, 0, 1)],
        (second, 1, -1),
        *3 * [(first, 0, 1)],
        (second, 1, 1),
        (first, 0, 1),
    ]:
        optimizer.apply(given[::order], on_gpu[::order])
        reference.apply(values[expected])
        assert_same(optimizer, on_gpu, reference)


def test_swapped_indices_are_refused(gpus: None) -> None:
    (w,), indices = put([np.ones((4, 2), np.float32)]), Indices(np.array([1, 2]))
    indices.__cuda_array_interface__ |= {"typestr": ">i8"}
    with pytest.raises(
        TypeError, match=r"grads\[0\] has indices of dtype int64, but on a GPU they must be int32"
    ):
        SGD(0.5).apply([(indices, put([np.ones((2, 2), np.float32)])[0])], [w])
    assert (w.copy() == 1).all()


def test_a_slot_is_no_gradient(gpus: None) -> None:
    (w,), optimizer = put([np.ones(5, np.float32)]), Adam(0.1)
    for steps in range(2):
        optimizer.apply(put([np.ones(5, np.float32)]), [w])
        before = w.copy()
        with pytest.raises(ValueError, match=r"grads\[0\] shares memory with a slot, which this step writes"):
            optimizer.apply([optimizer.slots(w)["velocity"]], [w])
        assert w.copy().tolist() == before.tolist()
        assert optimizer.iterations == steps + 1


def test_a_variable_that_moved(gpus: None) -> None:
    w, other = Plain(simulation.array_on(0, np.ones(5))), Plain(simulation.array_on(0, np.ones(5)))
    gradient = simulation.array_on(0, np.ones(5))
    optimizer = SGD(0.5)
    for _ in range(2):
        optimizer.apply([gradient], [w])
    w.__cuda_array_interface__ = other.__cuda_array_interface__
    with pytest.raises(ValueError, match="has other memory, dtype or layout"):
        optimizer.apply([gradient], [w])
    assert w.memory.copy().tolist() == [0.0] * 5


def test_a_gradient_that_moved(gpus: None) -> None:
    """The same object, over other memory than in the step before."""
    (w,) = put([np.zeros(5)])
    gradient = Plain(simulation.array_on(0, np.ones(5)))
    other = Plain(simulation.array_on(0, np.full(5, 8.0)))
    optimizer = SGD(1.0)
    for _ in range(3):
        optimizer.apply([gradient], [w])
    gradient.__cuda_array_interface__ = other.__cuda_array_interface__
    optimizer.apply([gradient], [w])
    assert w.copy().tolist() == [-11.0] * 5


def test_other_threads_run_while_one_waits_for_a_gpu(gpus: None) -> None:
    """What it waits for may be one of them: a function of Python's that was put on a stream."""
    (w,) = put([np.zeros(5)])
    optimizer, turns = SGD(1.0, momentum=0.5, skip_nonfinite=True), []
    optimizer.apply(put([np.ones(5)]), [w])
    simulation.make_waits_last(0.1)
    waiting = threading.Event()

    def count() -> None:
        while not waiting.is_set():
            turns.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for wait in (
            lambda: optimizer.iterations,
            w.copy,
            lambda: w.assign(np.zeros(5)),
            optimizer.state_dict,
        ):
            begin = time.monotonic()
            wait()
            end = time.monotonic()
            assert end - begin > 0.09
            assert sum(begin < turn < end for turn in turns) > 3
    finally:
        waiting.set()
        thread.join()


def test_what_dlpack_may_ask_for(gpus: None) -> None:
    (w,) = put([np.zeros(5)])
    w.__dlpack__(stream=None, max_version=(1, 0), dl_device=None, copy=None)
    w.__dlpack__(copy=False, dl_device=w.__dlpack_device__())
    with pytest.raises(BufferError, match="no copy; leave out copy=True and copy what you get"):
        w.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=r"is on cuda:0 and stays there; copy\(\) gives a NumPy array"):
        w.__dlpack__(dl_device=(1, 0))


def wide() -> DeviceArray:
    return simulation.array_on(0, np.ones((2, 3), np.float32))


BAD = [
    (
        lambda: wide(),
        lambda: np.ones((2, 3), np.float32),
        "variables[0] is on cuda:0 but its gradient on the CPU",
    ),
    (lambda: np.ones((2, 3)), wide, "variables[0] is on the CPU but its gradient on cuda:0"),
    (
        wide,
        lambda: simulation.array_on(1, np.ones((2, 3), np.float32)),
        "variables[0] is on cuda:0 but its gradient on cuda:1",
    ),
    (wide, lambda: simulation.array_on(0, np.ones((3, 2), np.float32)), "grads[0] has shape (3, 2), its"),
    (lambda: Strided(wide()), lambda: None, "is not contiguous (shape (3, 2), strides (4, 12))"),
    (lambda: Plain(wide(), read_only=True), lambda: None, "variables[0] is read-only"),
]


@pytest.mark.parametrize(("variable", "gradient", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_refusals_change_nothing(variable: Any, gradient: Any, sentence: str, gpus: None) -> None:
    good = simulation.array_on(0, np.ones(3, np.float32))
    bad = variable()
    optimizer = Adam(0.1)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        optimizer.apply([gradient(), simulation.array_on(0, np.ones(3, np.float32))], [bad, good])
    assert good.copy().tolist() == [1, 1, 1]
    assert optimizer.iterations == 0


def bad_later(kind: str, w: Any) -> tuple[Any, str]:
    if kind == "elsewhere":
        return simulation.array_on(1, np.ones((3, 2), np.float32)), "but its gradient on cuda:1"
    if kind == "overlaps":
        address, _ = w.__cuda_array_interface__["data"]
        gradient = Plain(simulation.array_on(0, np.ones((3, 2), np.float32)))
        gradient.__cuda_array_interface__ = gradient.__cuda_array_interface__ | {"data": (address + 4, False)}
        return gradient, "shares memory with"
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["elsewhere", "overlaps"])
def test_refused_in_a_later_step(kind: str, gpus: None) -> None:
    w = simulation.array_on(0, np.ones((3, 2), np.float32))
    good = simulation.array_on(0, np.ones((3, 2), np.float32))
    optimizer = SGD(0.5)
    for _ in range(2):
        optimizer.apply([good], [w])
    gradient, sentence = bad_later(kind, w)
    with pytest.raises(ValueError, match=sentence):
        optimizer.apply([gradient], [w])
    assert w.copy().ravel().tolist() == [0.0] * 6


def test_a_later_gradient_of_other_strides(gpus: None) -> None:
    """Refused, for nobody can copy it; not read as it lies."""
    w = simulation.array_on(0, np.zeros((3, 2), np.float32))
    optimizer = SGD(1.0)
    for _ in range(2):
        optimizer.apply([simulation.array_on(0, np.zeros((3, 2), np.float32))], [w])
    strided = Strided(simulation.array_on(0, np.arange(6, dtype=np.float32).reshape(2, 3)))
    with pytest.raises(ValueError, match="is not contiguous"):
        optimizer.apply([strided], [w])
    assert (w.copy() == 0).all()


def test_memory_goes_with_its_last_owner(gpus: None) -> None:
    optimizer = Adam(0.1)
    on_gpu, gradient = put([np.ones(3), np.ones(3)])
    optimizer.apply([gradient], [on_gpu])
    slot = optimizer.slots(on_gpu)["momentum"]
    expected = slot.copy()
    simulation.take_events()
    del optimizer
    assert "free" in kernels()
    assert same_bits(slot.copy(), expected)
    del slot
    assert kernels().count("free") == 1


def test_the_norm_outlives_its_optimizer(gpus: None) -> None:
    optimizer, w = SGD(0.1, global_clipnorm=1.0), put([np.ones(4)])
    optimizer.apply(put([np.full(4, 2.0)]), w)
    norm = optimizer.gradient_norm
    del optimizer
    gc.collect()
    others = put([np.full(size, 7.0) for size in range(32, 1024, 32)])  # they take what is free
    assert norm.copy() == 4.0
    assert len(others) == 31
    simulation.take_events()
    del norm
    assert kernels() == ["free"]


def test_a_capsule_keeps_the_memory(gpus: None) -> None:
    w = simulation.array_on(1, np.ones(3))
    capsule = w.__dlpack__()
    simulation.take_events()
    del w
    assert kernels() == []
    del capsule
    assert kernels() == ["free"]


def test_without_a_gpu_the_sentence_says_why() -> None:
    simulation.start(1, 1)
    on_gpu = simulation.array_on(0, np.ones(3))
    simulation.stop()
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU")
    why = r"this build has no CUDA kernels|CUDA [\d.]+ finds no device here"
    with pytest.raises(RuntimeError, match=rf"is a GPU array .*, but ({why})"):
        fusedstep.SGD(0.1).apply([on_gpu], [on_gpu])
