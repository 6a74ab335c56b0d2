"""Conversions between storage and compute types, over all values that matter."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from fusedstep import SGD
from reference import compute_type, same_bits

HALVES = np.arange(2**16, dtype=np.uint16)


def through_a_step(gradient: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    """The gradient as a variable: 0 - (-1)*g, so widened exactly and then rounded once."""
    variable = np.zeros(gradient.shape, dtype)
    SGD(-1.0).apply([gradient], [variable])
    return variable


def expected(gradient: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    compute = compute_type(dtype)
    with np.errstate(all="ignore"):
        return np.asarray(compute(0) + gradient.astype(compute)).astype(dtype)


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_every_16_bit_value_widens(narrow: Any, wide: Any, target: str) -> None:
    gradient = HALVES.view(narrow)
    assert same_bits(through_a_step(gradient, wide), expected(gradient, wide))


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_value_survives_a_round_trip(narrow: Any, target: str) -> None:
    gradient = HALVES.view(narrow)
    assert same_bits(through_a_step(gradient, narrow), expected(gradient, narrow))


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_rounding_at_and_beside_every_tie(narrow: Any, target: str) -> None:
    """Each 16-bit value, the middle to the next one, and the float32 neighbours of both."""
    with np.errstate(all="ignore"):
        values = HALVES.view(narrow).astype(np.float32)
        following = (HALVES + np.uint16(1)).view(narrow).astype(np.float32)
        middles = ((values.astype(np.float64) + following) / 2).astype(np.float32)
        points = np.concatenate([values, middles])
        gradient = np.concatenate(
            [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
        )
    assert same_bits(through_a_step(gradient, narrow), expected(gradient, narrow))


def test_float64_gradients_round_once(target: str) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    ties = np.float64(1) + np.arange(-4, 5) * 2.0**-25
    gradient = np.concatenate([bits.view(np.float64), ties, ties * 2.0**-140, ties * 2.0**128])
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        assert same_bits(through_a_step(gradient, dtype), expected(gradient, dtype))
