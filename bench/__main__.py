"""The command line."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

BEGAN = perf_counter()
NEEDED = ("numpy", "fusedstep", "ml_dtypes", "rich")
NEEDED_BY = {"plot": ("matplotlib",), "readme": ("matplotlib",)}
RESULTS = Path("build/bench")


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, check what is installed, and do what is asked."""
    options = _parser().parse_args(arguments)
    for module in (*NEEDED, *NEEDED_BY.get(options.command, ())):
        if importlib.util.find_spec(module) is None:
            sys.exit(f'The benchmark needs {module}, which is not installed: pip install ".[bench]"')
    options.cores = len(os.sched_getaffinity(0))
    if options.command in ("run", "goals", "spacy"):
        prepare_threads(options.threads)
    from bench import commands

    command: Callable[[argparse.Namespace, float], None] = getattr(
        commands, getattr(options, "function", options.command)
    )
    command(options, BEGAN)


def prepare_threads(threads: int) -> None:
    """Give every contestant the same number of threads.

    Libraries read it as they are loaded: from OMP_NUM_THREADS, or as the number of processors that the
    process may use.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    processors = sorted(os.sched_getaffinity(0))
    if threads < len(processors):
        os.sched_setaffinity(0, processors[:threads])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure optimizer steps, beside peers and the machine's limit."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    _add_choices(run, workloads="default, or cuda", peers="usual")
    _add_settings(run, seconds=150)

    goals = commands.add_parser("goals", help="measure what the project's goals are about, and judge")
    goals.add_argument("--from", dest="file", type=Path, metavar="FILE", help="judge a saved run instead")
    _add_choices(goals, workloads="goals", peers="those of the goals")
    _add_settings(goals, seconds=600)

    compare = commands.add_parser("compare", help="two saved runs, side by side")
    compare.add_argument("first", type=Path)
    compare.add_argument("second", type=Path)

    plot = commands.add_parser("plot", help="pictures of a saved run, SVG and PNG")
    plot.add_argument("file", type=Path)
    plot.add_argument("--folder", type=Path, default=RESULTS, help=f"where to (default: {RESULTS})")

    listing = commands.add_parser(
        "list", help="workloads, sets, optimizers, dtypes, and who can take part here"
    )
    listing.set_defaults(function="list_names")

    peers = commands.add_parser("peers", help="make an environment that has all peers")
    peers.add_argument("--folder", type=Path, default=Path(".venv-peers"))

    spacy = commands.add_parser("spacy", help="the optimizer's share of the time in which spaCy trains")
    _add_threads(spacy)

    readme = commands.add_parser("readme", help="the README's figures, from the saved run")
    readme.add_argument("--check", action="store_true", help="fail if the README has others")

    guard = commands.add_parser("guard", help="count instructions and vectorised loops, and compare")
    guard.add_argument(
        "--update", choices=("all", "loops"), help="store the counts instead, or those of loops"
    )
    return parser


def _add_choices(parser: argparse.ArgumentParser, workloads: str, peers: str) -> None:
    for name, text in (
        ("workloads", f"workloads or sets of them (default: {workloads})"),
        ("optimizers", "measure the workloads with each of these"),
        ("dtypes", "measure the workloads in each of these"),
        ("peers", f"by name; usual: all that are quick to start; all; none (default: {peers})"),
    ):
        parser.add_argument(f"--{name}", nargs="+", metavar="NAME", help=text)


def _add_threads(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=_at_least(1), default=cores, help=f"threads of a step (default: {cores}, all)"
    )


def _add_settings(parser: argparse.ArgumentParser, seconds: int) -> None:
    _add_threads(parser)
    parser.add_argument(
        "--rounds", type=_at_least(2), default=30, help="samples of each, at most (default: 30)"
    )
    parser.add_argument(
        "--seconds",
        type=_at_least(1),
        default=seconds,
        help=f"begin nothing more after so long (default: {seconds})",
    )
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%d-%H%M%S")
    file = RESULTS / f"{stamp}.json"
    parser.add_argument("--output", type=Path, default=file, metavar="FILE", help=f"(default: in {RESULTS})")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be {least} at least")
        return int(text)

    return number


if __name__ == "__main__":
    main()
