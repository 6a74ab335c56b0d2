"""Arrays of other libraries, through DLPack: those that can be written to, and those that cannot."""

import ctypes
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fusedstep import SGD, Lamb


def test_a_tensor_that_is_not_contiguous_is_told_how_it_becomes_so() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(ValueError, match=r"not contiguous .* so pass w\.contiguous\(\) once"):
        SGD(0.5).build([torch.ones(3, 2).T])


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


class Changing(Memory):
    """Does something whenever it is looked at."""

    def __init__(self, array: npt.NDArray[np.float32], does: Callable[[], object]) -> None:
        super().__init__(array)
        self.does = does

    def __dlpack__(self, **arguments: object) -> object:
        self.does()
        return super().__dlpack__(**arguments)


@pytest.mark.parametrize("kind", ["clear", "double"])
def test_a_list_that_an_array_changes_as_it_is_read(kind: str) -> None:
    """The step is with the arrays that it began with, whether the first ones or later ones."""
    ws = [np.zeros(3, np.float32) for _ in range(100)]
    variables, grads, junk = [Memory(w) for w in ws], list[Any](), list[bytearray]()

    def change() -> None:
        grads[:] = [] if kind == "clear" else grads * 2
        junk.extend(bytearray(800) for _ in range(50))

    opt = SGD(1.0)
    opt.build(variables)
    for _ in range(3):
        grads[:] = [Changing(np.ones(3, np.float32), change)]
        grads += [Memory(np.ones(3, np.float32)) for _ in ws[1:]]
        opt.apply(grads, variables)
    assert [w.tolist() for w in ws] == [[-3.0] * 3] * 100


class Fresh(Memory):
    """Hands out a copy, which nobody else keeps."""

    def __dlpack__(self, **arguments: object) -> object:
        return self.array.copy().__dlpack__(**arguments)  # type: ignore[arg-type]


def test_what_dlpack_hands_out_is_kept_for_the_step() -> None:
    """Else the second copy takes the memory of the first."""
    ws = [np.zeros(3, np.float32) for _ in range(4)]
    variables = [Memory(w) for w in ws]
    opt = SGD(1.0)
    opt.build(variables)
    for _ in range(3):
        opt.apply([Fresh(np.full(3, 1 + i, np.float32)) for i in range(4)], variables)
    assert [w.tolist() for w in ws] == [[-3.0 * (1 + i)] * 3 for i in range(4)]


def test_values_of_rows_that_dlpack_hands_out_are_kept_for_the_step() -> None:
    ws = [np.zeros((4, 2), np.float32) for _ in range(4)]
    grads = [([0, 2], Fresh(np.full((2, 2), 1 + i, np.float32))) for i in range(4)]
    SGD(1.0).apply(grads, ws)
    assert [w[:, 0].tolist() for w in ws] == [[-1 - i, 0, -1 - i, 0] for i in range(4)]


def test_rows_that_are_none_are_a_gradient() -> None:
    """Whose memory is null, as PyTorch says."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w = torch.ones(4, 2)
    assert SGD(0.5, weight_decay=1.0).apply([([], torch.empty(0, 2))], [w]) == 1
    assert w.tolist() == [[0.5] * 2] * 4


@pytest.mark.parametrize("library", ["NumPy", "none", "PyTorch"])
def test_a_gradient_of_another_shape_in_a_later_step(library: str) -> None:
    make: Callable[[Any], Any] = Memory if library == "none" else np.asarray
    if library == "PyTorch":
        make = pytest.importorskip("torch", reason="PyTorch is not installed").from_numpy
    w = np.zeros((2, 3), np.float32)
    opt, variable, good = SGD(1.0), make(w), make(np.ones((2, 3), np.float32))
    for shape in ((3, 2), (3,), (2, 3, 1)):
        for _ in range(2):
            opt.apply([good], [variable])
        before = w.copy()
        with pytest.raises(
            ValueError, match=re.escape(f"grads[0] has shape {shape}, its variable has (2, 3)")
        ):
            opt.apply([make(np.ones(shape, np.float32))], [variable])
        assert w.tolist() == before.tolist()


class Tensor(ctypes.Structure):
    """DLPack's."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),  # of what is around it
        ("deleter", ctypes.c_void_p),
    )


class ByHand:
    """Memory that is described as no library does; in float32 if nothing else is said."""

    def __init__(
        self, data: int, shape: tuple[int, ...], strides: tuple[int, ...] = (), **others: int
    ) -> None:
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        self.strides = (ctypes.c_int64 * len(strides))(*strides)
        known = {"device_type": 1, "code": 2, "bits": 32, "lanes": 1} | others
        self.tensor = Tensor(data=data, ndim=len(shape), shape=self.shape, **known)
        if strides:
            self.tensor.strides = self.strides

    def __dlpack__(self, **_: object) -> object:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self.tensor), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.device_type, self.tensor.device_id


