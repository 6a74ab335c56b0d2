"""How figures read, and what share of the limit a speed is."""

from bench.contestants import DEVICE_COPY, SAME_BYTES
from bench.series import Results, Series, Spread

ROUNDED_TO_1000 = 999.5  # from here on three digits would be 1e+03


def time(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, in_units in (("µs", 1e6 * seconds), ("ms", 1e3 * seconds)):
        if in_units < ROUNDED_TO_1000:
            return f"{in_units:.3g} {unit}"
    return f"{short(seconds)} s"


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < ROUNDED_TO_1000 else f"{value:.0f}"


def number(value: float) -> str:
    """An error: 0, or a power of ten."""
    return "0" if value == 0 else f"{value:.0e}"


def ratio(spread: Spread) -> str:
    """A ratio with its quartiles."""
    equal = "" if spread.tells else "= "
    return f"{equal}{short(spread.median)} ({short(spread.first)} - {short(spread.third)})"


def yardstick(one: Series, results: Results) -> Series | None:
    """The series of the limit on a series' workload; None without one."""
    places = ((one.workload, name) for name in (DEVICE_COPY, SAME_BYTES))
    return next((results[place] for place in places if place in results), None)


def share(one: Series, results: Results) -> float | None:
    """The speed of a series, where the yardstick's in the same rounds is 1; None without a yardstick."""
    limit = yardstick(one, results)
    return None if limit is None else limit.over(one)
