"""Bad calls: each raises its sentence and changes nothing, and the next good step is as if it had not been.

Rows of tables: a name, what is done, and the whole error as Python shows it; {ANY} stands for any text.
"""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from fusedstep import (
    SGD,
    Adagrad,
    Adam,
    CosineDecay,
    Optimizer,
    RMSprop,
    build_info,
    get,
    get_num_threads,
    set_num_threads,
)

Array = npt.NDArray[Any]
bfloat16 = ml_dtypes.bfloat16

ANY = "{ANY}"
NAMES = ["dense/kernel", "dense/bias", "half", "scale"]


class Scene:
    """Four variables in the middle of a training, or before it: kernel, bias, half and scale.

    The bias lies in a longer buffer, so that other arrays can overlap it.
    """

    def __init__(self, steps: int, optimizer: Optimizer | None = None) -> None:
        self.rng = np.random.default_rng(7)
        self.opt = Adam(0.01) if optimizer is None else optimizer
        self.buffer = self.rng.standard_normal(20).astype(np.float32)
        self.bias = self.buffer[4:10]
        self.kernel = self.rng.standard_normal((4, 4)).astype(np.float32)
        half = self.rng.standard_normal(5).astype(np.float16)
        self.scale = np.array(self.rng.standard_normal())
        self.variables: list[Any] = [self.kernel, self.bias, half, self.scale]
        self.calls = 0
        for _ in range(steps):
            self.step()
        self.grads: list[Any] = [np.full_like(v, 0.5) for v in self.variables]

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        return list(zip(self.grads, self.variables, strict=True))

    def with_grad(self, gradient: Any) -> list[Any]:
        return [self.grads[0], gradient, *self.grads[2:]]

    def with_variable(self, variable: Any) -> list[Any]:
        return [self.variables[0], variable, *self.variables[2:]]

    def step(self, skip: int | None = None) -> None:
        """A good step, with a gradient of None at `skip`."""
        grads: list[Any] = [
            np.asarray(self.rng.standard_normal(v.shape)).astype(v.dtype) for v in self.variables
        ]
        if skip is not None:
            grads[skip] = None
        self.calls += 1
        assert self.opt.apply(grads, self.variables) == self.calls

    def snapshot(self, *others: Any) -> list[Any]:
        """All that a refused call must leave alone."""
        arrays = [self.buffer, *self.variables, *self.grads, *self.opt.variables]
        arrays += [a for a in others if isinstance(a, np.ndarray)]
        config = self.opt.get_config()
        return [*((a.dtype, a.shape, a.tobytes()) for a in arrays), self.opt.iterations, config]


def named(arrays: list[Any]) -> dict[str, Any]:
    return {"dense": {"kernel": arrays[0], "bias": arrays[1]}, "half": arrays[2], "scale": arrays[3]}


Row = tuple[str, Callable[[Scene], Any], str]


def name_of(row: tuple[Any, ...]) -> str:
    return str(row[0])


