"""What the subcommands do."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import goals as of_goals
from bench import report
from bench.compare import print_changes
from bench.contestants import (
    DEVICES,
    FUSEDSTEP,
    KERAS_BACKENDS,
    OURS_KERAS,
    PAIRS,
    YARDSTICKS,
    UnavailableError,
)
from bench.measure import Settings
from bench.models import MODELS
from bench.optimizers import OPTIMIZERS
from bench.result import Result, UnreadableResultError
from bench.run import check_writable, print_result, save, was_interrupted
from bench.run import run as measured_run
from bench.workloads import CONDITIONS, DTYPES, SETS, STEPS, Group, UnknownWorkloadError, workload

SLOW_TO_START = {OURS_KERAS, *(f"Keras, {backend}" for backend in KERAS_BACKENDS)}

INTERRUPTED_STATUS = 130  # a shell's for Ctrl-C


def run(options: argparse.Namespace, began: float) -> None:
    """Measure what was chosen."""
    workloads = options.workloads or ["cuda" if options.device == "cuda" else "default"]
    _measure(options, began, workloads, options.peers or ["usual"], options.device)


def goals(options: argparse.Namespace, began: float) -> None:
    """Measure what the goals are about, and judge; or judge a saved run."""
    if options.file is not None:
        result = _load(options.file)
        print_result(_console(), result)
    else:
        peers = options.peers or of_goals.PEERS
        result = _measure(options, began, options.workloads or ["goals"], peers, "cpu", memory=True)
    report.print_verdicts(_console(), of_goals.judge(result.by_key, result.memory))


def _measure(
    options: argparse.Namespace,
    began: float,
    workloads: Group,
    peers: Group,
    device: str,
    memory: bool = False,
) -> Result:
    try:
        if device == "cuda":
            from bench.contestants import cuda

            cuda.check()
        groups = chosen_groups(workloads, options.optimizers, options.dtypes)
        contestants = chosen_contestants(peers, device)
    except (UnavailableError, UnknownWorkloadError) as error:
        sys.exit(str(error))
    try:
        check_writable(options.output)
    except OSError as error:
        sys.exit(f"--output {options.output} cannot be written: {error}")
    settings = Settings(device, options.threads, options.rounds, contestants)
    console = _console()
    result = measured_run(
        groups,
        settings,
        cores=options.cores,
        seconds=options.seconds,
        began=began,
        memory=memory,
        console=console,
        keep=lambda result: save(result, options.output),
    )
    if not result.series:
        sys.exit(result.notes[0])
    print_result(console, result)
    save(result, options.output)
    console.print(f"Every sample is in {options.output}", soft_wrap=True)
    if was_interrupted(result):
        sys.exit(INTERRUPTED_STATUS)
    return result


def compare(options: argparse.Namespace, began: float) -> None:
    """Put two saved runs side by side."""
    print_changes(_console(), _load(options.first), _load(options.second))


def plot(options: argparse.Namespace, began: float) -> None:
    """Draw a saved run."""
    from bench.plot import draw

    try:
        files = draw(_load(options.file), options.folder, options.file)
    except OSError as error:
        sys.exit(f"--folder {options.folder} cannot be written: {error}")
    if not files:
        sys.exit(
            f"{options.file} has nothing to draw: a picture needs a peer beside fusedstep, or COUNTxSIZE with"
            " three numbers of arrays of one size, or with three sizes of one array"
        )
    for file in files:
        print(file)


def list_names(options: argparse.Namespace, began: float) -> None:
    """Print all names."""
    console = _console()
    table = Table("set", "what", "workloads", title="Sets of workloads", title_justify="left")
    for name, (what, groups) in SETS.items():
        table.add_row(name, what, ", ".join(one for group in groups for one in group))
    console.print(table)
    console.print(
        "A workload is arrays[-optimizer][-dtype][-step][-condition]; arrays are COUNTxSIZE or a model:"
        f" {', '.join(MODELS)}."
    )
    for what, names in (
        ("optimizers", OPTIMIZERS),
        ("dtypes", DTYPES),
        ("steps", STEPS),
        ("conditions", CONDITIONS),
    ):
        console.print(f"{what}: {', '.join(names)}")
    for device, entries in DEVICES.items():
        table = Table("contestant", "here", title=f"Contestants on {device}", title_justify="left")
        for name, entry in entries.items():
            missing = entry.missing()
            table.add_row(name, f"needs {', '.join(missing)}" if missing else "yes")
        console.print(table)


def peers(options: argparse.Namespace, began: float) -> None:
    """Make an environment that has all peers."""
    from bench.peers import install

    install(options.folder)


def spacy(options: argparse.Namespace, began: float) -> None:
    """Measure the optimizer's share of spaCy's training."""
    import fusedstep
    from bench.spacy import measure, print_shares

    fusedstep.set_num_threads(options.threads)
    try:
        print_shares(_console(), measure())
    except UnavailableError as error:
        sys.exit(str(error))


def readme(options: argparse.Namespace, began: float) -> None:
    """Write the figures into the README, or check that it has them."""
    from bench.readme import check, write

    check() if options.check else write()


def guard(options: argparse.Namespace, began: float) -> None:
    """Count, and compare with what is stored or store it."""
    from bench.guard import main

    main(options.update)


def chosen_groups(
    names: Group, optimizers: Group | None = None, dtypes: Group | None = None
) -> tuple[Group, ...]:
    """The groups of workloads that are named, by themselves or by a set, each with the optimizers and dtypes.

    Raises:
        UnknownWorkloadError: a name is none.
    """
    groups: tuple[Group, ...] = ()
    seen: set[str] = set()
    for name in names:
        for group in SETS[name][1] if name in SETS else [[name]]:
            found = [
                replace(measured, optimizer=optimizer, dtype=dtype).name
                for measured in map(workload, group)
                for optimizer in optimizers or [measured.optimizer]
                for dtype in dtypes or [measured.dtype]
            ]
            new = [one for one in dict.fromkeys(found) if one not in seen]
            seen.update(new)
            groups += (new,) if new else ()
    for name in seen:
        workload(name)  # an optimizer or a dtype may be unknown
    return groups


def chosen_contestants(peers: Group, device: str) -> Group:
    """Fusedstep, the yardsticks and the peers that are named."""
    entries = DEVICES[device]
    always = [name for name in entries if name in (FUSEDSTEP, PAIRS, *YARDSTICKS)]
    if peers == ["none"]:
        return always
    if peers == ["all"]:
        return [*entries]
    if peers == ["usual"]:
        return [name for name in entries if name not in SLOW_TO_START]
    unknown = [name for name in peers if name not in entries]
    if unknown:
        raise UnknownWorkloadError(f"there is no peer {unknown[0]!r}; there are {', '.join(entries)}")
    return [name for name in entries if name in always or name in peers]


def _load(file: Path) -> Result:
    try:
        return Result.load(file)
    except (OSError, UnreadableResultError) as error:
        sys.exit(str(error))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 130, highlight=False)
