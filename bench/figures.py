"""How figures read, and what share of the limit a speed is."""

from bench.contestants import DEVICE_COPY, SAME_BYTES
from bench.series import Results, Series, Spread


def time(seconds: float) -> str:
    """A time in the unit that suits it."""
    microseconds = 1e6 * seconds
    if microseconds < 1000:
        return f"{microseconds:.3g} µs"
    if microseconds < 1e6:
        return f"{microseconds / 1e3:.3g} ms"
    return f"{seconds:.3g} s"


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


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
