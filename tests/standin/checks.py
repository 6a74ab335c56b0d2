"""What the stand-ins do that ordinary arrays do not; tests/test_gpu_rehearsal.py runs it beside them."""

import importlib
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

cupy: Any = importlib.import_module("cupy")
runtime = cupy.cuda.runtime

# What ends the program, with what comes before it, and the sign of its end.
DEADLY = [
    ("ctypes.string_at(cupy.zeros(3).data.ptr)", -signal.SIGSEGV),
    ("[runtime.launch(0, runtime.deviceSynchronize) for _ in range(2)]; runtime.deviceSynchronize()", 1),
]
PREAMBLE = "import ctypes, cupy; runtime = cupy.cuda.runtime; "


@pytest.mark.parametrize(("code", "status"), DEADLY)
def test_what_ends_the_program(code: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True)
    assert done.returncode == status, done.stderr


def test_work_is_done_when_it_is_waited_for() -> None:
    array, event = cupy.zeros(3), cupy.cuda.Event(disable_timing=True)
    runtime.deviceSynchronize()
    array += 1
    event.record()
    assert not event.done
    assert array.get().tolist() == [1, 1, 1]
    assert event.done


def test_streams_have_an_order_where_cuda_says_so() -> None:
    """One that blocks comes behind the null stream; one that does not knows nothing of it, nor of others."""
    array = cupy.zeros(())
    ordered, apart = cupy.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)
    runtime.deviceSynchronize()
    array += 1
    with apart:
        assert float(array) == 0
    with ordered:
        assert float(array) == 1


def test_a_graph_is_run_when_it_is_launched() -> None:
    array, stream = cupy.zeros(()), cupy.cuda.Stream(non_blocking=True)
    runtime.deviceSynchronize()
    with stream:
        stream.begin_capture()
        array += 1
        with pytest.raises(runtime.CUDARuntimeError, match="capturing"):
            runtime.deviceSynchronize()
        with pytest.raises(runtime.CUDARuntimeError, match="capturing"):
            stream.end_capture()
        stream.begin_capture()
        array += 1
        graph = stream.end_capture()
        assert float(array) == 0
        graph.launch()
        graph.launch()
        assert float(array) == 2


def test_bytes_behind_an_array_are_looked_at() -> None:
    array = cupy.ndarray(600, np.uint8, cupy.cuda.alloc(512))
    array[512:] = 0
    with pytest.raises(runtime.CUDARuntimeError, match="illegal memory access"):
        runtime.deviceSynchronize()
    array[512:] = 0xA5
    runtime.deviceSynchronize()


def test_bytes_of_no_array_are_looked_at() -> None:
    """When they are given again: whoever wrote there had an array that is gone."""
    code = """
memory = runtime.malloc(5000)
gone = cupy.ndarray(5000, "u1", cupy.cuda.MemoryPointer(cupy.cuda.Memory(memory, 0, int), 0))
runtime.free(memory)
gone[7] = 0
runtime.deviceSynchronize()
cupy.zeros(3)
runtime.deviceSynchronize()
"""
    done = subprocess.run([sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True)
    assert "line 8" in done.stderr
    assert "illegal memory access" in done.stderr


def test_memory_comes_again_on_its_stream() -> None:
    pointer = cupy.zeros(1000).data.ptr
    with cupy.cuda.Stream(non_blocking=True):
        assert cupy.empty(1000).data.ptr != pointer
    assert cupy.empty(1000).data.ptr == pointer


def test_there_is_a_device_for_each_array() -> None:
    with cupy.cuda.Device(1):
        array = cupy.zeros(3)
    assert array.get().tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="on <CUDA Device 1>, but the current one is <CUDA Device 0>"):
        array + 1
    with pytest.raises(runtime.CUDARuntimeError, match="out of memory"):
        cupy.empty(2**40)


def test_a_stream_is_forgotten_by_who_does_not_keep_it() -> None:
    stream = cupy.cuda.Stream().use()
    assert cupy.cuda.get_current_stream() is stream
    with cupy.cuda.Stream():
        pass
    assert cupy.cuda.get_current_stream() is cupy.cuda.Stream.null
    cupy.cuda.Stream().use()
    assert cupy.cuda.get_current_stream() is cupy.cuda.Stream.null


def test_what_is_not_done_here_raises() -> None:
    array = cupy.zeros(3)
    with pytest.raises(TypeError, match="NumPy array"):
        np.asarray(array)
    with pytest.raises(TypeError, match="Unsupported type"):
        array + np.ones(3)
    with pytest.raises(TypeError, match="does not take"):
        np.concatenate([array, array])
    with pytest.raises(NotImplementedError, match="an index of bool"):
        array[array > 0]
    with pytest.raises(NotImplementedError, match="reduce"):
        np.add.reduce(array)
    with pytest.raises(NotImplementedError, match="compiles"):
        cupy.RawKernel("", "some")
    with pytest.raises(NotImplementedError, match="no time"):
        cupy.cuda.Event()
