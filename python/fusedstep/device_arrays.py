"""Arrays on GPUs: from the extension's view of their memory to those of a library, and to NumPy's."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep._native import DeviceArray


def as_array_beside(memory: Any, array: Any) -> Any:
    """Return memory on a GPU as an array of another one's library, without a copy; NumPy arrays as they are.

    A library that cannot take it over (there is no from_dlpack) gets the memory itself, which speaks
    ``__dlpack__`` and ``__cuda_array_interface__``.
    """
    if not isinstance(memory, DeviceArray):
        return memory
    for library in map(sys.modules.get, libraries_of(array)):
        take_over = getattr(library, "from_dlpack", None)
        if take_over is not None:
            return take_over(memory)
    return memory


def libraries_of(array: Any) -> list[str]:
    """Return the packages that an array's class is of, and those that it is derived from."""
    return [cls.__module__.partition(".")[0] for cls in type(array).__mro__]


def times(array: Any, number: DeviceArray) -> Any:
    """Return an array times a number on the same GPU, in the array's dtype, without waiting for it.

    Where the array's library cannot take the number over, it is read, which waits.
    """
    taken = as_array_beside(number, array)
    if taken is number:
        return array * float(number.copy())
    if hasattr(taken, "astype"):
        with on_device_of(array):
            return array * taken.astype(array.dtype)
    return array * taken.to(array.dtype, copy=True)  # PyTorch's


def on_device_of(array: Any) -> contextlib.AbstractContextManager[Any]:
    """Have CuPy, which computes on the current device, work on an array's own; other libraries do so."""
    return array.device if "cupy" in libraries_of(array) else contextlib.nullcontext()


def clear(array: Any) -> None:
    """Set an array to zero, on its own device."""
    with on_device_of(array):
        array.fill(0)


def contiguous_copy(library: Any, array: Any) -> Any:
    """Return a contiguous copy by the array's library, on its own device."""
    with on_device_of(array):
        return library.ascontiguousarray(array)


def write(array: npt.NDArray[Any] | DeviceArray, values: npt.NDArray[Any]) -> None:
    """Put values into an array."""
    if isinstance(array, DeviceArray):
        array.assign(np.asarray(values))
    else:
        array[...] = values


def as_cupy(memory: DeviceArray, what: str) -> Any:
    """Return memory on a GPU, of ``what`` a refusal names, as CuPy's array, without a copy."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            f"{what} is a GPU array, which a rule in Python gets as CuPy's, but CuPy cannot be imported"
            f" ({error}); install it, or pass NumPy arrays"
        ) from None
    return cupy.from_dlpack(memory)


@contextlib.contextmanager
def current(device: int, stream: int) -> Iterator[None]:
    """Have CuPy work on this device and stream, until the end of the ``with`` block."""
    cuda = importlib.import_module("cupy").cuda
    with cuda.Device(device):
        before = cuda.get_current_stream()
        if before.ptr == stream:
            yield
            return
        if hasattr(cuda.Stream, "from_external"):
            other = cuda.Stream.from_external(OtherStream(stream))
        else:  # before CuPy 14
            other = cuda.ExternalStream(stream, device)
        try:
            with other:
                yield
        finally:
            before.use()  # where that was how it became the current one, the end of "with" forgets it


class OtherStream:
    """A stream of another library, by CUDA's protocol for them."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return the protocol's version and the stream."""
        return 0, self.pointer
