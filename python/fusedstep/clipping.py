"""Clipping of gradients outside of a step, for those who process them themselves.

The optimizers' own options (``clipvalue``, ``clipnorm``, ``global_clipnorm``) do the same inside the step,
in its one pass over memory. The bits are the same where the gradients have the dtype that the step computes
in: float64 for float64 variables, float32 for all others. Of 16-bit gradients the results here are rounded
to 16 bits once more.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep import _native
from fusedstep.checks import real_in

Array = npt.NDArray[Any]

DTYPES = ("float32", "float64", "float16", "bfloat16")
NATIVE = {
    np.dtype(name) for name in DTYPES[:3]
}  # a dtype's name, which bfloat16 needs, takes longer than a norm


def clip_by_value(x: Any, low: float, high: float) -> Array | None:
    """Return a new array with every element clipped to [low, high]; a NaN stays one.

    With -c and c, what ``clipvalue=c`` does in a step.

    Args:
        x: an array of float32, float64, float16 or bfloat16; or None, which is returned.
        low: rounded to the array's dtype.
        high: rounded to the array's dtype, at least ``low``.

    Raises:
        TypeError: ``x`` is of another kind or dtype, or a bound is no number.
        ValueError: ``low`` is above ``high``, or a bound is NaN.

    >>> clip_by_value(np.array([-3.0, 0.5, 2.0]), -1, 1)
    array([-1. ,  0.5,  1. ])
    """
    who = "clip_by_value"
    low, high = (
        real_in(bound, f"{who}: {name}", "[-inf, inf]") for bound, name in ((low, "low"), (high, "high"))
    )
    if low > high:
        raise ValueError(f"{who}: low must be at most high, got {low!r} and {high!r}")
    if x is None:
        return None
    return _native.in_default_mode(_clipped, _checked(x, f"{who}: x"), low, high)


def clip_by_norm(x: Any, clip_norm: float) -> Array | None:
    """Return a new array, scaled down to a Euclidean norm where its own is larger.

    What ``clipnorm`` does to each gradient in a step. The norm is a sum in float64 of a fixed order, and does
    not overflow.

    Args:
        x: an array of float32, float64, float16 or bfloat16; or None, which is returned.
        clip_norm: the largest norm, in (0, inf).

    Raises:
        TypeError: ``x`` is of another kind or dtype.
        ValueError: ``clip_norm`` is out of its interval.

    >>> clip_by_norm(np.array([3.0, 4.0]), 1.0)
    array([0.6, 0.8])
    """
    who = "clip_by_norm"
    largest = real_in(clip_norm, f"{who}: clip_norm", "(0, inf)")
    if x is None:
        return None
    arrays = [_checked(x, f"{who}: x")]
    norm = _native.norm_of(arrays, f"{who}: x")
    return _native.in_default_mode(_scaled_down, arrays, norm, largest)[0]


def clip_by_global_norm(gradients: Iterable[Any], clip_norm: float) -> tuple[list[Array | None], float]:
    """Return new arrays, all scaled down by one factor where their norm together is larger; and that norm.

    What ``global_clipnorm`` does in a step, if the order is that in which the variables were built.

    Args:
        gradients: arrays of float32, float64, float16 or bfloat16; None counts as zeros and stays None.
        clip_norm: the largest norm of all together, in (0, inf).

    Returns:
        The clipped arrays in the order given, and the norm before they were clipped.

    Raises:
        TypeError: a gradient is of another kind or dtype.
        ValueError: ``clip_norm`` is out of its interval.

    >>> clip_by_global_norm([np.array([3.0]), None, np.array([4.0])], 1.0)
    ([array([0.6]), None, array([0.8])], 5.0)
    """
    who = "clip_by_global_norm"
    largest = real_in(clip_norm, f"{who}: clip_norm", "(0, inf)")
    arrays = _all_checked(gradients, who)
    norm = _native.norm_of(arrays, f"{who}: gradients")
    return _native.in_default_mode(_scaled_down, arrays, norm, largest), norm


def global_norm(gradients: Iterable[Any]) -> float:
    """Return the Euclidean norm of all gradients together, as a step's ``gradient_norm`` is.

    Args:
        gradients: arrays of float32, float64, float16 or bfloat16; None counts as zeros.

    Raises:
        TypeError: a gradient is of another kind or dtype.

    >>> global_norm([np.array([3.0]), None, np.array([4.0])])
    5.0
    """
    return _native.norm_of(_all_checked(gradients, "global_norm"), "global_norm: gradients")


def _is_plain(x: Any) -> bool:
    return type(x) is np.ndarray and x.dtype in NATIVE


def _checked(x: Any, what: str) -> Any:
    is_array = isinstance(x, (np.ndarray, np.generic)) and not isinstance(x, np.ma.MaskedArray)
    if not is_array or x.dtype.name not in DTYPES or not x.dtype.isnative:
        library, name = type(x).__module__.partition(".")[0], type(x).__name__
        found = name if library == "builtins" else f"{library}.{name}"
        found += f" of {x.dtype}" if hasattr(x, "dtype") else ""
        advice = "; pass cupy.asnumpy(x)" if library == "cupy" else ""
        raise TypeError(f"{what} must be a NumPy array of {', '.join(DTYPES)}, got a {found}{advice}")
    return x


def _all_checked(gradients: Iterable[Any], who: str) -> list[Any]:
    items = _native.items_of(gradients, f"{who}: gradients")
    return [
        x if x is None or _is_plain(x) else _checked(x, f"{who}: gradients[{i}]") for i, x in enumerate(items)
    ]


def _clipped(x: Any, low: float, high: float) -> Array:
    clipped = np.array(x, order="C")
    with np.errstate(all="ignore"):
        smallest, largest = clipped.dtype.type(low), clipped.dtype.type(high)
        # Not numpy.clip, whose zeros may have another sign.
        np.copyto(clipped, smallest, where=clipped < smallest)
        np.copyto(clipped, largest, where=clipped > largest)
    return clipped


def _scaled_down(arrays: list[Any], norm: float, largest: float) -> list[Array | None]:
    factor = 1.0 if norm <= largest else largest / norm
    with np.errstate(all="ignore"):
        return [None if array is None else _times(array, factor) for array in arrays]


def _times(x: Any, factor: float) -> Array:
    """The product in the compute type, rounded once to the array's own."""
    product = np.empty(x.shape, x.dtype)
    compute = np.float64 if x.dtype == np.float64 else np.float32
    np.multiply(x, compute(factor), out=product, dtype=compute, casting="unsafe")
    return product