def refused(call: Callable[[], object], sentence: str) -> None:
    """Check that a call ends with this very error."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    error = f"{type(caught.value).__name__}: {caught.value}"
    assert re.fullmatch(re.escape(sentence).replace(re.escape(ANY), ".*"), error), error


def goes_on_as_if_nothing_had_been(scene: Scene, steps: int) -> None:
    """Further good steps, compared with those of a fresh optimizer with the same history."""
    twin = Scene(steps)
    for skip in (None, 1, None):
        scene.step(skip)
        twin.step(skip)
    assert scene.snapshot() == twin.snapshot()


class OnGpu:
    """What CuPy, Numba and PyTorch arrays on a GPU have in common."""

    shape = (6,)
    dtype = np.dtype(np.float32)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (6,), "typestr": "<f4", "data": (0xDEAD0000, False), "version": 3}


def masked(shape: Any) -> Any:
    return np.ma.array(np.ones(shape, np.float32), mask=False)


def misaligned(size: int) -> Array:
    """Float32 at an odd address."""
    return np.zeros(4 * size + 1, np.uint8)[1:].view(np.float32)


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


# Kinds and dtypes that neither a variable nor a gradient may have; all of shape (6,) where they have one.

WANTED = "float32, float64, float16 or bfloat16 (of ml_dtypes); convert it with x.astype(numpy.float32)"
ARRAY = "must be a numpy.ndarray; convert it once with numpy.asarray(x)"
OR_ROWS = ", or pass the tuple (indices, values) where it has some rows alone"
NATIVE = "must be in native byte order; convert it once with x.astype(x.dtype.newbyteorder('='))"
NO_CUDA = f"but {ANY}; pass NumPy arrays, for example cupy.asnumpy(x)"
FILLED = "whose mask would be ignored; pass a plain array, for example x.filled(0)"

# name, how to make it, what the sentence says between "grads[1] " and the end; KIND is variable or
# gradient, and ROWS what else a gradient may be.
BAD_KINDS: list[tuple[str, Callable[[], Any], str]] = [
    *(
        (dtype, lambda dtype=dtype: np.zeros(6, dtype), f"has dtype {dtype}, but a KIND must be {WANTED}")
        for dtype in ("int64", "int32", ">i4", "uint8", "bool", "complex64", "complex128", "object")
    ),
    (
        "longdouble",
        lambda: np.zeros(6, np.longdouble),
        f"has dtype {np.dtype(np.longdouble)}, but a KIND must be {WANTED}",
    ),
    ("text", lambda: np.zeros(6, "U3"), f"has dtype <U3, but a KIND must be {WANTED}"),
    (
        "float8",
        lambda: np.zeros(6, ml_dtypes.float8_e5m2),
        f"has dtype float8_e5m2, but a KIND must be {WANTED}",
    ),
    (
        "structured",
        lambda: np.zeros(6, [("a", "<f4")]),
        f"has dtype [('a', '<f4')], but a KIND must be {WANTED}",
    ),
    *(
        (
            dtype,
            lambda dtype=dtype: np.zeros(6, dtype),
            f"has the byte-swapped dtype {dtype}, but a KIND {NATIVE}",
        )
        for dtype in (">f2", ">f4", ">f8")
    ),
    (
        "masked",
        lambda: masked(6),
        f"is a masked array (numpy.{ANY}MaskedArray), {FILLED}",
    ),
    ("list", lambda: [0.0] * 6, f"is of type list, but a KIND {ARRAY}ROWS"),
    ("set", lambda: {0.0, 1.0}, f"is of type set, but a KIND {ARRAY}"),
    ("text object", lambda: "weights", f"is of type str, but a KIND {ARRAY}"),
    ("float", lambda: 0.5, f"is of type float, but a KIND {ARRAY}"),
    ("NumPy scalar", lambda: np.float32(0.5), f"is of type numpy.float32, but a KIND {ARRAY}"),
    ("memory", lambda: memoryview(bytes(24)), f"is of type memoryview, but a KIND {ARRAY}"),
]


# Gradients of the bias, which has shape (6,).


def shape_row(shape: tuple[int, ...]) -> Row:
    sentence = f"ValueError: Adam.apply: GRAD has shape {shape}, its variable has (6,)"
    return f"shape {shape}", lambda s: np.zeros(shape, np.float32), sentence


def overlap(what: str) -> str:
    return f"ValueError: Adam.apply: GRAD shares memory with {what}, which this step writes; pass g.copy()"


PART = overlap("a part of its own variable")

BAD_GRADIENTS: list[Row] = [
    *(shape_row(shape) for shape in [(5,), (7,), (1,), (0,), (), (6, 1), (1, 6), (2, 3), (1, 1), (6, 6)]),
    (
        "broadcast, too",
        lambda s: np.broadcast_to(np.float32(1), (12,)),
        "ValueError: Adam.apply: GRAD has shape (12,), its variable has (6,)",
    ),
    *(
        (
            name,
            lambda s, make=make: make(),
            "TypeError: Adam.apply: GRAD " + text.replace("KIND", "gradient").replace("ROWS", OR_ROWS),
        )
        for name, make, text in BAD_KINDS
    ),
    (
        "on a GPU",
        lambda s: OnGpu(),
        "ValueError: Adam.apply: VARIABLE is on the CPU but its gradient on cuda:0; pass cupy.asnumpy(g)",
    ),
    ("its variable, shifted up", lambda s: s.buffer[5:11], PART),
    ("its variable, shifted down", lambda s: s.buffer[3:9], PART),
    ("its variable's last element", lambda s: s.buffer[9:15], PART),
    ("its variable in float64", lambda s: s.buffer[4:16].view(np.float64), PART),
    ("its variable in float16", lambda s: s.buffer[4:7].view(np.float16), PART),
    ("another variable", lambda s: s.kernel.ravel()[3:9], overlap("OTHER")),
    ("another variable's end", lambda s: s.kernel.ravel()[10:], overlap("OTHER")),
]

# These need slots, so they come after build only.
SLOTS: list[Row] = [
    ("its own slot", lambda s: s.opt.slots(s.bias)["velocity"], overlap("a slot")),
    (
        "another slot",
        lambda s: s.opt.slots(s.kernel)["momentum"].ravel()[2:8],
        overlap("a slot"),
    ),
]


def with_labels(sentence: str, names: bool) -> str:
    """The sentence where variables are known by position, or by name."""
    labels = {"GRAD": ("grads", 1), "VARIABLE": ("variables", 1), "OTHER": ("variables", 0)}
    for word, (of, index) in labels.items():
        sentence = sentence.replace(word, f"{of}[{repr(NAMES[index]) if names else index}]")
    return sentence


@pytest.mark.parametrize("row", BAD_GRADIENTS + SLOTS, ids=name_of)
@pytest.mark.parametrize("way", ["apply", "built", "pairs", "generators"])
def test_bad_gradient(way: str, row: Row) -> None:
    _, make, sentence = row
    scene = Scene(steps=2)
    bad = make(scene)
    grads = scene.with_grad(bad)
    calls: dict[str, Callable[[], object]] = {
        "apply": lambda: scene.opt.apply(grads, scene.variables),
        "built": lambda: scene.opt.apply(grads),
        "pairs": lambda: scene.opt.apply_gradients(zip(grads, scene.variables, strict=True)),
        "generators": lambda: scene.opt.apply(iter(grads), iter(scene.variables)),
    }
    before = scene.snapshot(bad)
    refused(calls[way], with_labels(sentence, names=False))
    assert scene.snapshot(bad) == before
    goes_on_as_if_nothing_had_been(scene, steps=2)


@pytest.mark.parametrize("row", BAD_GRADIENTS, ids=name_of)
def test_bad_gradient_in_the_first_step(row: Row) -> None:
    """The first step builds; a refused one leaves the optimizer as it was, unbuilt."""
    _, make, sentence = row
    scene = Scene(steps=0)
    bad = make(scene)
    before = scene.snapshot(bad)
    refused(
        lambda: scene.opt.apply(scene.with_grad(bad), scene.variables),
        with_labels(sentence, names=False),
    )
    assert scene.snapshot(bad) == before
    assert scene.opt.variables == []
    goes_on_as_if_nothing_had_been(scene, steps=0)


@pytest.mark.parametrize("row", [row for row in BAD_GRADIENTS if row[0] not in ("list", "set")], ids=name_of)
def test_bad_gradient_by_name(row: Row) -> None:
    _, make, sentence = row
    scene = Scene(steps=0)
    bad = make(scene)
    scene.opt.build(named(scene.variables))
    before = scene.snapshot(bad)
    grads = named(scene.with_grad(bad))
    refused(lambda: scene.opt.apply(grads, named(scene.variables)), with_labels(sentence, names=True))
    refused(lambda: scene.opt.apply(grads), with_labels(sentence, names=True))
    assert scene.snapshot(bad) == before
    goes_on_as_if_nothing_had_been(scene, steps=0)


def test_gradients_of_a_0d_variable() -> None:
    """It takes a NumPy scalar of the four dtypes, and nothing else that is no array."""
    scene = Scene(steps=2)
    before = scene.snapshot()
    for bad, name in [(0.5, "float"), (1, "int"), (np.int64(1), "numpy.int64"), (1j, "complex")]:
        refused(
            lambda bad=bad: scene.opt.apply([*scene.grads[:3], bad], scene.variables),  # type: ignore[misc]
            f"TypeError: Adam.apply: grads[3] is of type {name}, but a gradient {ARRAY}",
        )
    refused(
        lambda: scene.opt.apply([*scene.grads[:3], np.ma.masked], scene.variables),
        f"TypeError: Adam.apply: grads[3] is a masked array (numpy.ma.core.MaskedConstant), {FILLED}",
    )
    assert scene.snapshot() == before
    goes_on_as_if_nothing_had_been(scene, steps=2)


# Variables in place of the bias: refused by build, and by the first step, which builds.

ONCE = "it is updated in place, so pass numpy.ascontiguousarray(w) once, before training"


def strided(shape: str, strides: str) -> str:
    return f"ValueError: Adam.build: VARIABLE is not contiguous (shape {shape}, strides {strides}); {ONCE}"


READ_ONLY = (
    "ValueError: Adam.build: VARIABLE is read-only, but it is updated in place;"
    " pass numpy.array(w) once, before training"
)
SHARED = "ValueError: Adam.build: OTHER and VARIABLE share memory; every variable must have its own"

BAD_VARIABLES: list[Row] = [
    *(
        (
            name,
            lambda s, make=make: make(),
            "TypeError: Adam.build: VARIABLE " + text.replace("KIND", "variable").replace("ROWS", ""),
        )
        for name, make, text in BAD_KINDS
    ),
    (
        "None",
        lambda s: None,
        f"TypeError: Adam.build: VARIABLE is of type NoneType, but a variable {ARRAY}",
    ),
    (
        "on a GPU",
        lambda s: OnGpu(),
        f"RuntimeError: Adam.build: VARIABLE is a GPU array ({ANY}OnGpu), {NO_CUDA}",
    ),
    (
        "transposed",
        lambda s: np.zeros((100, 50), np.float64).T,
        strided("(50, 100)", "(8, 400)"),
    ),
    ("sliced", lambda s: np.zeros(12, np.float32)[::2], strided("(6,)", "(8,)")),
    ("reversed", lambda s: np.zeros(6, np.float32)[::-1], strided("(6,)", "(-4,)")),
    (
        "a column",
        lambda s: np.zeros((6, 3), np.float32)[:, :1],
        strided("(6, 1)", "(12, 4)"),
    ),
    (
        "broadcast",
        lambda s: np.broadcast_to(np.zeros(3, np.float32), (2, 3)),
        strided("(2, 3)", "(0, 4)"),
    ),
    (
        "misaligned",
        lambda s: misaligned(6),
        "ValueError: Adam.build: VARIABLE is not aligned to its dtype (address {ANY});"
        " it is updated in place, so pass numpy.array(w) once, before training",
    ),
    ("read-only", lambda s: read_only(np.zeros(6, np.float32)), READ_ONLY),
    ("bytes", lambda s: np.frombuffer(bytes(24), np.float32), READ_ONLY),
    ("the same twice", lambda s: s.kernel, SHARED),
    ("a view of another", lambda s: s.kernel.reshape(2, 8), SHARED),
    ("a part of another", lambda s: s.kernel[1:3], SHARED),
    ("another's last byte", lambda s: s.kernel.view(np.float16).reshape(-1)[-1:], SHARED),
]


@pytest.mark.parametrize("row", BAD_VARIABLES, ids=name_of)
@pytest.mark.parametrize("way", ["build", "first step", "pairs", "second build"])
def test_bad_variable(way: str, row: Row) -> None:
    _, make, sentence = row
    scene = Scene(steps=0)
    bad = make(scene)
    variables = scene.with_variable(bad)
    grads = [np.zeros_like(v, dtype=np.float32) if isinstance(v, np.ndarray) else None for v in variables]
    other = np.ones(3)
    if way == "second build":
        scene.opt.build([other])
    calls: dict[str, Callable[[], object]] = {
        "build": lambda: scene.opt.build(variables),
        "first step": lambda: scene.opt.apply(grads, variables),
        "pairs": lambda: scene.opt.apply_gradients(zip(grads, variables, strict=True)),
        "second build": lambda: scene.opt.build(iter(variables)),
    }
    before = scene.snapshot(bad)
    refused(calls[way], with_labels(sentence, names=False))
    assert scene.snapshot(bad) == before
    if way == "second build":
        assert scene.opt.apply([other]) == 1
        scene.opt.forget([other])
    goes_on_as_if_nothing_had_been(scene, steps=0)


@pytest.mark.parametrize("row", [row for row in BAD_VARIABLES if row[0] not in ("list", "set")], ids=name_of)
def test_bad_variable_by_name(row: Row) -> None:
    _, make, sentence = row
    scene = Scene(steps=0)
    bad = make(scene)
    before = scene.snapshot(bad)
    refused(lambda: scene.opt.build(named(scene.with_variable(bad))), with_labels(sentence, names=True))
    assert scene.snapshot(bad) == before
    goes_on_as_if_nothing_had_been(scene, steps=0)


def test_variables_that_share_memory_are_told_in_their_order() -> None:
    memory = np.zeros(10)
    refused(
        lambda: Adam().build([memory[5:], np.zeros(2), memory[:6]]),
        SHARED.replace("OTHER", "variables[0]").replace("VARIABLE", "variables[2]"),
    )


def test_names_are_those_of_the_variables_in_whatever_order_they_come() -> None:
    scene = Scene(steps=0)
    scene.opt.build(named(scene.variables))
    grads = scene.with_grad(np.zeros(5, np.float32))
    refused(
        lambda: scene.opt.apply(grads[::-1], scene.variables[::-1]),
        "ValueError: Adam.apply: grads['dense/bias'] has shape (5,), its variable has (6,)",
    )


def test_an_empty_variable_comes_once() -> None:
    opt, empty = SGD(), np.zeros((0, 3))
    refused(
        lambda: opt.build([empty, np.zeros(2), empty]),
        "ValueError: SGD.build: variables[0] and variables[2] are the same array;"
        " every variable must come once",
    )
    opt.build([empty, np.zeros((0, 3))])
    refused(
        lambda: opt.build([np.zeros(2), empty]),
        "ValueError: SGD.build: variables[1] is a variable of an earlier build;"
        " forget(variables) drops that build",
    )


def test_an_empty_variable_at_the_beginning_of_another() -> None:
    opt, w = SGD(1.0), np.zeros(3)
    empty = w[:0]
    opt.build([empty, w])
    opt.apply([np.ones(0), np.ones(3)], [empty, w[:]])
    opt.apply([np.ndarray(0, w.dtype, w, offset=8), np.ones(3)], [empty, w])
    assert w.tolist() == [-2.0] * 3


def test_memory_of_an_earlier_build() -> None:
    scene = Scene(steps=2)
    before = scene.snapshot()
    slot = scene.opt.slots(scene.bias)["momentum"]
    shared = (
        "ValueError: Adam.build: variables[1] shares memory with a variable of an earlier build;"
        " forget(variables) drops that build"
    )
    for bad in (scene.bias, scene.buffer, scene.kernel[1:], scene.scale):
        refused(lambda bad=bad: scene.opt.build([np.zeros(2), bad]), shared)  # type: ignore[misc]
    refused(
        lambda: scene.opt.build([slot]),
        "ValueError: Adam.build: variables[0] is a slot of an earlier build;"
        " variables must be arrays of your own",
    )
    assert scene.snapshot() == before
    goes_on_as_if_nothing_had_been(scene, steps=2)


# Calls after build.

A_PAIR = "a (gradient, variable) pair"
ZIP = "pass zip(grads, variables)"
NAMES_DIFFER = "ValueError: Adam.apply: grads must have the names of the variables;"
NONE = " (None stands for no gradient)"
NEW = (
    "was never built; `w = w - x` makes a new array, `w -= x` and `w[...] = x` keep the old one;"
    " build(variables) adds new ones"
)
ONE_EACH = "pass one gradient for each variable, None where there is none"
TWICE = "ValueError: Adam.apply: variables[1] comes twice"

BAD_CALLS: list[Row] = [
    (
        "fewer gradients",
        lambda s: s.opt.apply(s.grads[:2], s.variables),
        f"ValueError: Adam.apply: grads has length 2, variables 4; {ONE_EACH}",
    ),
    (
        "more gradients",
        lambda s: s.opt.apply(s.grads, s.variables[:3]),
        f"ValueError: Adam.apply: grads has length 4, variables 3; {ONE_EACH}",
    ),
    (
        "fewer gradients than were built",
        lambda s: s.opt.apply(s.grads[:1]),
        f"ValueError: Adam.apply: grads has length 1, variables 4; {ONE_EACH}",
    ),
    (
        "no gradients",
        lambda s: s.opt.apply([]),
        f"ValueError: Adam.apply: grads has length 0, variables 4; {ONE_EACH}",
    ),
    (
        "all gradients None",
        lambda s: s.opt.apply([None] * 4, s.variables),
        "ValueError: Adam.apply: all 4 gradients are None; at least one variable must have one",
    ),
    (
        "the only gradient None",
        lambda s: s.opt.apply_gradients([(None, s.bias)]),
        "ValueError: Adam.apply: all 1 gradients are None; at least one variable must have one",
    ),
    (
        "w = w - x",
        lambda s: s.opt.apply(s.grads, s.with_variable(s.bias - 0.1)),
        f"ValueError: Adam.apply: variables[1] (shape (6,), dtype float32) {NEW}",
    ),
    (
        "one more variable",
        lambda s: s.opt.apply([*s.grads, np.zeros(2)], [*s.variables, np.zeros(2)]),
        f"ValueError: Adam.apply: variables[4] (shape (2,), dtype float64) {NEW}",
    ),
    (
        "a part of a variable",
        lambda s: s.opt.apply([np.zeros((1, 4))], [s.kernel[:1]]),
        f"ValueError: Adam.apply: variables[0] (shape (1, 4), dtype float32) {NEW}",
    ),
    (
        "a variable in another dtype",
        lambda s: s.opt.apply([np.zeros(5)], [s.variables[2].view(bfloat16)]),
        f"ValueError: Adam.apply: variables[0] (shape (5,), dtype bfloat16) {NEW}",
    ),
    (
        "a variable in another shape",
        lambda s: s.opt.apply([np.zeros((2, 3))], [s.bias.reshape(2, 3)]),
        "ValueError: Adam.apply: variables[0] has shape (2, 3), but the same memory was built with (6,)",
    ),
    (
        "a variable flattened",
        lambda s: s.opt.apply([np.zeros(16)], [s.kernel.ravel()]),
        "ValueError: Adam.apply: variables[0] has shape (16,), but the same memory was built with (4, 4)",
    ),
    (
        "a square variable transposed",
        lambda s: s.opt.apply([s.grads[0]], [s.kernel.T]),
        "ValueError: Adam.apply: variables[0] {ANY}contiguous{ANY}",
    ),
    (
        "a read-only view of a variable",
        lambda s: s.opt.apply([s.grads[1]], [read_only(s.bias.view())]),
        "ValueError: Adam.apply: variables[0] {ANY}read-only{ANY}",
    ),
    (
        "a masked view of a variable",
        lambda s: s.opt.apply([s.grads[1]], [np.ma.array(s.bias, mask=True, copy=False)]),
        f"TypeError: Adam.apply: variables[0] is a masked array (numpy.{ANY}MaskedArray), {FILLED}",
    ),
    ("the same twice", lambda s: s.opt.apply([s.grads[0]] * 2, [s.kernel] * 2), TWICE),
    ("twice, not in order", lambda s: s.opt.apply([s.grads[1]] * 2, [s.bias] * 2), TWICE),
    (
        "twice by a view",
        lambda s: s.opt.apply([s.grads[1]] * 2, [s.bias, s.bias[:]]),
        TWICE,
    ),
    (
        "twice after all",
        lambda s: s.opt.apply([*s.grads, s.grads[2]], [*s.variables, s.variables[2]]),
        "ValueError: Adam.apply: variables[4] comes twice",
    ),
    (
        "a variable on a GPU",
        lambda s: s.opt.apply(s.grads, s.with_variable(OnGpu())),
        f"RuntimeError: Adam.apply: variables[1] is a GPU array ({ANY}OnGpu), {NO_CUDA}",
    ),
    (
        "a variable of integers",
        lambda s: s.opt.apply(s.grads, s.with_variable(np.zeros(6, int))),
        f"TypeError: Adam.apply: variables[1] has dtype int64, but a variable must be {WANTED}",
    ),
    (
        "None as variable",
        lambda s: s.opt.apply(s.grads, s.with_variable(None)),
        f"TypeError: Adam.apply: variables[1] is of type NoneType, but a variable {ARRAY}",
    ),
    (
        "one array as gradients",
        lambda s: s.opt.apply(s.kernel.copy(), [s.kernel]),
        "TypeError: Adam.apply: grads is one numpy.ndarray, but must be a list of them; pass [x]",
    ),
    (
        "one array as variables",
        lambda s: s.opt.apply([s.grads[0]], s.kernel),
        "TypeError: Adam.apply: variables is one numpy.ndarray, but must be a list of them; pass [x]",
    ),
    (
        "pairs",
        lambda s: s.opt.apply(zip(s.grads, s.variables, strict=True)),
        "TypeError: Adam.apply: grads[0] has indices of dtype float32 and shape {ANY}, but they must be"
        " integers in one dimension; (gradient, variable) pairs are for apply_gradients",
    ),
    (
        "None as gradients",
        lambda s: s.opt.apply(None, s.variables),
        "TypeError: Adam.apply: grads is of type NoneType, but must be a list of arrays",
    ),
    (
        "a number as variables",
        lambda s: s.opt.apply(s.grads, 5),
        "TypeError: Adam.apply: variables is of type int, but must be a list of arrays",
    ),
    (
        "nested lists",
        lambda s: s.opt.apply([s.grads], [s.variables]),
        f"TypeError: Adam.apply: variables[0] is of type list, but a variable {ARRAY}",
    ),
    (
        "a pair of three",
        lambda s: s.opt.apply_gradients([*s.pairs[:2], (*s.pairs[2], "half")]),  # type: ignore[list-item]
        f"ValueError: {ANY}apply_gradients: item 2 has 3 entries, but must be {A_PAIR}; {ZIP}",
    ),
    (
        "a pair of one",
        lambda s: s.opt.apply_gradients([(s.grads[0],)]),  # type: ignore[list-item]
        f"ValueError: {ANY}apply_gradients: item 0 has 1 entries, but must be {A_PAIR}; {ZIP}",
    ),
    (
        "no pairs but arrays",
        lambda s: s.opt.apply_gradients([*s.pairs[:1], s.grads[1]]),
        f"TypeError: {ANY}apply_gradients: item 1 is not {A_PAIR} but of type ndarray; {ZIP}",
    ),
    (
        "a dict of pairs",
        lambda s: s.opt.apply_gradients({"kernel": s.pairs[0]}),  # type: ignore[dict-item]
        f"TypeError: {ANY}apply_gradients: item 0 is not {A_PAIR} but of type str; {ZIP}",
    ),
    (
        "no iterable of pairs",
        lambda s: s.opt.apply_gradients(None),  # type: ignore[arg-type]
        f"TypeError: {ANY}apply_gradients: {ANY}NoneType{ANY}; {ZIP}",
    ),
    (
        "variable and gradient exchanged",
        lambda s: s.opt.apply_gradients([(v, g) for g, v in s.pairs]),
        f"ValueError: Adam.apply: variables[0] (shape (4, 4), dtype float32) {NEW}",
    ),
    (
        "a dict of gradients and a list",
        lambda s: s.opt.apply(named(s.grads), s.variables),
        "TypeError: Adam.apply: grads is a dict and variables a list; both must be dicts or both lists",
    ),
    (
        "a list of gradients and a dict",
        lambda s: s.opt.apply(s.grads, named(s.variables)),
        "TypeError: Adam.apply: grads is a list and variables a dict; both must be dicts or both lists",
    ),
    (
        "a dict with another key",
        lambda s: s.opt.apply({"a": s.grads[0], "c": s.grads[1]}, {"a": s.kernel, "b": s.bias}),
        f"{NAMES_DIFFER} missing are ['b'], unknown are ['c']{NONE}",
    ),
    (
        "a dict without a key",
        lambda s: s.opt.apply({"a": s.grads[0]}, {"a": s.kernel, "b": s.bias}),
        f"{NAMES_DIFFER} missing are ['b'], unknown are []{NONE}",
    ),
    (
        "a dict nested otherwise",
        lambda s: s.opt.apply({"a": {"b": s.grads[0]}}, {"a": s.kernel}),
        f"{NAMES_DIFFER} missing are ['a'], unknown are ['a/b']{NONE}",
    ),
    (
        "two of the same name",
        lambda s: s.opt.apply({"a/b": s.grads[0], "a": {"b": s.grads[1]}}, {"a/b": s.kernel}),
        "ValueError: Adam.apply: two arrays are named 'a/b'; rename one",
    ),
    (
        "one array to build",
        lambda s: s.opt.build(np.zeros(3)),
        "TypeError: Adam.build: variables is one numpy.ndarray, but must be a list of them; pass [x]",
    ),
    (
        "a number to build",
        lambda s: s.opt.build(5),  # type: ignore[arg-type]
        "TypeError: Adam.build: variables is of type int, but must be a list of arrays",
    ),
    (
        "two of the same name to build",
        lambda s: s.opt.build({"a/b": np.zeros(3), "a": {"b": np.zeros(3)}}),
        "ValueError: Adam.build: two arrays are named 'a/b'; rename one",
    ),
    (
        "forget what was not built",
        lambda s: s.opt.forget([np.zeros(3)]),
        "ValueError: Adam.forget: these 1 variables are not those of one build",
    ),
    (
        "forget too many",
        lambda s: s.opt.forget([*s.variables, np.zeros(3)]),
        "ValueError: Adam.forget: these 5 variables are not those of one build",
    ),
    (
        "forget nothing",
        lambda s: s.opt.forget([]),
        "ValueError: Adam.forget: these 0 variables are not those of one build",
    ),
    (
        "slots of what was not built",
        lambda s: s.opt.slots(s.bias.copy()),
        "KeyError: {ANY}Adam.slots: this array was never built; build(variables) first{ANY}",
    ),
    (
        "the slots of a name",
        lambda s: s.opt.slots("dense/bias"),
        "TypeError: Adam.slots: must be an array that was built, got 'dense/bias'",
    ),
]


@pytest.mark.parametrize("row", BAD_CALLS, ids=name_of)
def test_bad_call(row: Row) -> None:
    _, call, sentence = row
    scene = Scene(steps=2)
    before = scene.snapshot()
    refused(lambda: call(scene), sentence)
    assert scene.snapshot() == before
    goes_on_as_if_nothing_had_been(scene, steps=2)


# The same before anything was built.

ALSO_AT_FIRST = (
    "fewer gradients",
    "all gradients None",
    "one array as gradients",
    "None as gradients",
    "a pair of three",
    "a pair of one",
    "no pairs but arrays",
    "a dict of pairs",
    "a dict of gradients and a list",
    "a list of gradients and a dict",
    "a dict with another key",
    "a dict without a key",
    "a dict nested otherwise",
)
BAD_FIRST_CALLS: list[Row] = [
    (
        "no variables",
        lambda s: s.opt.apply(s.grads),
        "ValueError: Adam.apply: no variables were built; pass them, or build(variables) first",
    ),
    (
        "no variables in dicts",
        lambda s: s.opt.apply(named(s.grads)),
        "ValueError: Adam.apply: no variables were built; pass them, or build(variables) first",
    ),
    (
        "gradients for no variables",
        lambda s: s.opt.apply(s.grads, []),
        f"ValueError: Adam.apply: grads has length 4, variables 0; {ONE_EACH}",
    ),
    (
        "one array as variables",
        lambda s: s.opt.apply([s.grads[0]], s.kernel),
        "TypeError: Adam.{ANY}: variables is one numpy.ndarray, but must be a list of them; pass [{ANY}]",
    ),
    (
        "a number as variables",
        lambda s: s.opt.apply(s.grads, 5),
        "TypeError: Adam.{ANY}: variables is of type int, but must be a list of arrays",
    ),
    *(row for row in BAD_CALLS if row[0] in ALSO_AT_FIRST),
]


@pytest.mark.parametrize("row", BAD_FIRST_CALLS, ids=name_of)
def test_bad_first_call(row: Row) -> None:
    _, call, sentence = row
    scene = Scene(steps=0)
    before = scene.snapshot()
    refused(lambda: call(scene), sentence)
    assert scene.snapshot() == before
    assert scene.opt.variables == []
    goes_on_as_if_nothing_had_been(scene, steps=0)


def test_base_class_does_not_step() -> None:
    opt, w = Optimizer(), np.ones(3)
    for call in (lambda: opt.build([w]), lambda: opt.apply([w.copy()], [w])):
        refused(
            call,
            "NotImplementedError: Optimizer has no rule: the base class does not step;"
            " use fusedstep.Adam or another, or derive from fusedstep.CustomOptimizer",
        )
    assert (w == 1).all()
    assert opt.iterations == 0


# Several builds.

TwoModels = tuple[str, Callable[[SGD, Array, Array], object], str]
TWO_MODELS: list[TwoModels] = [
    (
        "a gradient of another shape, for the model that did not step last",
        lambda opt, a, b: opt.apply([np.ones(4)], [a]),
        "ValueError: SGD.apply: grads[0] has shape (4,), its variable has (3,)",
    ),
    (
        "variables of both models",
        lambda opt, a, b: opt.apply([np.ones(3), np.ones(4)], [a, b]),
        "ValueError: SGD.apply: variables[1] belongs to another build than variables[0]; each build takes its"
        " steps in calls of its own",
    ),
    (
        "a variable that was never built, beside one of a model",
        lambda opt, a, b: opt.apply([np.ones(3), np.ones(4)], [a, np.ones(4)]),
        "ValueError: SGD.apply: variables[1] (shape (4,), dtype float64) was never built; {ANY}",
    ),
    (
        "gradients alone, as replicas, of another shape",
        lambda opt, a, b: opt.apply(replicas=[[np.ones(3)]]),
        "ValueError: SGD.apply: grads[0] has shape (3,), its variable has (4,)",
    ),
    (
        "gradients for no variables",
        lambda opt, a, b: opt.apply([np.ones(4)], []),
        f"ValueError: SGD.apply: grads has length 1, variables 0; {ONE_EACH}",
    ),
    (
        "a mean of no replicas",
        lambda opt, a, b: opt.apply([np.ones(4)], [b], mean=True),
        "ValueError: SGD.apply: mean=True is for replicas, and there are none; pass replicas=[grads]",
    ),
    (
        "one array as variables",
        lambda opt, a, b: opt.apply([np.ones(4)], b),
        "TypeError: SGD.apply: variables is one numpy.ndarray, but must be a list of them; pass [x]",
    ),
    (
        "a number as variables",
        lambda opt, a, b: opt.apply([np.ones(4)], 5),
        "TypeError: SGD.apply: variables is of type int, but must be a list of arrays",
    ),
]


@pytest.mark.parametrize("row", TWO_MODELS, ids=name_of)
def test_bad_call_with_two_models(row: TwoModels) -> None:
    opt, a, b = SGD(0.5), np.ones(3), np.ones(4)
    opt.build([a])
    opt.build([b])
    opt.apply([np.ones(4)], [b])
    refused(lambda: row[1](opt, a, b), row[2])
    assert opt.apply([], []) == 1, "an empty list is no call"
    assert (a == 1).all()
    assert (b == 0.5).all()
    assert opt.iterations == 1, "the model that stepped last is still the one that is asked about"
    assert opt.apply([np.ones(4)]) == 2
    assert opt.apply([np.ones(3)], [a]) == 1
    assert (a == 0.5).all()
    assert (b == 0).all()


def test_a_variable_of_another_build_is_not_called_new() -> None:
    opt, a, b = SGD(0.5), np.ones(3), np.ones(4)
    opt.build([a])
    opt.build([b])
    with pytest.raises(ValueError, match=r"variables\[1\]") as caught:
        opt.apply([np.ones(3), np.ones(4)], [a, b])
    assert "never built" not in str(caught.value)


# Variables that changed in place since build: name, the change, what undoes it, what the sentence says.

Change = tuple[str, Callable[[Array], None], Callable[[Array], None], str]
BUILT_OTHERWISE = (
    "has other memory, dtype or layout than when it was built; forget(variables) and build again"
)
FROZEN = "is read-only now, but it is updated in place; w.flags.writeable = True allows that"


def put(array: Array, attribute: str, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        setattr(array, attribute, value)


CHANGES: list[Change] = [
    (
        "shape",
        lambda w: put(w, "shape", (2, 8)),
        lambda w: put(w, "shape", (4, 4)),
        "has shape (2, 8), but {ANY}(4, 4){ANY}",
    ),
    ("read-only", lambda w: w.setflags(write=False), lambda w: w.setflags(write=True), FROZEN),
    ("dtype", lambda w: put(w, "dtype", np.int32), lambda w: put(w, "dtype", np.float32), BUILT_OTHERWISE),
    ("byte order", lambda w: put(w, "dtype", ">f4"), lambda w: put(w, "dtype", "<f4"), BUILT_OTHERWISE),
    ("strides", lambda w: put(w, "strides", (4, 16)), lambda w: put(w, "strides", (16, 4)), BUILT_OTHERWISE),
]


@pytest.mark.parametrize("way", ["named", "all that were built", "another order"])
@pytest.mark.parametrize("row", CHANGES, ids=name_of)
def test_variable_changed_since_build(row: Change, way: str) -> None:
    _, change, undo, text = row
    scene = Scene(steps=2)
    calls: dict[str, Callable[[], object]] = {
        "named": lambda: scene.opt.apply(scene.grads, scene.variables),
        "all that were built": lambda: scene.opt.apply(scene.grads),
        "another order": lambda: scene.opt.apply(scene.grads[::-1], scene.variables[::-1]),
    }
    before = scene.snapshot()
    change(scene.kernel)
    position = 3 if way == "another order" else 0
    refused(calls[way], f"ValueError: Adam.apply: variables[{position}] {text}")
    undo(scene.kernel)
    assert scene.snapshot() == before
    goes_on_as_if_nothing_had_been(scene, steps=2)


def test_gradient_of_another_dtype_at_the_same_address() -> None:
    w, memory, opt = np.zeros(2), np.ones(2), SGD(1.0)
    opt.apply([memory], [w])
    halves = memory.view(np.float16)[:2]
    halves[:] = 2
    opt.apply([halves], [w])
    assert w.tolist() == [-3.0, -3.0]


def test_variable_of_another_dtype_of_the_same_size_since_build() -> None:
    w = np.ones(4, np.float16)
    opt = SGD(0.5)
    opt.apply([np.ones(4)], [w])
    before = w.tobytes()
    put(w, "dtype", np.dtype(ml_dtypes.bfloat16))
    refused(lambda: opt.apply([np.ones(4)], [w]), f"ValueError: SGD.apply: variables[0] {BUILT_OTHERWISE}")
    assert w.tobytes() == before


def test_a_gradient_that_meets_a_variable_after_one_that_did_not() -> None:
    """With its last elements alone, or its first."""
    memory = np.zeros(30)
    w, opt = memory[10:20], SGD(0.5)
    for begin in (1, 9, 19):
        opt.apply([np.zeros(10)], [w])
        with pytest.raises(ValueError, match=r"grads\[0\] shares memory with a part of its own variable"):
            opt.apply([memory[begin : begin + 10]], [w])
    for begin in (0, 20):
        opt.apply([memory[begin : begin + 10]], [w])


class Renamed(np.ndarray):
    """An array that can be given a mask, which makes it unreadable."""


def test_variable_that_cannot_be_read_any_more() -> None:
    w, b = np.ones(3).view(Renamed), np.ones(4)
    opt, grads = SGD(0.5), [np.ones(3), np.ones(4)]
    opt.apply(grads, [w, b])
    w.mask = True  # type: ignore[attr-defined]
    for order, position in ((1, 0), (-1, 1)):
        with pytest.raises(ValueError, match=re.escape(f"variables[{position}] {BUILT_OTHERWISE}")):
            opt.apply(grads[::order], [w, b][::order])
    assert (w.tolist(), b.tolist()) == ([0.5] * 3, [0.5] * 4)


def test_a_gradient_that_is_another_variable() -> None:
    opt, w, v = SGD(0.5), np.ones(3), np.ones(3)
    opt.build([w, v])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"grads\[0\] shares memory with variables\[1\], which this step"
        ):
            opt.apply([v, np.ones(3)], [w, v])
        opt.apply([np.zeros(3), np.zeros(3)], [w, v])
    assert (w.tolist(), v.tolist()) == ([1.0] * 3, [1.0] * 3)


def test_a_gradient_that_meets_a_variable_with_the_bytes_of_its_dtype() -> None:
    memory = np.zeros(4)
    opt, w, v = SGD(0.5), np.zeros(4, np.float32), memory[2:].view(np.float32)
    opt.build([w, v])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"grads\[0\] shares memory with variables\[1\], which this step"
        ):
            opt.apply([memory, np.ones(4)], [w, v])
        opt.apply([np.zeros(4), np.zeros(4)], [w, v])


def test_variable_resized_since_build() -> None:
    opt, a, b = Adam(), np.ones(1000), np.ones(5)
    opt.apply([np.ones(1000), np.ones(5)], [a, b])
    before = b.copy()
    a.resize(200_000, refcheck=False)
    refused(
        lambda: opt.apply([np.ones(200_000), np.ones(5)], [a, b]),
        "ValueError: Adam.apply: variables[0] has shape (200000,), but had (1000,) when it was built;"
        " forget(variables) and build again",
    )
    assert b.tobytes() == before.tobytes()
    assert opt.iterations == 1
    opt.forget([a, b])
    assert opt.apply([np.ones(200_000), np.ones(5)], [a, b]) == 1


@pytest.mark.parametrize("options", [{"use_ema": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_variable_resized_since_build_that_does_not_come(options: dict[str, Any]) -> None:
    """It is visited nevertheless."""
    opt, a, b = SGD(1.0, **options), np.zeros(5), np.zeros(1000)
    opt.build([a, b])
    b.resize(200_000, refcheck=False)
    for _ in range(2):
        refused(
            lambda: opt.apply([np.ones(5)], [a]),
            "ValueError: SGD.apply: variables[1] has shape (200000,), but had (1000,) when it was built;"
            " forget(variables) and build again",
        )
    assert opt.iterations == 0


# Numbers that leave their interval when they are rounded to the compute type.

ROUNDED: list[tuple[type[Optimizer], str, float, str, str]] = [
    (Adam, "epsilon", 1e-50, "(0, inf)", "0.0"),
    (Adam, "epsilon", 1e300, "(0, inf)", "inf"),
    (Adam, "beta_1", 1 - 1e-9, "[0, 1)", "1.0"),
    (Adam, "beta_2", 1 - 1e-9, "[0, 1)", "1.0"),
    (RMSprop, "rho", 1 - 1e-9, "[0, 1)", "1.0"),
    (RMSprop, "epsilon", 1e-60, "(0, inf)", "0.0"),
    (Adagrad, "epsilon", 1e-60, "(0, inf)", "0.0"),
    (Adagrad, "initial_accumulator_value", 1e200, "[0, inf)", "inf"),
    (SGD, "weight_decay", 1e39, "[0, inf)", "inf"),
    (SGD, "l2", 1e39, "[0, inf)", "inf"),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
@pytest.mark.parametrize(("cls", "name", "value", "interval", "rounded"), ROUNDED)
def test_number_that_rounding_spoils(
    cls: type[Optimizer], name: str, value: float, interval: str, rounded: str, dtype: Any
) -> None:
    sentence = (
        f"ValueError: {cls.__name__}: {name} must lie in {interval}, but {value!r} rounds to {rounded}"
        " in float32, the compute type"
    )
    opt, double, w = cls.from_config({name: value}), np.ones(3), np.ones(3, dtype)
    refused(lambda: opt.build([double, w]), sentence)
    refused(lambda: opt.apply([double, double], [double, w]), sentence)
    assert opt.variables == []
    assert opt.apply([np.zeros(3)], [double]) == 1, "in float64 it is good"
    assert (w == 1).all()

    opt = cls()
    opt.apply([w.copy()], [w])
    before = [a.tobytes() for a in (w, *opt.variables)], opt.get_config()
    refused(lambda: setattr(opt, name, value), sentence)
    assert before == ([a.tobytes() for a in (w, *opt.variables)], opt.get_config())


# Learning rates: what a step refuses, and what is refused at once.

INFINITE = "ValueError: Adam: learning_rate must be finite in float32, got "
RETURNED = "TypeError: Adam: what the callable learning_rate returned must be a real number, got "
STEP_RATES: list[tuple[str, Any, str]] = [
    ("a callable's nan", lambda step: float("nan"), f"{INFINITE}nan"),
    ("a callable's inf", lambda step: np.inf, f"{INFINITE}inf"),
    ("a callable's -inf", lambda: -np.inf, f"{INFINITE}-inf"),
    ("a callable's 1e39", lambda: 1e39, f"{INFINITE}1e+39"),
    ("finite in float64 only", 1e39, f"{INFINITE}1e+39"),
    ("a callable's None", lambda: None, f"{RETURNED}None of type NoneType"),
    ("a callable's text", lambda: "0.1", f"{RETURNED}'0.1' of type str"),
    ("a callable's error", lambda: os.environ["NO RATE"], "KeyError: 'NO RATE'"),
]


@pytest.mark.parametrize("row", STEP_RATES, ids=name_of)
@pytest.mark.parametrize("steps", [0, 2])
def test_learning_rate_that_a_step_refuses(steps: int, row: tuple[str, Any, str]) -> None:
    scene = Scene(steps)
    scene.opt.learning_rate = row[1]
    before = [a.tobytes() for a in [scene.buffer, *scene.variables, *scene.opt.variables]]
    refused(lambda: scene.opt.apply(scene.grads, scene.variables), row[2])
    assert [a.tobytes() for a in [scene.buffer, *scene.variables, *scene.opt.variables]] == before
    assert scene.opt.iterations == steps
    scene.opt.learning_rate = 0.01
    goes_on_as_if_nothing_had_been(scene, steps)


def test_learning_rate_may_be_large_in_float64() -> None:
    w = np.array([1.0])
    SGD(1e39).apply([np.array([1e-39])], [w])
    assert abs(w[0]) < 1e-9


REAL = "TypeError: Adam: learning_rate must be a real number, got "
RATES: list[tuple[str, Any, str]] = [
    ("nan", np.nan, "ValueError: Adam: learning_rate must be finite, got nan"),
    ("-inf", -np.inf, "ValueError: Adam: learning_rate must be finite, got -inf"),
    ("float32's inf", np.float32("inf"), "ValueError: Adam: learning_rate must be finite, got inf"),
    ("an array's nan", np.array(np.nan), "ValueError: Adam: learning_rate must be finite, got nan"),
    ("a huge integer", 10**400, "ValueError: Adam: learning_rate must be finite, got {ANY}"),
    ("None", None, f"{REAL}None of type NoneType"),
    (
        "a class",
        CosineDecay,
        "TypeError: Adam: learning_rate must be a number, a schedule or a callable, got the class"
        " CosineDecay; make an instance of it",
    ),
    ("text", "0.1", f"{REAL}'0.1' of type str"),
    ("complex", 1j, f"{REAL}1j of type complex"),
    ("bool", True, f"{REAL}True of type bool"),
    ("list", [0.1], f"{REAL}[0.1] of type list"),
    ("array", np.array([0.1]), f"{REAL}array([0.1]) of type ndarray"),
    ("an array's bool", np.array(True), f"{REAL}array(True) of type ndarray"),
]


@pytest.mark.parametrize("row", RATES, ids=name_of)
def test_learning_rate_that_is_none(row: tuple[str, Any, str]) -> None:
    refused(lambda: Adam(row[1]), row[2])
    scene = Scene(steps=2)
    before = scene.snapshot()
    refused(lambda: setattr(scene.opt, "learning_rate", row[1]), row[2])
    assert scene.snapshot() == before
    goes_on_as_if_nothing_had_been(scene, steps=2)


# Arguments: what is called, with what, and the error.

TAKES = (
    "it takes learning_rate, beta_1, beta_2, epsilon, amsgrad, epsilon_hat, weight_decay, l2, maximize,"
    " clipnorm, global_clipnorm, clipvalue, use_ema, ema_momentum, ema_overwrite_frequency,"
    " loss_scale_factor, gradient_accumulation_steps, skip_nonfinite, lazy, name"
)
POSITION = "only learning_rate can be given by position, got 2 positional arguments; name the others"
TWICE = "TypeError: Adam: learning_rate is given twice"
ARGUMENTS: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any], str]] = [
    (Adam, (), {"beta1": 0.9}, "TypeError: Adam: there is no argument beta1; did you mean beta_1?"),
    (SGD, (), {"momentun": 0.9}, "TypeError: SGD: there is no argument momentun; did you mean momentum?"),
    (Adam, (), {"warmup": 1.0}, f"TypeError: Adam: there is no argument warmup; {TAKES}"),
    (Adam, (0.1, 0.9), {}, f"TypeError: Adam: {POSITION}"),
    (Adam, (0.1,), {"learning_rate": 1}, f"{TWICE}, 0.1 and 1"),
    (Adam, (0.1,), {"lr": 1}, f"{TWICE}, 0.1 and 1 (lr is learning_rate)"),
    (Adam, (), {"lr": 1, "learning_rate": 2}, f"{TWICE}, 2 and 1 (lr is learning_rate)"),
    (Adam, (), {"beta_1": 1.0}, "ValueError: Adam: beta_1 must lie in [0, 1), got 1.0"),
    (Adam, (), {"beta_1": np.nan}, "ValueError: Adam: beta_1 must lie in [0, 1), got nan"),
    (Adam, (), {"epsilon": 0}, "ValueError: Adam: epsilon must lie in (0, inf), got 0.0"),
    (Adam, (), {"epsilon": 10**400}, "ValueError: Adam: epsilon must lie in (0, inf), got {ANY}"),
    (Adam, (), {"beta_2": "x"}, "TypeError: Adam: beta_2 must be a real number, got 'x' of type str"),
    (Adam, (), {"beta_2": None}, "TypeError: Adam: beta_2 must be a real number, got None of type NoneType"),
    (Adam, (), {"l2": [1]}, "TypeError: Adam: l2 must be a real number, got [1] of type list"),
    (Adam, (), {"amsgrad": 1}, "TypeError: Adam: amsgrad must be True or False, got 1"),
    (SGD, (), {"nesterov": None}, "TypeError: SGD: nesterov must be True or False, got None"),
    (SGD, (), {"form": "Torch"}, "ValueError: SGD: form must be one of ('keras', 'torch'), got 'Torch'"),
    (SGD, (), {"form": None}, "ValueError: SGD: form must be one of ('keras', 'torch'), got None"),
    (Adam, (), {"name": 3}, "TypeError: Adam: name must be a string, got 3"),
    (
        SGD,
        (),
        {"dampening": 0.5},
        "ValueError: SGD: dampening is for form='torch', got 0.5 with form='keras'",
    ),
    (
        Adagrad,
        (),
        {"learning_rate_decay": 0.5},
        "ValueError: Adagrad: learning_rate_decay is for form='torch', got 0.5 with form='keras'",
    ),
    *(
        (set_num_threads, (n,), {}, f"ValueError: set_num_threads: count must lie in [1, 32768], got {n}")
        for n in (0, -1, 32769, 2**70)
    ),
    (
        get,
        ("adm",),
        {},
        "ValueError: get: no optimizer is named 'adm'; there are {ANY}",
    ),
    (get, ("",), {}, "ValueError: get: no optimizer is named ''; there are {ANY}"),
    (
        get,
        ({"config": {}},),
        {},
        "ValueError: get: a configuration needs a 'class_name', got the keys ['config']",
    ),
    *(
        (
            get,
            (thing,),
            {},
            "TypeError: get: identifier must be a name, a configuration or an optimizer,"
            f" got {thing!r} of type {kind}",
        )
        for thing, kind in [(3, "int"), (None, "NoneType"), (Adam, "type")]
    ),
]


@pytest.mark.parametrize("row", ARGUMENTS, ids=lambda row: row[3][:50])
def test_bad_argument(row: tuple[Callable[..., object], tuple[Any, ...], dict[str, Any], str]) -> None:
    call, positional, keywords, sentence = row
    threads = get_num_threads()
    refused(lambda: call(*positional, **keywords), sentence)
    assert get_num_threads() == threads


@pytest.mark.parametrize("count", [2.0, "2", [2]])
def test_number_of_threads_is_an_integer(count: Any) -> None:
    with pytest.raises(TypeError, match="integer"):
        set_num_threads(count)


# Changes between steps that would need other slots.

OTHER_SLOTS: list[tuple[Optimizer, str, Any, str]] = [
    (SGD(0.1), "momentum", 0.9, "(rule 'sgd_momentum' instead of 'sgd')"),
    (SGD(0.1, momentum=0.9), "momentum", 0, "(rule 'sgd' instead of 'sgd_momentum')"),
    (Adam(0.1), "amsgrad", True, "(rule 'adam_amsgrad' instead of 'adam')"),
    (RMSprop(0.1), "centered", True, "(rule 'rmsprop_centered' instead of 'rmsprop')"),
    (RMSprop(0.1), "momentum", 0.5, "(rule 'rmsprop_momentum' instead of 'rmsprop')"),
]


@pytest.mark.parametrize(("optimizer", "name", "value", "text"), OTHER_SLOTS)
def test_change_that_needs_other_slots(optimizer: Optimizer, name: str, value: Any, text: str) -> None:
    cls = type(optimizer)
    opt, twin = (cls.from_config(optimizer.get_config()) for _ in range(2))
    grads = [np.full(3, 0.5), np.full(5, 0.25)]
    ours: list[Array] = [np.ones(3), np.ones(5, np.float32)]
    theirs = [a.copy() for a in ours]
    opt.build([np.zeros(2)])
    opt.build(ours)
    for _ in range(2):
        opt.apply(grads, ours)
        twin.apply(grads, theirs)
        config = opt.get_config()
        refused(
            lambda: setattr(opt, name, value),
            f"ValueError: {cls.__name__}: the change needs other slots than were built {text};"
            " make a new optimizer",
        )
        assert opt.get_config() == config
    assert [a.tobytes() for a in ours] == [a.tobytes() for a in theirs]


def test_change_that_contradicts_another_argument() -> None:
    opt, w = SGD(0.1, momentum=0.5), np.ones(3)
    opt.apply([np.ones(3)], [w])
    refused(
        lambda: setattr(opt, "dampening", 0.5),
        "ValueError: SGD: dampening is for form='torch', got 0.5 with form='keras'",
    )
    assert opt.dampening == 0


# Other people's errors go through as they are.


def broken(values: list[Any]) -> Iterator[Any]:
    yield from values
    raise TypeError("a mistake in the caller's generator")


@pytest.mark.parametrize("way", ["grads", "variables", "first variables", "pairs"])
def test_error_of_a_generator_is_not_replaced(way: str) -> None:
    scene = Scene(steps=0 if way == "first variables" else 2)
    calls: dict[str, Callable[[], object]] = {
        "grads": lambda: scene.opt.apply(broken(scene.grads), scene.variables),
        "variables": lambda: scene.opt.apply(scene.grads, broken(scene.variables)),
        "first variables": lambda: scene.opt.apply(scene.grads, broken(scene.variables)),
        "pairs": lambda: scene.opt.apply_gradients(broken(scene.pairs)),
    }
    before = scene.snapshot()
    refused(calls[way], "TypeError: a mistake in the caller's generator")
    assert scene.snapshot() == before
    goes_on_as_if_nothing_had_been(scene, steps=scene.calls)


class NotYet:
    def __iter__(self) -> Iterator[Any]:
        raise LookupError("no gradients yet")


def test_error_of_what_begins_to_iterate_is_not_replaced() -> None:
    scene = Scene(steps=2)
    before = scene.snapshot()
    refused(lambda: scene.opt.apply(NotYet()), "LookupError: no gradients yet")
    refused(lambda: scene.opt.apply_gradients(NotYet()), "LookupError: no gradients yet")
    assert scene.snapshot() == before


# Things that are tried in a process of their own.


def python(script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


CHANGING_LISTS = {
    "by the generator of the variables": """
