"""The clip functions: the bits of the optimizers' options."""

import ctypes
import math
import platform
import threading
import time
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from conftest import DTYPES, random_array
from fusedstep import (
    SGD,
    Adam,
    Optimizer,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    global_norm,
)
from reference import same_bits, sum_of_squares, tree

Array = npt.NDArray[Any]

# FE_UPWARD of fenv.h
UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())

SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (17, 5), (4096,), (4097,), (3, 20_000)]


def gradients(dtype: Any, special: bool = False) -> list[Array]:
    rng = np.random.default_rng(0)
    return [random_array(rng, shape, dtype, special) for shape in SHAPES]


@pytest.mark.parametrize("special", [False, True], ids=["ordinary", "special"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("optimizer", [SGD(0.5), Adam(0.5)], ids=repr)
def test_a_clipped_gradient_and_a_step_are_the_step_that_clips(
    optimizer: Optimizer, dtype: Any, special: bool, target: str
) -> None:
    given = gradients(dtype, special)
    ways: list[tuple[dict[str, float], list[Any]]] = [
        ({"clipvalue": 0.3}, [clip_by_value(g, -0.3, 0.3) for g in given]),
        *(({"clipnorm": c}, [clip_by_norm(g, c) for g in given]) for c in (2.0, 1e3)),
        *(({"global_clipnorm": c}, clip_by_global_norm(given, c)[0]) for c in (2.0, 1e3)),
    ]
    for option, clipped in ways:
        inside, before = type(optimizer)(0.5, **option), optimizer.clone()  # type: ignore[arg-type]
        variables, twins = ([np.ones(shape, dtype) for shape in SHAPES] for _ in range(2))
        inside.apply(given, variables)
        before.apply(clipped, twins)
        for ours, theirs in zip([*twins, *before.variables], [*variables, *inside.variables], strict=True):
            assert same_bits(ours, theirs), option
        if "global_clipnorm" in option:
            assert repr(clip_by_global_norm(given, 1.0)[1]) == repr(inside.gradient_norm)


def test_norms_are_those_of_the_tree(target: str) -> None:
    """Of all dtypes in one list; None is +0 in its place."""
    rng = np.random.default_rng(1)
    given: list[Any] = [random_array(rng, shape, dtype) for shape in SHAPES for dtype in DTYPES]
    given[4] = given[9] = None
    sums = np.array([0.0 if g is None else sum_of_squares(g) for g in given])
    assert global_norm(given) == math.sqrt(tree(sums)) == clip_by_global_norm(iter(given), 1.0)[1]
    for rows in rng.random((20, 6, 1)):
        squares = rows[:, 0] ** 2
        expected = math.sqrt(tree(np.array([squares[0], 0.0, *squares[1:]])))
        assert global_norm([rows[0], None, *rows[1:]]) == expected
    assert global_norm([]) == global_norm([None]) == 0
    many = [np.float64(x) for x in rng.standard_normal(5000)]
    assert global_norm(many) == math.sqrt(tree(np.array([x * x for x in many])))


@pytest.mark.skipif(UPWARD is None, reason="needs the number of a rounding mode")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_floating_point_mode_of_the_process_does_not_matter(dtype: Any) -> None:
    """As that of a step: another library may have switched it, to flush-to-zero for example."""
    arrays = gradients(dtype)
    libm = ctypes.CDLL(None)

    def clipped() -> list[Any]:
        together, norm = clip_by_global_norm(arrays, 0.1)
        each = [
            function(x, 0.3)
            for x in arrays
            for function in (clip_by_norm, lambda x, c: clip_by_value(x, -c, c))
        ]
        return [x.tobytes() for x in (*together, *each) if x is not None] + [norm]

    usual, third = clipped(), 1 / np.float64(3)
    try:
        assert libm.fesetround(UPWARD) == 0
        assert 1 / np.float64(3) > third, "the mode is not on"
        upward = clipped()
    finally:
        libm.fesetround(0)
    assert upward == usual


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_16_bits_are_computed_in_float32_and_rounded_once(dtype: Any) -> None:
    for x in gradients(dtype):
        norm = math.sqrt(sum_of_squares(x))
        factor = np.float32(1 if norm <= 0.7 else 0.7 / norm)
        expected = np.asarray(x.astype(np.float32) * factor).astype(dtype)
        clipped = clip_by_norm(x, 0.7)
        assert clipped is not None
        assert same_bits(clipped, expected)
        bounded = clip_by_value(x, -0.3, 0.3)
        assert bounded is not None
        assert bounded.dtype == dtype
        assert (np.abs(bounded.astype(float)) <= float(dtype(0.3))).all()


def test_new_arrays_and_none(target: str) -> None:
    for dtype in DTYPES:
        for x in gradients(dtype):
            before = x.tobytes()
            for clipped in (
                clip_by_value(x, -9, 9),
                clip_by_norm(x, 1e9),
                clip_by_global_norm([x], 1e9)[0][0],
            ):
                assert clipped is not None
                assert not np.shares_memory(clipped, x)
                assert same_bits(clipped, x), "what is not clipped is equal"
            assert x.tobytes() == before
    assert clip_by_value(None, -1, 1) is None
    assert clip_by_norm(None, 1) is None
    assert clip_by_global_norm([None, np.ones(1), None], 9) == ([None, np.ones(1), None], 1)


def test_layouts_and_scalars() -> None:
    x = np.random.default_rng(2).standard_normal((60, 90)).astype(np.float32)
    for view in (x.T, x[::-2], x[:, 1::3], np.broadcast_to(x[:1], (70, 90))):
        plain = view.copy()
        for clipped, expected in (
            (clip_by_norm(view, 0.5), clip_by_norm(plain, 0.5)),
            (clip_by_value(view, -1, 1), clip_by_value(plain, -1, 1)),
        ):
            assert clipped is not None
            assert expected is not None
            assert same_bits(clipped, expected)
            assert clipped.flags.c_contiguous
    scalar = clip_by_norm(np.float32(-8), 2.0)
    assert scalar is not None
    assert scalar.shape == ()
    assert scalar == -2


def test_values_at_and_beyond_the_bounds() -> None:
    x = np.array([-np.inf, -2, -0.0, 0.0, 2, np.inf, np.nan])
    clipped = clip_by_value(x, 0, np.inf)
    assert clipped is not None
    assert same_bits(clipped, np.array([0, 0, -0.0, 0, 2, np.inf, np.nan]))
    clipped = clip_by_value(x, -np.inf, 0)
    assert clipped is not None
    assert same_bits(clipped, np.array([-np.inf, -2, -0.0, 0, 0, 0, np.nan]))
    clipped = clip_by_value(x[1:5], 1, 1)
    assert clipped is not None
    assert same_bits(clipped, np.ones(4))


def test_what_is_beyond_a_dtype_makes_no_warning() -> None:
    """As in a step, which warns of nothing: a bound that is infinite in 16 bits, and infinity times 0."""
    clipped = clip_by_value(np.ones(2, np.float16), -1e6, 1e6)
    assert clipped is not None
    assert same_bits(clipped, np.ones(2, np.float16))
    scaled = clip_by_norm(np.array([np.inf, 1.0], np.float32), 1.0)
    assert scaled is not None
    assert same_bits(scaled, np.array([np.nan, 0.0], np.float32))


def test_arrays_of_a_subclass_give_plain_ones() -> None:
    class Named(np.ndarray[Any, Any]):
        pass

    x = np.ones(2).view(Named)
    for clipped in (clip_by_value(x, -2, 2), clip_by_norm(x, 1), clip_by_global_norm([x], 1)[0][0]):
        assert type(clipped) is np.ndarray


def test_norms_do_not_overflow_in_float32_nor_take_memory() -> None:
    """Squares above 1.8e19 are too large for float32; no copy of the data is made for the norm."""
    assert global_norm([np.array([3e30, 4e30], np.float32)]) == pytest.approx(5e30)
    large = np.ones(10**6, np.float32)
    tracemalloc.start()
    assert global_norm([large]) == 1000
    assert tracemalloc.get_traced_memory()[1] < large.nbytes / 100
    tracemalloc.stop()


def test_other_threads_run_while_a_norm_is_summed() -> None:
    large, ticks = np.zeros(2**28, np.float32), 0  # pages that are only read take no memory
    worker = threading.Thread(target=global_norm, args=([large],))
    worker.start()
    while worker.is_alive():
        ticks += 1
        time.sleep(0.001)
    worker.join()
    assert ticks > 3


@pytest.mark.parametrize(
    "bad", [[1.0], 1.0, np.ones(2, int), np.ones(2, ">f4"), np.ma.ones(2), "x"], ids=repr
)
def test_refused_arrays(bad: Any) -> None:
    for call in (
        lambda: clip_by_value(bad, -1, 1),
        lambda: clip_by_norm(bad, 1),
        lambda: global_norm([None, bad]),
        lambda: clip_by_global_norm([None, bad], 1),
    ):
        with pytest.raises(
            TypeError, match="must be a NumPy array of float32, float64, float16, bfloat16, got a "
        ):
            call()


def test_a_refused_array_of_another_library_is_named_with_it() -> None:
    """CuPy's class has NumPy's name."""
    theirs = type("ndarray", (), {"__module__": "cupy", "dtype": np.dtype(np.float32)})()
    with pytest.raises(TypeError, match=r"got a cupy\.ndarray of float32; pass cupy\.asnumpy\(x\)"):
        clip_by_norm(theirs, 1)
    with pytest.raises(TypeError, match=r"got a numpy\.ndarray of int64$"):
        clip_by_norm(np.ones(2, np.int64), 1)


def test_refused_numbers() -> None:
    x = np.ones(2)
    with pytest.raises(ValueError, match=r"clip_by_value: low must be at most high, got 1\.0 and -1\.0"):
        clip_by_value(x, 1, -1)
    with pytest.raises(ValueError, match="clip_by_value: high must lie in"):
        clip_by_value(x, 1, math.nan)
    for norm in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"clip_norm must lie in \(0, inf\)"):
            clip_by_norm(x, norm)
        with pytest.raises(ValueError, match=r"clip_norm must lie in \(0, inf\)"):
            clip_by_global_norm([x], norm)
    with pytest.raises(TypeError, match=r"gradients is one numpy\.ndarray, but must be a list of them"):
        global_norm(x)
