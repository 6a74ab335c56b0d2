"""A whole run: measure, print, save."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import fusedstep
from bench import machine, report
from bench.contestants.worker import stop_workers
from bench.measure import Errors, Settings, measure
from bench.memory import measure_memory
from bench.result import Result
from bench.workloads import Group

INTERRUPTED = "It was interrupted"  # so begins the note


def run(
    groups: Sequence[Group],
    settings: Settings,
    *,
    cores: int,
    seconds: float,
    began: float,
    memory: bool,
    console: Console,
    keep: Callable[[Result], object] = lambda result: None,
) -> Result:
    """Measure groups of workloads, with progress on the terminal.

    Args:
        groups: what.
        settings: how.
        cores: the processors that there are for it.
        seconds: after how many seconds to begin no further group, nor rounds beyond the fewest.
        began: since when, by perf_counter.
        memory: whether to measure what steps allocate, too.
        console: where tables go; progress goes to the standard error.
        keep: is given the result so far after each group, so that a run that is killed was not for nothing.
            An interrupt (Ctrl-C) ends the run with what there is by then.
    """
    fusedstep.set_num_threads(settings.threads)
    result = Result(machine.describe(cores, settings.threads, settings.device), settings.device, [])
    report.print_machine(console, result)
    errors = Errors(settings)
    columns = BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    terminal = Console(stderr=True)
    done = 0
    try:
        # Before all else, while nothing big has been freed that the steps could take again unseen.
        result.memory = [measure_memory(dtype) for dtype in ("float32", "bfloat16")] if memory else []
        start, others_before = perf_counter(), machine.others_seconds()
        with Progress(*columns, console=terminal, transient=True) as progress:
            task = progress.add_task("", total=len(groups) * settings.rounds)
            for done, group in enumerate(groups):
                if done and perf_counter() > began + seconds:
                    result.notes.append(
                        f"The time was over before {_names(groups[done:])}: --seconds gives more."
                    )
                    break
                if not terminal.is_terminal:
                    terminal.print(f"{perf_counter() - began:.0f} s: {', '.join(group)}")
                # What is left of the time is shared out evenly among the groups that are left.
                deadline = perf_counter() + max(began + seconds - perf_counter(), 0) / (len(groups) - done)
                rounds = iter(range(1, settings.rounds + 1))

                def tick(
                    word: str, group: Group = group, rounds: Iterator[int] = rounds, done: int = done
                ) -> None:
                    if word:
                        progress.update(task, description=word)
                        return
                    number = next(rounds)
                    progress.update(
                        task,
                        description=f"{', '.join(group)}: round {number}",
                        completed=done * settings.rounds + number,
                    )

                result.series += measure(group, settings, errors, deadline, tick)
                spent = perf_counter() - start
                result.cores_used_by_others = (machine.others_seconds() - others_before) / spent
                keep(result)
    except KeyboardInterrupt:
        result.notes.append(f"{INTERRUPTED} before {_names(groups[done:])} had been measured.")
    stop_workers()
    return result


def was_interrupted(result: Result) -> bool:
    """Whether somebody ended the run."""
    return any(note.startswith(INTERRUPTED) for note in result.notes)


def _names(groups: Sequence[Group]) -> str:
    return ", ".join(name for group in groups for name in group)


def print_result(console: Console, result: Result) -> None:
    """Print everything that a run found."""
    if result.series:
        report.print_figures(console, result)
        report.print_call(console, result)
        report.print_means(console, result)
        report.print_absent(console, result)
        report.print_noise(console, result)


def check_writable(file: Path) -> None:
    """See before anything is measured that there will be a file.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    existed = file.exists()
    file.open("a").close()
    if not existed:
        file.unlink()


def save(result: Result, file: Path) -> None:
    """Write the file, in a folder that may have to be made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    result.save(file)
