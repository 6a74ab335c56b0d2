"""The yardstick: a loop that reads and writes what a step must, and computes nothing.

same_bytes.cpp, compiled at each run with the C++ compiler of the system.
"""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np

from bench.contestants.contestant import Arrays, Contestant, Given, UnavailableError, scaling
from bench.workloads import slot_bytes


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX") or "c++")  # as cmake reads it: CXX may be "ccache g++"
    if shutil.which(compiler[0]) is None:
        raise UnavailableError(f"there is no C++ compiler {compiler[0]!r}; the variable CXX names another")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "same_bytes.so"
        flags = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        source = Path(__file__).with_suffix(".cpp")
        done = subprocess.run(
            [*compiler, *flags, str(source), "-o", str(library)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise UnavailableError(f"{shlex.join(compiler)} failed: {done.stderr.strip()}")
        return ctypes.CDLL(str(library))  # stays loaded without its file


def _addresses(arrays: Arrays) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def moving(
    variables: Arrays, gradients: Arrays, slots: list[Arrays], reads_twice: bool, threads: int
) -> Callable[[], None]:
    """Prepare a call that moves the bytes of one step.

    Args:
        variables: arrays of dtypes of equally many bytes, 2, 4 or 8.
        gradients: arrays like them.
        slots: at most 4 lists of arrays of their shapes.
        reads_twice: whether the gradients are read once more before, as for a norm.
        threads: how many threads, at most.
    """
    function = _library().same_bytes
    function.restype = ctypes.c_int
    count = len(variables)
    lists = [_addresses(of_slot) for of_slot in slots]
    of_slots = (ctypes.c_void_p * max(len(slots), 1))(*(ctypes.addressof(one) for one in lists))
    before = accumulate((variable.size for variable in variables), initial=0)
    arguments = (
        ctypes.c_int64(count),
        _addresses(variables),
        _addresses(gradients),
        of_slots,
        ctypes.c_int(len(slots)),
        (ctypes.c_int64 * (count + 1))(*before),
        ctypes.c_int(variables[0].itemsize),
        ctypes.c_int(reads_twice),
        ctypes.c_int(threads),
    )
    kept = variables, gradients, slots, lists  # the addresses alone would not keep them

    def move(_kept: object = kept) -> None:
        function(*arguments)

    return move


def make(given: Given) -> Contestant:
    """Move the bytes: one call for the arrays of each size of elements. Of a sparse step, the rows' bytes."""
    workload = given.workload
    streams: list[Arrays] = []  # of each array, or row: variable, gradient and slots
    for variable, gradient in zip(given.variables, given.gradients, strict=True):
        in_slots = f"f{slot_bytes(variable.itemsize)}"
        slots = [np.ones(variable.shape, in_slots) for _ in range(workload.slots)]
        if isinstance(gradient, tuple):
            indices, rows = gradient
            for place, index in enumerate(indices):  # slices, for a row of one dimension less may be a number
                row = slice(index, index + 1)
                of_slots = (slot[row] for slot in slots)
                streams.append([variable[row], rows[place : place + 1], *of_slots])
        else:
            streams.append([variable, gradient, *slots])
    calls = []
    for size in sorted({variable.itemsize for variable, *_ in streams}):
        of_size = [stream for stream in streams if stream[0].itemsize == size]
        variables, gradients, *lists = map(list, zip(*of_size, strict=True))
        calls.append(moving(variables, gradients, lists, workload.reads_twice, given.threads))
    if len(calls) == 1:
        return Contestant(calls[0], lambda: given.variables, scaling(given.gradients))

    def step() -> None:
        for call in calls:
            call()

    return Contestant(step, lambda: given.variables, scaling(given.gradients))
