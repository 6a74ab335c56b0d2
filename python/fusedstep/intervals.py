"""Real numbers, and the intervals where they must lie."""

import math
from numbers import Real
from typing import Any

import numpy as np


class Interval:
    """An interval in the notation of mathematics: "[0, 1)" has 0 and not 1."""

    def __init__(self, text: str) -> None:
        self.text = text
        low, high = text[1:-1].split(",")
        self.low, self.high = float(low), float(high)
        self.has_low, self.has_high = text[0] == "[", text[-1] == "]"

    def __contains__(self, x: float) -> bool:
        above = x >= self.low if self.has_low else x > self.low
        below = x <= self.high if self.has_high else x < self.high
        return above and below


def real(value: Any, what: str) -> float:
    """Return a real scalar, or an array of one element and no dimension, as a float."""
    scalar = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 else value
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise TypeError(f"{what} must be a real number, got {value!r} of type {type(value).__name__}")
    number: Any = scalar
    try:
        return float(number)
    except OverflowError:  # an integer beyond all floats
        return math.inf if number > 0 else -math.inf


def real_in(value: Any, what: str, interval: str = "(-inf, inf)") -> float:
    """Return a real scalar that lies in the interval, finite by default, as a float."""
    number = real(value, what)
    if number not in Interval(interval):
        raise ValueError(f"{what} must lie in {interval}, got {number!r}")
    return number