@pytest.mark.parametrize(
    "described",
    [
        {"shape": (3,), "byte_offset": 8},
        {"shape": (1, 3), "strides": (7, 1), "byte_offset": 8},
        {"shape": (3, 1), "strides": (1, 7), "byte_offset": 8},
        {"shape": (3,), "byte_offset": 8, "device_type": 3},
    ],
    ids=repr,
)
def test_what_a_tensor_may_tell(described: dict[str, Any]) -> None:
    """An offset, any stride of a dimension of 1, and memory on the host for GPUs."""
    memory = np.zeros(6, np.float32)
    SGD(1.0).apply([np.ones(described["shape"])], [ByHand(memory.ctypes.data, **described)])
    assert memory.tolist() == [0, 0, -1, -1, -1, 0]


def test_a_tensor_without_elements_has_any_strides() -> None:
    SGD(1.0).build([ByHand(0, (0, 3), (7, 5))])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"shape": (3,), "lanes": 2}, "but a variable must be float32"),
    ({"shape": (3,), "bits": 4}, "but a variable must be float32"),
    ({"shape": (3,), "bits": 0}, "but a variable must be float32"),
    ({"shape": (3,), "code": 0}, "but a variable must be float32"),
    ({"shape": (3,), "device_type": 7}, "but a variable must be float32"),
    ({"shape": (1,) * 65}, "but a variable must be float32"),
    ({"shape": (3,), "strides": (2,)}, r"not contiguous \(shape \(3,\), strides \(8,\)\)"),
    ({"shape": (3,), "byte_offset": 2}, "not aligned to its dtype"),
]


@pytest.mark.parametrize(("described", "sentence"), REFUSED, ids=repr)
def test_what_a_tensor_may_not_tell(described: dict[str, Any], sentence: str) -> None:
    memory = np.zeros(6, np.float32)
    with pytest.raises((TypeError, ValueError), match=rf"^SGD\.build: variables\[0\].* {sentence}"):
        SGD(1.0).build([ByHand(memory.ctypes.data, **described)])


class Older(Memory):
    """One whose method takes no arguments, as before DLPack's version 1."""

    def __dlpack__(self) -> object:  # type: ignore[override]
        return self.array.__dlpack__()


class Wrong(Memory):
    def __dlpack__(self, **_: object) -> object:
        return self.array


def test_a_method_of_an_older_version() -> None:
    w = np.ones(3, np.float32)
    SGD(0.5).apply([Older(np.ones(3, np.float32))], [Older(w)])
    assert w.tolist() == [0.5] * 3


def test_memory_that_is_read_only() -> None:
    w, g = np.ones(3, np.float32), np.ones(3, np.float32)
    g.flags.writeable = False
    SGD(0.5).apply([Memory(g)], [w])
    assert w.tolist() == [0.5] * 3
    with pytest.raises(
        ValueError, match=r"^SGD\.build: variables\[0\] is read-only, but it is updated in place"
    ):
        SGD(0.5).build([Memory(g)])


def test_what_is_no_capsule_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"^SGD\.build: variables\[0\] is of type test_dlpack\.Wrong and dtype"
    ):
        SGD(0.5).build([Wrong(np.ones(3, np.float32))])


class Gone(Memory):
    """One that raises when it is asked for its memory."""

    def __init__(self, array: npt.NDArray[np.float32], error: BaseException) -> None:
        super().__init__(array)
        self.error = error

    def __dlpack__(self, **arguments: object) -> object:
        raise self.error


def test_what_dlpack_raises_is_told() -> None:
    w, gone = np.ones(3, np.float32), Gone(np.ones(3, np.float32), BufferError("it was given away"))
    told = r" is of type test_dlpack\.Gone, whose __dlpack__ raises BufferError: it was given away; pass"
    with pytest.raises(TypeError, match=r"^SGD\.apply: grads\[0\]" + told):
        SGD(0.5).apply([gone], [w])
    with pytest.raises(TypeError, match=r"^SGD\.build: variables\[0\]" + told):
        SGD(0.5).build([gone])
    assert w.tolist() == [1.0] * 3


def test_an_interrupt_is_no_refusal() -> None:
    w = np.ones(3, np.float32)
    with pytest.raises(KeyboardInterrupt):
        SGD(0.5).apply([Gone(w, KeyboardInterrupt())], [w])


class LikeJax(Memory):
    """Where JAX is not installed: hands out its memory as JAX does, under a name of JAX' module."""

    __module__ = "jaxlib._jax"


def array_of_jax() -> Any:
    try:
        import jax
    except ImportError:
        return LikeJax(np.ones(3, np.float32))
    return jax.numpy.ones(3)