def variables():
    yield from ws
    gs.clear()
    junk.extend(bytearray(16000) for _ in range(50))

arguments = gs, variables()
""",
    "by a gradient": """
class Odd(np.ndarray):
    @property
    def mask(self):
        gs.clear()
        junk.extend(bytearray(16000) for _ in range(50))
        raise AttributeError("mask")

gs[0] = gs[0].view(Odd)
arguments = gs, ws
""",
    "by a variable": """
class Odd(np.ndarray):
    @property
    def mask(self):
        given.clear()
        junk.extend(bytearray(16000) for _ in range(50))
        raise AttributeError("mask")

given = [ws[0].view(Odd), *ws[1:]]
arguments = gs, given
""",
}


@pytest.mark.parametrize("changed", CHANGING_LISTS)
def test_list_that_changes_during_the_call(changed: str) -> None:
    """Such a call is refused, or steps with the arrays that it began with; it reads no freed memory."""
    head = """
import numpy as np, fusedstep
ws = [np.zeros(4, np.float32) for _ in range(2000)]
gs = [np.ones(4, np.float32) for _ in range(2000)]
junk = []
opt = fusedstep.SGD(1.0)
opt.build(ws)
opt.apply(gs, ws)
"""
    tail = """
try:
    opt.apply(*arguments)
