"""Arrays of other libraries, through DLPack: those that can be written to, and those that cannot."""

import numpy as np
import numpy.typing as npt
import pytest

from fusedstep import SGD


def test_a_jax_array_is_a_gradient_but_no_variable() -> None:
    """JAX's arrays are immutable, though DLPack hands out their memory."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    w, x = np.ones(3, np.float32), jax.numpy.ones(3)
    SGD(0.5).apply([x], [w])
    assert w.tolist() == [0.5] * 3
    for variable in (x, [w, x]):
        variables = variable if isinstance(variable, list) else [variable]
        with pytest.raises(ValueError, match=r"is read-only, but it is updated in place; pass numpy\.array"):
            SGD(0.5).apply([np.ones(3, np.float32)] * len(variables), variables)
    assert x.tolist() == [1.0] * 3
    assert w.tolist() == [0.5] * 3


def test_a_tensor_of_pytorch_is_both() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        w = torch.ones(3, dtype=dtype)
        SGD(0.5).apply([torch.ones(3, dtype=dtype)], [w])
        assert w.tolist() == [0.5] * 3


class Memory:
    """Of no library: all that it has is DLPack's methods."""

    def __init__(self, array: npt.NDArray[np.float32]) -> None:
        self.array = array

    def __dlpack__(self, **arguments: object) -> object:
        return self.array.__dlpack__(**arguments)  # type: ignore[arg-type]

    def __dlpack_device__(self) -> object:
        return self.array.__dlpack_device__()


def test_an_array_of_no_library() -> None:
    w = np.ones(3, np.float32)
    SGD(0.5).apply([Memory(np.ones(3, np.float32))], [Memory(w)])
    assert w.tolist() == [0.5] * 3
