"""A whole run: measure, judge, print, save."""

import json
import sys
from pathlib import Path
from time import perf_counter

from rich.console import Console

import fusedstep
from bench import machine, report
from bench.contestants import CONTESTANTS, UnavailableError, disagreement
from bench.goals import judge
from bench.measure import Series, measure
from bench.memory import measure_memory
from bench.workloads import FUSEDSTEP, GROUPS, MEMORY, SAME_BYTES


def run(threads: int, rounds: int, names: list[str], output: Path | None) -> None:
    """Measure the groups that have a workload of these names."""
    fusedstep.set_num_threads(threads)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    about = machine.describe(threads, rounds)
    report.print_machine(console, about)

    # Before all else, while nothing big has been freed that the steps could take again unseen.
    memory = [measure_memory(dtype) for dtype in ("float32", "bfloat16")] if MEMORY in names else []
    print("comparing results (DeepSpeed compiles itself the first time)", file=sys.stderr)
    differences = {
        name: _disagreement(name, threads) for name in CONTESTANTS if name not in (FUSEDSTEP, SAME_BYTES)
    }
    report.print_differences(console, differences)

    series: list[Series] = []
    began, others_before = perf_counter(), machine.others_seconds()
    for group in GROUPS:
        if any(workload.name in names for workload in group):
            print("measuring", ", ".join(workload.name for workload in group), file=sys.stderr)
            series += measure(group, rounds, threads)
    others = (machine.others_seconds() - others_before) / (perf_counter() - began)
    verdicts = judge(series, memory)
    if series:
        report.print_figures(console, series)
        report.print_means(console, series)
        report.print_others(console, others)
    report.print_verdicts(console, verdicts)

    if output is not None:
        everything = report.as_json(about, others, differences, series, memory, verdicts)
        output.write_text(json.dumps(everything, indent=1) + "\n")


def _disagreement(name: str, threads: int) -> float | str:
    try:
        return disagreement(name, threads)
    except UnavailableError as error:
        return str(error)
