"""bench: what runs around a GPU, with NumPy in the place of CuPy: none of the kernels, all of the rest."""

import importlib.machinery
import sys
from time import perf_counter
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs the bench extra")

from bench.contestants import CUDA, CUPY, FUSEDSTEP, SAME_BYTES, UnavailableError, cuda, make
from bench.contestants.contestant import Contestant, start
from bench.errors import error
from bench.measure import Errors, Lane, Settings, measure
from bench.series import Series
from bench.workloads import SETS, workload

GPU_BYTES = 1 << 30
keep_busy = cuda._keep_busy


class Event:
    """A point in time, of the host."""

    time = 0.0

    def record(self) -> None:
        self.time = perf_counter()

    def synchronize(self) -> None:
        """Nothing is ever under way."""


@pytest.fixture(autouse=True)
def numpy_as_cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    cupy: Any = ModuleType("cupy")
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    for name in ("asarray", "empty", "zeros", "ones", "full", "sqrt", "minimum", "sign", "int16"):
        setattr(cupy, name, getattr(np, name))
    cupy.asnumpy = np.asarray
    runtime = SimpleNamespace(
        deviceSynchronize=lambda: None,
        memGetInfo=lambda: (GPU_BYTES, GPU_BYTES),
        getDeviceProperties=lambda _: {"name": b"none", "totalGlobalMem": 1, "l2CacheSize": 2},
        driverGetVersion=lambda: 1,
        runtimeGetVersion=lambda: 2,
    )
    busy: list[float] = []
    monkeypatch.setattr(cuda, "_keep_busy", busy.append)
    elapsed = lambda begin, end: 1e3 * (end.time - begin.time)  # noqa: E731
    cupy.cuda = SimpleNamespace(Event=Event, get_elapsed_time=elapsed, runtime=runtime)
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    cupy.busy = busy
    return cupy


@pytest.mark.parametrize("name", ["3x70", "mlp-bfloat16", "1x65-offset"])
def test_arrays_have_the_values_of_the_hosts(name: str) -> None:
    for ours, theirs in zip(start(workload(name)), start(workload(name), cuda.device_array), strict=True):
        for host, device in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(host, device)
    if name.endswith("offset"):
        assert device.base is not None
        assert device.ctypes.data == device.base.ctypes.data + device.itemsize


def test_indices_of_rows_are_on_the_gpu() -> None:
    made = []

    def filled(shape: Any, numbers: Any, offset: bool) -> Any:
        made.append(cuda.device_array(shape, numbers, offset))
        return made[-1]

    _, gradients = start(workload("embedding-sparse"), filled)
    assert all(any(part is one for one in made) for gradient in gradients for part in gradient)


@pytest.mark.parametrize("name", [FUSEDSTEP, CUPY])
@pytest.mark.parametrize("step", ["plain", "clip", "clip-ema"])
def test_steps_and_errors(name: str, step: str, numpy_as_cupy: Any) -> None:
    measured = workload("3x70" if step == "plain" else f"3x70-{step}")
    assert error(name, measured, threads=1, device="cuda") < 1e-6
    timed = make(name, measured, threads=1, device="cuda").time(2)
    assert timed.seconds > 0
    assert timed.host is not None
    assert timed.host > 0
    assert numpy_as_cupy.busy == [2 * timed.host], "the GPU waits until both steps are queued"


@pytest.mark.parametrize(("seconds", "copies"), [(0.0, 0), (1e-6, 1), (120e-6, 3), (10.0, 400)])
def test_the_gpu_is_kept_busy_as_long_as_the_queue_has_room(
    seconds: float, copies: int, numpy_as_cupy: Any
) -> None:
    made: list[int] = []
    numpy_as_cupy.empty = lambda size, _: SimpleNamespace(data=SimpleNamespace(ptr=size))
    numpy_as_cupy.cuda.runtime.memcpyDeviceToDevice = 3
    numpy_as_cupy.cuda.runtime.memcpyAsync = lambda to, of, size, kind, stream: made.append(size)
    keep_busy(seconds)
    assert made == [1 << 28] * copies


def test_all_steps_that_are_timed_alone_are_in_their_condition() -> None:
    """Also those that tell how long a call keeps the host, which is what fresh gradients cost there."""
    done: list[str] = []
    step, renew = (lambda: done.append("step")), (lambda: done.append("renewal"))
    made = Contestant(step, list, float, {}, cuda.event_clock, renew)
    lane = Lane(Series("1x64-fresh", FUSEDSTEP, 1), made, "fresh", 0.0)
    lane.run_block()
    assert done == ["renewal", "step"] * (len(done) // 2)
    assert len(lane.series.hosts) == len(lane.series.samples) == 1


@pytest.mark.parametrize("step", ["plain", "clip"])
def test_pytorch_gets_gradients_in_new_tensors(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the row of fresh gradients on the CPU; the error is that of steps with them."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(cuda, "_tensor", torch.from_numpy)
    measured = workload("3x70-fresh" if step == "plain" else f"3x70-{step}-fresh")
    assert make("PyTorch default", measured, threads=1, device="cuda").renew is not None
    assert error("PyTorch default", measured, threads=1, device="cuda") < 1e-6


def test_who_does_not_run_is_told_and_the_others_go_on() -> None:
    settings = Settings("cuda", 1, 2, [*CUDA])
    found = measure(["3x70"], settings, Errors(settings), float("inf"), str)
    by_name = {one.contestant: one for one in found}
    assert len(by_name[FUSEDSTEP].hosts) == len(by_name[FUSEDSTEP].samples) == 2
    assert "ElementwiseKernel" in by_name[SAME_BYTES].absent  # NumPy has none
    assert "apex" in by_name["apex"].absent


def test_the_copy_moves_half_of_the_bytes_in_and_half_out(numpy_as_cupy: Any) -> None:
    moved: list[int] = []
    numpy_as_cupy.cuda.runtime.memcpyDeviceToDevice = 3
    numpy_as_cupy.cuda.runtime.memcpyAsync = lambda to, of, size, kind, stream: moved.append(2 * size)
    numpy_as_cupy.empty = numpy_as_cupy.ones = lambda *_: SimpleNamespace(data=SimpleNamespace(ptr=1))
    given = SimpleNamespace(workload=workload("3x70"), variables=[1], gradients=[1])
    cuda.make_device_copy(given).time(1)  # type: ignore[arg-type]
    assert set(moved) == {28 * 210}
    assert given.variables == []


def test_what_a_gpu_run_measures_by_itself() -> None:
    names = {name for group in SETS["cuda"][1] for name in group}
    assert {"1x1000000000", "1x1000000000-bfloat16", "1000x256", "1x16777217", "1x16777216-offset"} <= names
    assert any(name.endswith("-clip") for name in names)


def test_no_gpu_is_told(numpy_as_cupy: Any) -> None:
    def fails(_: int) -> None:
        raise RuntimeError("no device")

    numpy_as_cupy.zeros = fails
    with pytest.raises(UnavailableError, match="no GPU can be used: no device"):
        cuda.check()


def test_the_gpu_is_described() -> None:
    assert cuda.describe()["name"] == "none"
