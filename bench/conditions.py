"""What is going on while a step is taken: rests, other data in the caches, other threads and processes."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from time import sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import machine
from bench.contestants.contestant import nothing

PAUSE = 20e-3  # in which the threads of OpenMP fall asleep
MOST_EVICTED = 256 << 20
BUSY = """
import os
while os.getppid() == {}:
    for _ in range(1_000_000):
        pass
"""
STARTS_IN = 50e-3  # that a process which never rests runs for sure


def before_each_step(condition: str) -> Callable[[], object]:
    """What happens before each step, outside of its time."""
    return {"pauses": lambda: sleep(PAUSE), "cold": evict}.get(condition, nothing)


def beside(condition: str) -> AbstractContextManager[None]:
    """What happens beside the steps of a block."""
    if condition == "spinner":
        return spinning_thread()
    return busy_processes() if condition == "busy" else nullcontext()


def evict() -> None:
    """Fill all caches with other data, changed."""
    other = _other_data()
    np.add(other, 1, out=other)


@cache
def _other_data() -> npt.NDArray[Any]:
    largest = max(machine.caches().values(), default=32 << 20)
    return np.zeros(min(2 * largest, MOST_EVICTED) // 8)


@contextmanager
def spinning_thread() -> Iterator[None]:
    """Have a Python thread beside that computes without rest."""
    stop = False

    def spin() -> None:
        while not stop:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


@contextmanager
def busy_processes() -> Iterator[None]:
    """Have a process for every core that computes without rest, as long as this one lives."""
    command = [sys.executable, "-ISc", BUSY.format(os.getpid())]
    processes = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]
    sleep(STARTS_IN)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
