"""The program that runs under callgrind: nothing, then some steps of each workload, between two marks."""

import ctypes
import gc
import sys
from itertools import repeat

import fusedstep
from bench.contestants import FUSEDSTEP, make
from bench.workloads import workload


def main(library: str, steps: str, *names: str) -> None:
    """Step.

    Args:
        library: callgrind.c, compiled.
        steps: how many.
        names: the workloads.
    """
    marks = ctypes.CDLL(library)
    fusedstep.set_num_threads(1)
    for name in ("", *names):
        step = make(FUSEDSTEP, workload(name), threads=1).step if name else lambda: None
        for _ in range(3):
            step()
        gc.collect()
        gc.disable()
        marks.begin()
        for _ in repeat(None, int(steps)):
            step()
        marks.end()
        gc.enable()


if __name__ == "__main__":
    main(*sys.argv[1:])
