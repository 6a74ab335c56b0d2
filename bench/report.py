"""A run as tables for a terminal."""

from collections import defaultdict
from statistics import mean

from rich.console import Console
from rich.table import Table

from bench.contestants import FUSEDSTEP
from bench.figures import number, ratio, share, short, time
from bench.goals import Verdict
from bench.result import Result
from bench.series import Results, Series, Spread
from bench.workloads import ONE_BY_ONE, workload

QUIET = 0.1  # cores
WIDEST = 1000  # columns


def print_machine(console: Console, result: Result) -> None:
    """Print what the figures belong to."""
    about = result.machine
    console.print(f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads")
    if "gpu" in about:
        console.print(", ".join(f"{name} {value}" for name, value in about["gpu"].items()))
    console.print(", ".join(f"{name} {value}" for name, value in about["versions"].items()))


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as it is: a narrow terminal breaks its lines, where rich would cut cells off."""
    table.width = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.print(table, crop=False)


def print_figures(console: Console, result: Result) -> None:
    """Print the table of times, ratios, shares of the limit, and errors."""
    results = result.by_key
    on_gpu = any(one.hosts for one in result.series)
    table = Table(title=f"One step on the {result.device}", title_justify="left")
    table.add_column("workload")
    table.add_column("contestant")
    columns = ["time", "q1 - q3", "times fusedstep", "GB/s", "of the limit", "error"]
    for name in columns + (["call"] if on_gpu else []):
        table.add_column(name, justify="right", no_wrap=True)
    for name in result.workloads:
        for one in result.series:
            if one.workload == name and one.samples:
                cells = _cells(one, results)
                table.add_row(name, one.contestant, *cells, *([_host(one)] if on_gpu else []))
        table.add_section()
    print_table(console, table)
    console.print(
        "times fusedstep: the median over the rounds of this time over fusedstep's in the same round, and"
        " quartiles; = where they lie on both sides of 1. of the limit: the speed, where that of the loop"
        " that only moves the same bytes is 1. error: the largest relative difference of the variables from"
        " the definition's after three steps. ~: quartiles too far apart to tell."
    )
    if on_gpu:
        console.print("call: how long the call kept the host.")


def _cells(one: Series, results: Results) -> list[str]:
    spread = one.spread
    limit = share(one, results)
    return [
        f"{time(spread.median)}{' ~' if spread.is_noisy else ''}",
        f"{time(spread.first)} - {time(spread.third)}",
        _ratio(one, results.get((one.workload, FUSEDSTEP))),
        short(workload(one.workload).step_bytes / spread.median / 1e9),
        "" if limit is None else f"{limit:.2f}",
        "" if one.error is None else number(one.error),
    ]


def _ratio(one: Series, ours: Series | None) -> str:
    if ours is None or one is ours:
        return ""
    return ratio(one.ratios(ours))


def _host(one: Series) -> str:
    return time(Spread.of(one.hosts).median) if one.hosts else ""


def print_absent(console: Console, result: Result) -> None:
    """Print who did not take part, and why."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in result.series:
        if one.absent:
            reasons[one.contestant, one.absent].append(one.workload)
    for (contestant, why), where in reasons.items():
        everywhere = len(where) == len(result.workloads)
        on = "" if everywhere else f" ({', '.join(where)})"
        console.print(f"without {contestant}: {why}{on}", markup=False)


def print_call(console: Console, result: Result) -> None:
    """Print what the call itself takes: a step on one element."""
    calls = [one for one in result.series if one.workload == "1x1" and one.samples]
    if calls:
        times = ", ".join(f"{one.contestant} {time(one.median)}" for one in calls)
        console.print(f"The call itself, on one array of one element: {times}.")


def print_means(console: Console, result: Result) -> None:
    """Print what the medians of steps timed one by one leave out."""
    with_means = [one for one in result.series if one.means]
    if not with_means:
        return
    console.print(
        f"In the conditions {', '.join(ONE_BY_ONE)} steps are timed one by one: their median leaves out the"
        " few that were held up, the mean has them. (Python's threads take turns of 5 ms, so with a spinner a"
        " step now and then waits that long, in any program.)"
    )
    for one in with_means:
        times = f"median {time(one.median)}, mean {time(mean(one.means))}"
        console.print(f"  {one.workload}, {one.contestant}: {times}")


def print_noise(console: Console, result: Result) -> None:
    """Print whether the machine was quiet enough."""
    console.print(f"Other programs used {max(result.cores_used_by_others, 0):.2f} cores meanwhile.")
    if result.cores_used_by_others > QUIET:
        console.print("[bold red]That is too much: these figures, the ratios too, are unreliable.[/]")
    noisy = [one for one in result.series if one.samples and one.spread.is_noisy]
    if noisy:
        count = sum(bool(one.samples) for one in result.series)
        console.print(f"{len(noisy)} of {count} times are too noisy to tell (~).")
    for note in result.notes:
        console.print(note, markup=False)


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
    print_table(console, table)
    not_measured = sum(verdict.reached is None for verdict in verdicts)
    if not_measured:
        console.print(f"{not_measured} goals were not measured.")