except ValueError as error:
    assert "grads has length 0, variables 2000" in str(error), error
assert all((w == -opt.iterations).all() for w in ws)
print("alive")
"""
    done = python(head + CHANGING_LISTS[changed] + tail)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr


class Meddling(np.ndarray):
    """An array that does something when it is asked for its mask."""

    does: Callable[[], object]

    @property
    def mask(self) -> object:
        self.does()
        raise AttributeError("mask")


def test_list_of_a_replica_that_changes_during_the_call() -> None:
    ws, junk = [np.zeros(4) for _ in range(2000)], list[bytearray]()
    first, second = ([np.ones(4) for _ in ws] for _ in range(2))

    def change() -> None:
        second.clear()
        junk.extend(bytearray(16000) for _ in range(50))

    meddling = np.ones(4).view(Meddling)
    meddling.does, first[0] = change, meddling
    opt = SGD(1.0)
    opt.build(ws)
    refused(
        lambda: opt.apply(replicas=[first, second]),
        "ValueError: SGD.apply: replicas[1] has length 0, replicas[0] 2000;"
        " pass one gradient for each variable in every replica",
    )
    assert not any(w.any() for w in ws)


def test_dtype_is_refused_where_ml_dtypes_cannot_be_imported() -> None:
    done = python("""
