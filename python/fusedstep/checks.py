"""Checks of what a user passed: real numbers, integers and flags, and the intervals where they must lie."""

import math
import operator
from numbers import Real
from typing import Any

import numpy as np


def _number(text: str) -> float:
    base, power, exponent = text.partition("^")
    return math.pow(float(base), float(exponent)) if power else float(base)


class Interval:
    """An interval in the notation of mathematics: "[0, 1)" has 0 and not 1; "2^63" is a number, too."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.low, self.high = map(_number, text[1:-1].split(","))
            is_one = text[0] in "[(" and text[-1] in "])" and self.low <= self.high
        except (ValueError, IndexError):
            is_one = False
        if not is_one:
            raise ValueError(f"an interval must read like '[0, 1)', its lower end first, got {text!r}")
        self.has_low, self.has_high = text[0] == "[", text[-1] == "]"

    def __contains__(self, x: float) -> bool:
        above = x >= self.low if self.has_low else x > self.low
        below = x <= self.high if self.has_high else x < self.high
        return above and below

    def __str__(self) -> str:
        return self.text


FINITE = Interval("(-inf, inf)")


def real(value: Any, what: str) -> float:
    """Return a real scalar, or an array without dimensions, of any library, as a float."""
    scalar = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise TypeError(f"{what} must be a real number, got {value!r} of type {type(value).__name__}")
    number: Any = scalar
    try:
        return float(number)
    except OverflowError:  # an integer beyond all floats
        return math.inf if number > 0 else -math.inf


def real_in(value: Any, what: str, interval: Interval | str = FINITE) -> float:
    """Return a real scalar that lies in the interval, finite by default, as a float."""
    number, wanted = real(value, what), _interval(interval)
    if number not in wanted:
        should = "be finite" if wanted is FINITE else f"lie in {wanted}"
        raise ValueError(f"{what} must {should}, got {number!r}")
    return number


def integer_in(value: Any, what: str, interval: Interval | str) -> int:
    """Return an integer that lies in the interval, as an int."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} must be an integer, got {value!r} of type {type(value).__name__}")
    if number not in _interval(interval):
        raise ValueError(f"{what} must lie in {interval}, got {number}")
    return number


def boolean(value: Any, what: str) -> bool:
    """Return a truth value, NumPy's or Python's, as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} must be True or False, got {value!r}")
    return bool(value)


def _interval(interval: Interval | str) -> Interval:
    return interval if isinstance(interval, Interval) else Interval(interval)
