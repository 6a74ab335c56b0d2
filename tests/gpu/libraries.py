"""CuPy's arrays and PyTorch's tensors, made from NumPy's and turned back, by their bytes.

Bytes go to and fro as they are, so no library needs a kernel of its own for it, nor know bfloat16.
"""

import importlib
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from fusedstep import Optimizer, _native
from reference import Reference, same_bits

Array = npt.NDArray[Any]

# Other libraries' warnings are no failures here.
GPU = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


only_cupy = pytest.mark.parametrize("library", ["cupy"], indirect=True)


class UnavailableError(Exception):
    """What is missing."""


class CuPy:
    name = "cupy"

    def __init__(self) -> None:
        self.cupy = _module("cupy", "CuPy")
        try:
            self.devices = self.cupy.cuda.runtime.getDeviceCount()
        except self.cupy.cuda.runtime.CUDARuntimeError as error:
            raise UnavailableError(f"no GPU: {error}") from error

    def array(self, values: Array, offset: int = 0) -> Any:
        """A copy on the current device, so many bytes behind a multiple of 256."""
        buffer = self.cupy.empty(offset + values.nbytes, np.uint8)
        if values.nbytes:
            buffer[offset:].set(np.frombuffer(values.tobytes(), np.uint8))
        return self.inside(buffer, offset, values)

    def inside(self, buffer: Any, offset: int, like: Array) -> Any:
        """An array of this shape and dtype in a buffer of bytes."""
        return self.cupy.ndarray(like.shape, like.dtype, buffer.data + offset)


class Torch:
    name = "torch"

    def __init__(self) -> None:
        self.torch = _module("torch", "PyTorch")
        self.device = "cuda"
        if not hasattr(self.torch.Tensor, "__dlpack_c_exchange_api__"):
            raise UnavailableError(f"PyTorch is {self.torch.__version__}, but must be 2.10 or newer")
        if not self.torch.cuda.is_available():
            raise UnavailableError("PyTorch finds no GPU")

    def array(self, values: Array, offset: int = 0) -> Any:
        """A copy on the current device, so many bytes behind a multiple of 256."""
        buffer = self.torch.empty(offset + values.nbytes, dtype=self.torch.uint8, device=self.device)
        if values.nbytes:
            flat = self.torch.frombuffer(bytearray(values.tobytes()), dtype=self.torch.uint8)
            buffer[offset:] = flat.to(self.device)
        return self.inside(buffer, offset, values)

    def inside(self, buffer: Any, offset: int, like: Array) -> Any:
        """A tensor of this shape and dtype in a buffer of bytes."""
        flat = buffer[offset : offset + like.nbytes]
        return flat.view(getattr(self.torch, like.dtype.name)).reshape(like.shape)


def _module(name: str, called: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UnavailableError(f"{called} cannot be imported: {error}") from error


@cache
def try_to_load(name: str) -> CuPy | Torch | str:
    """The library, or what is missing."""
    if not _native.cuda_version:
        return "this build of fusedstep has no CUDA kernels"
    try:
        return CuPy() if name == "cupy" else Torch()
    except UnavailableError as error:
        return str(error)


def loaded(name: str) -> Any:
    """The library, or a skipped test."""
    library = try_to_load(name)
    if isinstance(library, str):
        pytest.skip(library)
    return library


def host(array: Any) -> Array:
    """A NumPy array of the same bytes: of a NumPy array, a number, a CuPy array, a tensor or a DeviceArray.

    It waits for the whole device, so whatever stream the bytes come from.
    """
    if isinstance(array, (np.ndarray, float)):
        return np.asarray(array)
    if hasattr(array, "detach"):  # PyTorch's
        torch, dtype = importlib.import_module("torch"), str(array.dtype).removeprefix("torch.")
        if array.is_cuda:
            torch.cuda.synchronize(array.device)
        given = np.dtype(getattr(ml_dtypes, dtype, dtype))
        return bytes_as(array.detach().cpu().reshape(-1).view(torch.uint8).numpy(), given, array.shape)
    if hasattr(array, "get"):  # CuPy's
        cupy = importlib.import_module("cupy")
        with array.device:
            cupy.cuda.runtime.deviceSynchronize()
            flat = cupy.ndarray((array.nbytes,), np.uint8, array.data)
            return bytes_as(flat.get() if array.nbytes else np.empty(0, np.uint8), array.dtype, array.shape)
    copy: Array = array.copy()
    return copy


def bytes_as(flat: Array, dtype: Any, shape: Sequence[int]) -> Array:
    array: Array = flat.view(dtype).reshape(tuple(shape))
    return array


def id_of(arguments: dict[str, Any]) -> str:
    return "+".join(f"{name}={value}" for name, value in arguments.items()) or "bare"


def fresh(optimizer: Optimizer) -> Optimizer:
    """One like it that has not stepped."""
    return type(optimizer).from_config(optimizer.get_config())


def on_gpu(library: Any, grads: Sequence[Any]) -> list[Any]:
    return [None if gradient is None else library.array(gradient) for gradient in grads]


def assert_same(optimizer: Optimizer, variables: Sequence[Any], reference: Reference) -> None:
    """Every variable and slot has the reference's bits."""
    for index, (variable, expected) in enumerate(zip(variables, reference.variables, strict=True)):
        assert same_bits(host(variable), expected), f"{optimizer}: variable {index} of {expected.dtype}"
        for name, slot in optimizer.slots(variable).items():
            assert same_bits(host(slot), reference.slots[index][name]), f"{optimizer}: {name} of {index}"