import sys
sys.modules["ml_dtypes"] = None  # how imports are blocked
import numpy as np, fusedstep
fusedstep.SGD().build([np.zeros(3, int)])
""")
    assert done.stderr.splitlines()[-1].startswith("TypeError: SGD.build: variables[0] has dtype int64")


# What follows in a script may take so many bytes more.
LIMIT = """
import resource
with open("/proc/self/statm") as statm:
    most = int(statm.read().split()[0]) * resource.getpagesize() + {more}
resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""


def limits_memory(test: Any) -> Any:
    asan = "asan" in os.environ.get("LD_PRELOAD", "")
    test = pytest.mark.skipif(asan, reason="the sanitizer takes memory, too")(test)
    return pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")(test)


@limits_memory
def test_slots_that_memory_does_not_suffice_for() -> None:
    script = f"""
import numpy as np, fusedstep
w = np.ones(25_000_000, np.float32)
{LIMIT.format(more=100_000_000)}
opt = fusedstep.Adam()
try:
    opt.apply([w], [w])
finally:
    print(opt.iterations, opt.variables, w[0])
"""
    done = python(script, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # threads would take some, too
    assert done.stdout.strip() == "0 [] 1.0"
    assert done.stderr.splitlines()[-1] == (
        "MemoryError: Adam.build: there is no memory for slots of 200010496 bytes;"
        " free some, or choose an optimizer or options with fewer slots"
    )


@limits_memory
@pytest.mark.parametrize("threads", ["1", "2"])
def test_sums_that_memory_does_not_suffice_for(threads: str) -> None:
    """Also on several threads, where no exception may leave what they do together."""
    script = f"""
import numpy as np, fusedstep
fusedstep.SGD().apply([np.ones(10**6)], [np.ones(10**6)])  # makes OpenMP's threads
w, g = np.zeros(10**9, np.float16), np.zeros(10**9, np.float16)  # of which no page is touched
opt = fusedstep.SGD(global_clipnorm=1.0)
opt.build([w])
{LIMIT.format(more=500_000)}
try:
    opt.apply([g])
finally:
    print(opt.iterations, w[0])
"""
    done = python(script, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.strip() == "0 0.0"
    assert done.stderr.splitlines()[-1].startswith("MemoryError")


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "baseline "])
def test_unknown_target(name: str) -> None:
    done = python("import fusedstep", FUSEDSTEP_TARGET=name)
    known = ", ".join(f"'{target}'" for target in build_info()["targets"])
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        f"ValueError: FUSEDSTEP_TARGET: no target is named '{name}'; this build has {known}"
    )


