"""The command line."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from bench.workloads import GROUPS, MEMORY

NEEDED = ("numpy", "fusedstep", "ml_dtypes", "rich")


def main() -> None:
    """Read the arguments, check what is installed, and run."""
    names = [workload.name for group in GROUPS for workload in group] + [MEMORY]
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure fusedstep's Adam.")
    parser.add_argument("--threads", type=int, default=cores, help="threads of a step (default: all)")
    parser.add_argument("--rounds", type=int, default=30, help="samples of each (default: 30)")
    parser.add_argument("--quick", dest="rounds", action="store_const", const=5, help="5 rounds")
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"only this workload and those measured with it; may be repeated: {', '.join(names)}",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args()
    if options.rounds < 2 or options.threads < 1:
        parser.error("it takes at least 2 rounds and 1 thread")

    for module in NEEDED:
        if importlib.util.find_spec(module) is None:
            sys.exit(f'The benchmark needs {module}, which is not installed: pip install "fusedstep[bench]"')
    # OpenMP reads it as the first library with OpenMP is loaded: before the import.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    from bench.run import run

    run(options.threads, options.rounds, options.only or names, options.output)


if __name__ == "__main__":
    main()
