"""The program that runs under callgrind: nothing, then some steps of each workload, between two marks."""

import ctypes
import gc
import sys
from collections.abc import Callable
from itertools import repeat

import fusedstep
from bench.contestants import FUSEDSTEP, make
from bench.workloads import workload

Function = Callable[[], object]

WARM_UP = 50


def contestant(name: str) -> tuple[Function, Function | None]:
    """The step of a workload, and what comes before each, if anything."""
    measured = workload(name)
    made = make(FUSEDSTEP, measured, threads=1)
    return made.step, made.renew if measured.condition == "fresh" else None


def main(library: str, steps: str, *names: str) -> None:
    """Step.

    Args:
        library: callgrind.c, compiled.
        steps: how many.
        names: the workloads.
    """
    marks = ctypes.CDLL(library)
    # A function that is looked up for the first time takes thousands of instructions, and not always as many.
    begin, end, pause_or_go_on = marks.begin, marks.end, marks.pause_or_go_on
    fusedstep.set_num_threads(1)
    for name in ("", *names):
        step, renew = contestant(name) if name else (lambda: None, None)
        # The interpreter adapts what it has run some times, and what is called first is looked up.
        for _ in range(WARM_UP):
            step()
        gc.collect()
        gc.disable()
        begin()
        for _ in repeat(None, int(steps)):
            if renew is not None:
                pause_or_go_on()
                renew()
                pause_or_go_on()
            step()
        end()
        gc.enable()


if __name__ == "__main__":
    main(*sys.argv[1:])