def test_target_that_this_cpu_cannot_run() -> None:
    for name in [name for name, supported in build_info()["targets"].items() if not supported]:
        done = python("import fusedstep", FUSEDSTEP_TARGET=name)
        assert done.stderr.splitlines()[-1] == (
            f"RuntimeError: FUSEDSTEP_TARGET: this CPU cannot run the target '{name}'"
        )


# What looks similar and is good.

OPTIMIZERS = [
    SGD(0.1),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.1),
    Adam(0.1, weight_decay=0.1),
    Adam(0.1, l2=0.1, maximize=True),
    Adam(0.1, amsgrad=True, weight_decay=0.1, l2=0.1),
    RMSprop(0.1, centered=True, momentum=0.5, l2=0.1),
    Adagrad(0.1, weight_decay=0.1),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bfloat16])
@pytest.mark.parametrize("size", [3, 1000, 200_000])
def test_gradient_that_is_its_own_variable(optimizer: Optimizer, dtype: Any, size: int) -> None:
    """The gradient of w*w/2 is w: its memory may be given; each element is read before it is written."""
    opt, twin = (type(optimizer).from_config(optimizer.get_config()) for _ in range(2))
    w = np.random.default_rng(size).standard_normal(size).astype(dtype)
    expected = w.copy()
    for _ in range(3):
        opt.apply([w], [w])
        twin.apply([expected.copy()], [expected])
    assert w.tobytes() == expected.tobytes()
    assert [s.tobytes() for s in opt.variables] == [s.tobytes() for s in twin.variables]