def test_a_jax_array_is_a_gradient_but_no_variable() -> None:
    """JAX's arrays are immutable, though DLPack hands out their memory."""
    w, x = np.ones(3, np.float32), array_of_jax()
    opt = SGD(0.5)
    opt.apply([x], [w])
    assert w.tolist() == [0.5] * 3
    for variables in ([x], [w, x]):
        place = rf"variables\[{len(variables) - 1}\]"
        with pytest.raises(ValueError, match=rf"{place} is a jax\.Array, and those are immutable, but"):
            SGD(0.5).apply([np.ones(3, np.float32)] * len(variables), variables)
    assert np.from_dlpack(x).tolist() == [1.0] * 3
    assert w.tolist() == [0.5] * 3


def test_an_array_of_no_library() -> None:
    w = np.ones(3, np.float32)
    SGD(0.5).apply([Memory(np.ones(3, np.float32))], [Memory(w)])
    assert w.tolist() == [0.5] * 3


def test_a_tensor_that_was_given_other_memory_is_refused() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w, opt, g = torch.zeros(3), SGD(0.5), torch.ones(3)
    opt.apply([g], [w])
    former, w.data = w.data, torch.zeros(3)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"variables\[0\] has other memory, dtype or layout"):
            opt.apply([g], [w])
    w.data = former
    opt.apply([g], [w])
    assert w.tolist() == [-1.0] * 3


def test_a_tensor_without_memory_is_refused() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w, zeros = np.ones(3, np.float32), torch._efficientzerotensor((3,))
    with pytest.raises(
        ValueError, match=r"grads\[0\] is of type torch.Tensor, which has no memory of its own"
    ):
        SGD(0.5).apply([zeros], [w])
    with pytest.raises(ValueError, match=r"variables\[0\] is of type torch.Tensor, which has no memory"):
        SGD(0.5).build([zeros])
    with pytest.raises(
        TypeError, match=r"variables\[0\] is of type torch.Tensor and dtype torch.float32 on meta"
    ):
        SGD(0.5).build([torch.ones(3, device="meta")])
    assert w.tolist() == [1.0] * 3


def test_the_layout_of_a_sparse_tensor_is_told() -> None:
    """As of the gradients of an embedding: its dtype and device alone are what they should be."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w, sparse = np.ones((3, 2), np.float32), torch.ones(3, 2).to_sparse(1)
    dense = (
        r" is of type torch\.Tensor and layout torch\.sparse_coo, but a {} must be dense; pass x\.to_dense"
    )
    rows = r"\(\), or pass the tuple \(indices, values\) where it has some rows alone$"
    with pytest.raises(TypeError, match=r"^SGD\.apply: grads\[0\]" + dense.format("gradient") + rows):
        SGD(0.5).apply([sparse], [w])
    with pytest.raises(TypeError, match=r"^SGD\.build: variables\[0\]" + dense.format("variable") + r"\(\)$"):
        SGD(0.5).build([sparse])
    SGD(0.5).apply([(sparse._indices()[0], sparse._values())], [w])
    assert w.tolist() == [[0.5] * 2] * 3


def test_the_sign_of_a_tensor_that_stands_for_its_negative() -> None:
    """Of one element it looks like any other, and is refused; of more it has strides, and is copied."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    one, two = (torch.tensor(x).conj().imag for x in ([1 + 2j], [1 + 2j, 3 + 1j]))
    w = torch.zeros(1)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"stands for the negative of its memory; pass x\.resolve_neg\(\)"
        ):
            SGD(1.0).apply([one], [w])
    opt = SGD(1.0)
    opt.apply([one.resolve_neg()], [w])
    with pytest.raises(ValueError, match="resolve_neg"):
        opt.apply([one], [w])
    assert w.tolist() == [2.0]
    w = torch.zeros(2)
    SGD(1.0).apply([two], [w])
    assert w.tolist() == [2.0, 1.0]


class Rows(Memory):
    """One array that can be iterated over, as tensors can."""

    def __iter__(self) -> Iterator[Any]:
        return (Memory(row) for row in self.array)


def test_one_array_is_no_list_of_its_rows() -> None:
    """Rows would be variables of their own, each with slots and norms of its own."""
    g, w = Rows(np.ones((2, 3), np.float32)), Rows(np.ones((2, 3), np.float32))
    one = r" is one test_dlpack\.Rows, but must be a list of them; pass \[x\]"
    opt = Lamb(0.5)
    for grads, variables, what in [(g, w, "grads"), ([g], w, "variables"), (g, [w], "grads")]:
        with pytest.raises(TypeError, match=f"^Lamb.apply: {what}{one}"):
            opt.apply(grads, variables)
    with pytest.raises(TypeError, match=f"^Lamb.build: variables{one}"):
        opt.build(w)
    opt.apply([g], [w])
    before = w.array.copy()
    with pytest.raises(TypeError, match=f"^Lamb.apply: grads{one}"):
        opt.apply(g)
    assert w.array.tolist() == before.tolist()
