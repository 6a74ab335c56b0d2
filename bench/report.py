"""A run as tables and as JSON."""

from dataclasses import asdict
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.goals import Results, Verdict, by_key
from bench.measure import Series
from bench.memory import Memory
from bench.workloads import FUSEDSTEP, GROUPS, SAME_BYTES

QUIET = 0.1  # cores
STEP_BYTES = {workload.name: workload.step_bytes for group in GROUPS for workload in group}


def print_machine(console: Console, about: dict[str, Any]) -> None:
    """Print what the figures belong to."""
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in about["versions"].items())
    console.print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, {about['rounds']} rounds"
    )
    console.print(versions)


def print_others(console: Console, cores: float) -> None:
    """Print how busy other programs kept the machine meanwhile."""
    console.print(f"Other programs used {max(cores, 0):.2f} cores meanwhile.")
    if cores > QUIET:
        console.print("[bold red]That is too much: these figures, the ratios too, are unreliable.[/]")


def print_differences(console: Console, differences: dict[str, float | str]) -> None:
    """Print how far the contestants' results are from fusedstep's, or why there are none."""
    console.print("Largest relative difference from fusedstep after 3 steps from the same start:")
    for name, value in differences.items():
        console.print(f"  {name}: {value if isinstance(value, str) else format(value, '.1e')}", markup=False)


def print_figures(console: Console, series: list[Series]) -> None:
    """Print the table of times, ratios and rates."""
    results = by_key(series)
    table = Table(title="One step of Adam", title_justify="left")
    table.add_column("workload")
    table.add_column("contestant")
    for name in ("median us", "q1 - q3", "to fusedstep", "GB/s", "of same bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    workload = series[0].workload
    for one in series:
        if one.workload != workload:
            table.add_section()
        workload = one.workload
        figures = _figures(one, results) if one.samples else ["absent"]
        table.add_row(workload, one.contestant, *figures)
    console.print(table)
    console.print(
        "to fusedstep: the median over the rounds of this time over fusedstep's in the same round. GB/s: the"
        " bytes that a step must move, over the median. of same bytes: the speed, where that of the loop that"
        " only moves these bytes is 1."
    )
    for contestant, why in sorted({(one.contestant, one.absent) for one in series if one.absent}):
        console.print(f"absent: {contestant}: {why}", markup=False)


def _figures(one: Series, results: Results) -> list[str]:
    key, yardstick = (one.workload, FUSEDSTEP), (one.workload, SAME_BYTES)
    first, third = one.quartiles
    return [
        _microseconds(one.median),
        f"{_microseconds(first)} - {_microseconds(third)}",
        _short(one.over(results[key])) if key in results else "",
        f"{STEP_BYTES[one.workload] / one.median / 1e9:.1f}",
        _short(results[yardstick].over(one)) if yardstick in results else "",
    ]


def print_means(console: Console, series: list[Series]) -> None:
    """Print what the medians of steps timed one by one leave out."""
    with_means = [one for one in series if one.means]
    if not with_means:
        return
    console.print(
        "Beside a thread that never rests, and after pauses, steps are timed one by one: their median leaves"
        " out the few that were held up, the mean has them. (Python's threads take turns of 5 ms, so with a"
        " spinner a step now and then waits that long, in any program.)"
    )
    for one in with_means:
        times = f"median {_microseconds(one.median)} us, mean {_microseconds(mean(one.means))} us"
        console.print(f"  {one.workload}, {one.contestant}: {times}")


def print_verdicts(console: Console, verdicts: list[Verdict]) -> None:
    """Print the table of goals."""
    table = Table(title="Goals", title_justify="left")
    table.add_column("goal")
    table.add_column("measured", justify="right")
    table.add_column("reached")
    for verdict in verdicts:
        if verdict.reached is not None:
            reached = "yes" if verdict.reached else "[bold red]no[/]"
            table.add_row(verdict.goal, verdict.measured, reached)
    console.print(table)
    not_measured = sum(verdict.reached is None for verdict in verdicts)
    if not_measured:
        console.print(f"{not_measured} goals were not measured.")


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _microseconds(seconds: float) -> str:
    return _short(1e6 * seconds)


def as_json(
    about: dict[str, Any],
    others: float,
    differences: dict[str, float | str],
    series: list[Series],
    memory: list[Memory],
    verdicts: list[Verdict],
) -> dict[str, Any]:
    """Return everything measured; times are in seconds."""
    results = by_key(series)

    def figures(one: Series) -> dict[str, Any]:
        if not one.samples:
            return {}
        ratios = {
            f"over {other}": one.over(results[one.workload, other])
            for other in (FUSEDSTEP, SAME_BYTES)
            if (one.workload, other) in results
        }
        return {"median": one.median, "quartiles": one.quartiles, **ratios}

    return {
        "machine": about,
        "cores_used_by_others": others,
        "largest_relative_differences": differences,
        "series": [asdict(one) | figures(one) for one in series],
        "memory": [asdict(one) for one in memory],
        "goals": [asdict(verdict) for verdict in verdicts],
    }