def test_strided_gradient_in_its_own_variable_is_read_before_it_is_written() -> None:
    w = np.arange(9, dtype=np.float32).reshape(3, 3)
    expected = w - w.T
    SGD(1.0).apply([w.T], [w])
    assert (w == expected).all()


def test_an_iterator_that_was_read_before() -> None:
    """No step would be made, and nobody told."""
    opt, w = SGD(1.0), np.zeros(3)
    pairs = zip([np.ones(3)], [w], strict=True)
    assert opt.apply_gradients(pairs) == 1
    with pytest.raises(
        ValueError, match=r"^SGD\.apply_gradients: the zip has no pairs; an iterator can be read"
    ):
        opt.apply_gradients(pairs)
    assert opt.iterations == 1


def test_good_neighbours_of_refusals() -> None:
    """Adjacent memory, a view of a variable, read-only gradients, empty calls, NumPy scalars."""
    buffer = np.zeros(30, np.float32)
    a, b, gradient = buffer[:10], buffer[10:20], read_only(buffer[20:])
    opt = SGD(1.0)
    assert opt.apply([], []) == 0
    assert opt.apply_gradients([]) == 0
    assert opt.apply([gradient, gradient], [a, b]) == 1
    assert opt.apply([np.ones(10)], [a[:]]) == 2, "a view of the very memory is the variable"
    assert opt.apply([], []) == 2
    assert opt.apply_gradients([]) == 2
    assert (a == -1).all()
    assert (b == 0).all()
    scalar = np.array(1.0)
    for value in (np.float64(0.5), np.float32(0.5), np.float16(0.5), bfloat16(0.5), np.array(0.5)):
        SGD(1.0).apply([value], [scalar])
    assert scalar == -1.5


