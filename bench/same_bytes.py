"""Build same_bytes.cpp with the C++ compiler of the system, and call it."""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise RuntimeError("there is no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "same_bytes.so"
        flags = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        source = Path(__file__).with_name("same_bytes.cpp")
        done = subprocess.run(
            [compiler, *flags, str(source), "-o", str(library)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} failed: {done.stderr.strip()}")
        return ctypes.CDLL(str(library))  # stays loaded without its file


class SameBytes:
    """A call moves the bytes of one step."""

    def __init__(
        self, variables: list[Array], gradients: list[Array], slots: list[list[Array]], threads: int
    ) -> None:
        """Prepare the call.

        Args:
            variables: arrays of a dtype of 2 or 4 bytes.
            gradients: arrays like them.
            slots: two lists of float32 arrays of their shapes; or three, the last of averages: then the
                gradients are read twice.
            threads: how many threads, at most.

        Raises:
            RuntimeError: it cannot be built here.
        """
        self._function = _library().same_bytes
        self._function.restype = ctypes.c_int
        self._streams = [variables, gradients, *slots]  # the addresses alone would not keep them
        count = len(variables)
        addresses = ctypes.c_void_p * count
        before = accumulate((variable.nbytes for variable in variables), initial=0)
        self._arguments = (
            ctypes.c_int64(count),
            *(addresses(*(array.ctypes.data for array in stream)) for stream in self._streams),
            *([None] if len(slots) == 2 else []),
            (ctypes.c_int64 * (count + 1))(*before),
            ctypes.c_int(4 // variables[0].itemsize),
            ctypes.c_int(threads),
        )

    def __call__(self) -> None:
        """Move them."""
        self._function(*self._arguments)
