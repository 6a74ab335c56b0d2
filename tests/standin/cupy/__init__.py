"""A stand-in for CuPy where there is no GPU: as much of it as fusedstep, its examples and tests/gpu ask for.

An array's memory is that of a stand-in for a GPU (tests/native/cuda), which the host cannot touch. What is
computed goes onto the current stream, as a function of NumPy over that memory, which is called when the
stream comes to it. So what CuPy does not wait for, happens late here; what is not done here, raises.
"""

from cupy import cuda
from cupy._arrays import (
    abs,
    arange,
    asarray,
    ascontiguousarray,
    asnumpy,
    copyto,
    count_nonzero,
    empty,
    exp,
    from_dlpack,
    full,
    get_array_module,
    log,
    maximum,
    mean,
    ndarray,
    repeat,
    sqrt,
    stack,
    zeros,
)
from cupy.cuda import ElementwiseKernel, RawKernel, RawModule, ReductionKernel, get_default_memory_pool

__version__ = "14.0.0"  # of the CuPy that it is like

__all__ = [
    "ElementwiseKernel",
    "RawKernel",
    "RawModule",
    "ReductionKernel",
    "abs",
    "arange",
    "asarray",
    "ascontiguousarray",
    "asnumpy",
    "copyto",
    "count_nonzero",
    "cuda",
    "empty",
    "exp",
    "from_dlpack",
    "full",
    "get_array_module",
    "get_default_memory_pool",
    "log",
    "maximum",
    "mean",
    "ndarray",
    "repeat",
    "sqrt",
    "stack",
    "zeros",
]