def test_an_empty_call_needs_no_list() -> None:
    assert SGD().apply(iter([]), []) == 0
    assert SGD().apply(iter([]), iter([])) == 0


class Same(np.ndarray):
    """An array whose every view is itself."""

    def view(self, *args: Any) -> Any:  # type: ignore[override]
        return self


def test_subclasses_are_read_as_their_memory() -> None:
    w, g = np.ndarray.view(np.ones(3), Same), np.ndarray.view(np.ones(6), Same)
    opt = SGD(0.5)
    for gradient in (g[:3], g[::2]):
        opt.apply([gradient], [w])
    assert w.tolist() == [0.0] * 3


@pytest.mark.parametrize("kind", ["NumPy", "PyTorch"])
@pytest.mark.parametrize("only", range(3))
def test_variables_that_do_not_come_are_left_alone(only: int, kind: str) -> None:
    """Though they had gradients in the call before."""
    make: Callable[[Any], Any] = np.asarray
    if kind == "PyTorch":
        make = pytest.importorskip("torch", reason="PyTorch is not installed").from_numpy
    ws, opt = [np.zeros(3) for _ in range(3)], SGD(1.0)
    variables = [make(w) for w in ws]
    opt.build(variables)
    opt.apply([make(np.ones(3)) for _ in ws], variables)
    opt.apply([make(np.full(3, 2.0))], [variables[only]])
    assert [w[0] for w in ws] == [-3 if i == only else -1 for i in range(3)]


def test_pairs_may_be_lists() -> None:
    w, opt = np.zeros(3), SGD(1.0)
    assert opt.apply_gradients([[np.ones(3), w]]) == 1  # type: ignore[list-item]
    assert w.tolist() == [-1.0] * 3


def test_memory_mapped_variable(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    w = np.memmap(path, np.float32, "w+", shape=(5,))
    SGD(1.0).apply([np.ones(5)], [w])
    w.flush()
    assert (np.fromfile(path, np.float32) == -1).all()
    sentence = with_labels(READ_ONLY.replace("Adam", "SGD"), names=False).replace("[1]", "[0]")
    refused(lambda: SGD().build([np.memmap(path, np.float32, "r")]), sentence)


def test_rates_ahead_without_a_gpu() -> None:
    optimizer = Adam()
    optimizer.build([np.ones(3, np.float32)])
    with pytest.raises(ValueError, match="a GPU looks up learning rates, but all variables are on the CPU"):
        optimizer._plans[0].look_ahead([0.1])


def test_a_setting_that_a_later_build_refuses_is_undone_in_the_first() -> None:
    first, second, one = np.zeros(2), np.zeros(2), np.ones(2)
    optimizer = SGD(1.0, momentum=0.5)
    optimizer.build([first])
    optimizer.build([second])

    def gradients() -> Iterator[Array]:
        with pytest.raises(RuntimeError, match="in the middle of another step"):
            optimizer.momentum = 0.25
        yield one

    optimizer.apply(gradients(), [second])
    for _ in range(2):
        optimizer.apply([one], [first])
    assert first.tolist() == [-2.5, -2.5]
