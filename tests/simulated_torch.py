"""Tensors of PyTorch on a simulated GPU: on the CPU for PyTorch, on a GPU by all that they tell others."""

import ctypes
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest

from fusedstep._native import DeviceArray, simulation

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


class Device(ctypes.Structure):
    """DLPack's."""

    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))
    cuda: ClassVar[int] = 2


class View(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


TensorOf = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(View))
CurrentStream = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)
)


class ExchangeApi(ctypes.Structure):
    """DLPack's, of array types."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_of", ctypes.c_void_p),
        ("object_of", ctypes.c_void_p),
        ("tensor_of", TensorOf),
        ("current_stream", CurrentStream),
    )


NAME = b"dlpack_exchange_api"
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
capsule_of = ctypes.pythonapi.PyCapsule_New
capsule_of.restype = ctypes.py_object
capsule_of.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

of_cpu = ExchangeApi.from_address(pointer_of(torch.Tensor.__dlpack_c_exchange_api__, NAME))
streams = [0]  # of which PyTorch's current one is the last


def tensor_of(tensor: int, view: Any) -> int:
    failed: int = of_cpu.tensor_of(tensor, view)
    view.contents.device = Device(Device.cuda, 0)
    return failed


def current_stream(device_type: int, number: int, found: Any) -> int:
    assert (device_type, number) == (Device.cuda, 0)
    found[0] = streams[-1]
    return 0


of_gpu = ExchangeApi(
    of_cpu.version, tensor_of=TensorOf(tensor_of), current_stream=CurrentStream(current_stream)
)


class CudaTensor(torch.Tensor):  # type: ignore[misc, name-defined]
    """A tensor that says that it is on a GPU."""

    __dlpack_c_exchange_api__ = capsule_of(ctypes.addressof(of_gpu), NAME, None)
    is_cuda = property(lambda self: True)
    device = property(lambda self: torch.device("cuda", 0))

    looks: ClassVar[list[str]] = []  # at values, for which a host waits

    def __float__(self) -> float:
        self.looks.append("float")
        return float(super().__float__())

    def __int__(self) -> int:
        self.looks.append("int")
        return int(super().__int__())

    def item(self) -> Any:
        self.looks.append("item")
        return super().item()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make what is asked for on a GPU where PyTorch can."""
        given = {name: value for name, value in (kwargs or {}).items() if not is_cuda(value)}
        return super().__torch_function__(function, types, args, given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return to_gpu(self)


def is_cuda(place: Any) -> bool:
    return str(place).partition(":")[0] == "cuda"


def over(memory: DeviceArray, dtype: Any) -> Any:
    """A tensor over memory of the simulated GPU."""
    count = int(np.prod(memory.shape))
    if count == 0:
        return torch.empty(memory.shape, dtype=dtype).as_subclass(CudaTensor)
    address, _ = memory.__cuda_array_interface__["data"]
    flat = (ctypes.c_byte * (count * dtype.itemsize)).from_address(address)
    flat.memory = memory  # which stays as long as a tensor over it
    return torch.frombuffer(flat, dtype=dtype).reshape(memory.shape).as_subclass(CudaTensor)


def to_gpu(tensor: Any) -> Any:
    """A copy of a tensor there."""
    name = str(tensor.dtype).removeprefix("torch.")
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    dtype = getattr(ml_dtypes, name, name)
    return over(simulation.array_on(0, values.view(dtype).reshape(tensor.shape)), tensor.dtype)


@pytest.fixture
def cuda(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated GPUs to which PyTorch copies, and from which it takes slots, as it does with CUDA's help."""
    from_dlpack, to = torch.from_dlpack, torch.Tensor.to
    CudaTensor.looks.clear()

    def from_any_dlpack(array: Any) -> Any:
        if isinstance(array, DeviceArray):
            return over(array, getattr(torch, array.dtype.name))
        return from_dlpack(array)

    def to_anywhere(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_cuda(kwargs.get("device")) and not any(map(is_cuda, args[:1])):
            return to(tensor, *args, **kwargs)
        return to_gpu(to(tensor, kwargs.get("dtype", tensor.dtype)))

    monkeypatch.setattr(torch, "from_dlpack", from_any_dlpack)
    monkeypatch.setattr(torch.Tensor, "to", to_anywhere)
