"""Arrays, and what is computed of them."""

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex

import ml_dtypes
import numpy as np
import numpy.typing as npt

from cupy import cuda
from cupy.cuda import Memory, MemoryPointer, Stream, alloc, get_current_stream, runtime

Shape = tuple[int, ...]


class Place(NamedTuple):
    """Where an array's elements are. It keeps no memory."""

    pointer: int
    shape: Shape
    strides: Shape
    dtype: np.dtype[Any]

    def in_numpy(self) -> npt.NDArray[Any]:
        """NumPy's array there. To make one, or a view of it, touches no memory."""
        if math.prod(self.shape) == 0:
            return np.ndarray(self.shape, self.dtype, strides=self.strides)
        first: Any = (ctypes.c_char * self.dtype.itemsize).from_address(self.pointer)
        of_one = np.ndarray((1,), self.dtype, first)
        return np.lib.stride_tricks.as_strided(of_one, self.shape, self.strides)


class Flags(NamedTuple):
    c_contiguous: bool
    owndata: bool


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801
    """An array on a GPU."""

    __module__ = "cupy"

    def __init__(
        self,
        shape: int | Shape,
        dtype: npt.DTypeLike = float,
        memptr: MemoryPointer | None = None,
        strides: Shape | None = None,
    ) -> None:
        self.shape: Shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.dtype = np.dtype(dtype)
        self.strides = _contiguous_strides(self.shape, self.dtype) if strides is None else strides
        self.data = alloc(self.nbytes) if memptr is None else memptr
        self.device = cuda.Device(self.data.device_id)
        self.base: ndarray | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def flags(self) -> "Flags":
        return Flags(_is_contiguous(self), self.base is None)

    @property
    def place(self) -> Place:
        return Place(self.data.ptr, self.shape, self.strides, self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": self.strides,
            "version": 3,
            "stream": get_current_stream(self.data.device_id).ptr or 1,
        }

    def __array__(self, *_: object, **__: object) -> Any:
        raise TypeError("a CuPy array becomes a NumPy array by get() or cupy.asnumpy() alone")

    # Views.

    def _seen_as(self, look: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> "ndarray":
        """A view, as NumPy makes it of an array there."""
        whole = self.place.in_numpy()
        part = look(whole)
        offset = part.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        made = ndarray(part.shape, part.dtype, self.data + (offset if part.size else 0), part.strides)
        made.base = self if self.base is None else self.base
        return made

    @property
    def T(self) -> "ndarray":  # noqa: N802
        return self._seen_as(lambda array: array.T)

    def transpose(self, *axes: int) -> "ndarray":
        return self._seen_as(lambda array: array.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> "ndarray":
        return self._seen_as(lambda array: array.swapaxes(first, second))

    def view(self, dtype: npt.DTypeLike) -> "ndarray":
        return self._seen_as(lambda array: array.view(dtype))

    def reshape(self, *shape: Any) -> "ndarray":
        given = shape[0] if isinstance(shape[0], Sequence) else shape
        array = self
        try:
            return self._seen_as(lambda array: np.reshape(array, given, copy=False))
        except ValueError:  # that takes a copy, or cannot be
            array = self.copy()
        return array._seen_as(lambda array: np.reshape(array, given, copy=False))

    def __getitem__(self, key: Any) -> "ndarray":
        keys = key if isinstance(key, tuple) else (key,)
        if not any(isinstance(one, ndarray) for one in keys):
            return self._seen_as(lambda array: array[(*_basic(keys), ...)])
        return _computed(lambda array, *keys: array[keys], self, *_indices(keys))

    # Copies.

    def get(self, stream: Stream | None = None) -> npt.NDArray[Any]:
        """NumPy's array of the same, when what was before on the stream is done."""
        with self.device:
            whole = ascontiguousarray(self)
            copy = np.empty(self.shape, self.dtype)
            pointer = (stream or get_current_stream()).ptr
            if self.nbytes:
                runtime.copy(copy.ctypes.data, whole.data.ptr, self.nbytes, False, pointer)
            runtime.streamSynchronize(pointer)
        return copy

    def set(self, values: npt.NDArray[Any]) -> None:
        """Take NumPy's array over, in the order of the stream."""
        if (values.shape, values.dtype) != (self.shape, self.dtype) or not _is_contiguous(self):
            raise ValueError("only the same shape and dtype can be set, contiguous")
        values = np.ascontiguousarray(values)
        with self.device:
            runtime.copy(self.data.ptr, values.ctypes.data, self.nbytes, True, get_current_stream().ptr)

    def copy(self) -> "ndarray":
        return _computed(lambda array: array.copy(), self)

    def astype(self, dtype: npt.DTypeLike) -> "ndarray":
        return _computed(lambda array: array.astype(dtype), self)

    def fill(self, value: Any) -> None:
        self[...] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        keys = key if isinstance(key, tuple) else (key,)
        keys = _indices(keys) if any(isinstance(one, ndarray) for one in keys) else _basic(keys)

        def write(array: Any, value: Any, *keys: Any) -> None:
            array[keys] = value

        _launched(write, self, value, *keys)

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __len__(self) -> int:
        return self.shape[0]

    # What is computed.

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        if method != "__call__" or options or ufunc.nout != 1:
            raise NotImplementedError(f"{ufunc.__name__}.{method} with {options}")
        for one in inputs:
            if isinstance(one, ndarray) and one.dtype.kind == "V":
                raise NotImplementedError(f"{ufunc.__name__} of {one.dtype}")
        if out is None:
            return _computed(ufunc, *inputs)
        _launched(lambda out, *inputs: ufunc(*inputs, out=out), out[0], *inputs)
        return out[0]

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        if function is not np.where or options:
            raise TypeError(f"numpy.{function.__name__} does not take CuPy's arrays here")
        return _computed(np.where, *arguments)

    def sum(self, axis: Any = None, keepdims: bool = False) -> "ndarray":
        return _computed(lambda array: array.sum(axis, keepdims=keepdims), self)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "ndarray":
        return _computed(lambda array: array.mean(axis, keepdims=keepdims), self)

    def max(self, axis: Any = None, keepdims: bool = False) -> "ndarray":
        return _computed(lambda array: array.max(axis, keepdims=keepdims), self)

    def argmax(self, axis: Any = None) -> "ndarray":
        return _computed(lambda array: array.argmax(axis), self)

    def any(self) -> "ndarray":
        return _computed(lambda array: array.any(), self)


def _contiguous_strides(shape: Shape, dtype: np.dtype[Any]) -> Shape:
    return tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _is_contiguous(array: ndarray) -> bool:
    flags = array.place.in_numpy().flags
    return flags.c_contiguous


def _basic(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keys of a view."""
    for one in keys:
        known = one is None or one is ... or isinstance(one, (slice, SupportsIndex))
        if not known or isinstance(one, bool):
            raise NotImplementedError(f"an index of type {type(one).__name__}")
    return keys


def _indices(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keys some of which are arrays."""
    for one in keys:
        if isinstance(one, ndarray) and one.dtype.kind not in "iu":
            raise NotImplementedError(f"an index of {one.dtype}, of which the host would have to wait")
        if not isinstance(one, ndarray):
            _basic((one,))
    return keys


def _launched(function: Callable[..., object], *operands: Any) -> None:
    """Put a function of NumPy's arrays onto the current stream; what is wrong with it is found out now."""
    places = [_place_of(one) for one in operands]
    with np.errstate(all="ignore"):
        function(*(np.zeros(one.shape, one.dtype) if isinstance(one, Place) else one for one in places))
    _put(function, places)


def _put(function: Callable[..., object], places: list[Any]) -> None:
    def work() -> None:
        with np.errstate(all="ignore"):
            function(*(one.in_numpy() if isinstance(one, Place) else one for one in places))

    runtime.launch(get_current_stream().ptr, work)


def _place_of(operand: Any) -> Any:
    if isinstance(operand, (np.ndarray, list)):
        raise TypeError(f"Unsupported type {type(operand)}")
    if not isinstance(operand, ndarray):
        return operand
    if operand.data.device_id != runtime.getDevice():
        raise ValueError(f"an array on {operand.device}, but the current one is {cuda.Device()}")
    return operand.place


def _computed(function: Callable[..., Any], *operands: Any) -> ndarray:
    """The array that a function of NumPy's makes, once the stream comes to it."""
    places = [_place_of(one) for one in operands]
    with np.errstate(all="ignore"):
        like = np.asarray(
            function(*(np.zeros(one.shape, one.dtype) if isinstance(one, Place) else one for one in places))
        )
    made = ndarray(like.shape, like.dtype)

    def work(out: Any, *arrays: Any) -> None:
        out[...] = function(*arrays)

    _put(work, [made.place, *places])
    return made


def _of_arrays(function: Callable[..., Any]) -> Callable[..., ndarray]:
    """A function of NumPy's, of CuPy's arrays and numbers."""

    def computed(*operands: Any) -> ndarray:
        if not any(isinstance(one, ndarray) for one in operands):
            raise TypeError(f"{function.__name__} takes CuPy's arrays")
        return _computed(function, *operands)

    return computed


abs, exp, log = _of_arrays(np.abs), _of_arrays(np.exp), _of_arrays(np.log)
sqrt, maximum = _of_arrays(np.sqrt), _of_arrays(np.maximum)
mean, count_nonzero = _of_arrays(np.mean), _of_arrays(np.count_nonzero)


def stack(arrays: Sequence[ndarray]) -> ndarray:
    return _computed(lambda *arrays: np.stack(arrays), *arrays)


def repeat(array: ndarray, repeats: int, axis: int) -> ndarray:
    return _computed(lambda array: np.repeat(array, repeats, axis), array)


def ascontiguousarray(array: ndarray) -> ndarray:
    return array if _is_contiguous(array) else array.copy()


def copyto(to: ndarray, array: ndarray) -> None:
    to[...] = array


def empty(shape: int | Shape, dtype: npt.DTypeLike = float) -> ndarray:
    return ndarray(shape, dtype)


def full(shape: int | Shape, value: Any, dtype: npt.DTypeLike) -> ndarray:
    array = ndarray(shape, dtype)
    array.fill(value)
    return array


def zeros(shape: int | Shape, dtype: npt.DTypeLike = float) -> ndarray:
    return full(shape, 0, dtype)


def arange(count: int) -> ndarray:
    return _computed(lambda: np.arange(count))


def asarray(values: Any) -> ndarray:
    """CuPy's array: itself, or a copy on the current device."""
    if isinstance(values, ndarray):
        return values
    values = np.asarray(values)
    array = ndarray(values.shape, values.dtype)
    if values.nbytes:
        array.set(values)
    return array


def asnumpy(array: ndarray) -> npt.NDArray[Any]:
    return array.get()


def from_dlpack(other: Any) -> ndarray:
    """Another library's array, of whose memory nothing is copied."""
    capsule = other.__dlpack__(stream=get_current_stream().ptr or 1)
    pointer, shape, dtype, device = runtime.take_over(capsule)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    owner = Memory(pointer, device, lambda _: None, capsule)
    return ndarray(shape, kind, MemoryPointer(owner, 0))


def get_array_module(*arrays: Any) -> Any:
    """Return this package where one of the arrays is of it, else NumPy."""
    return sys.modules["cupy"] if any(isinstance(array, ndarray) for array in arrays) else np
