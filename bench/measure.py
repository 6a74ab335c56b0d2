"""Interleaved rounds: every contestant of a group steps in every round, so all see the same machine."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from statistics import mean, median, quantiles
from time import perf_counter, sleep

from bench.contestants import UnavailableError, make
from bench.machine import available_bytes
from bench.workloads import Workload

# A block of small steps, long against the clock and short against what else happens on the machine.
BLOCK_SECONDS = 10e-3
# Beside a spinning thread: Python's threads take turns of 5 ms, and a block sees many turns.
SPINNER_BLOCK_SECONDS = 200e-3
STEPS_AFTER_PAUSES = 10
# Uncounted steps before each block. They bring the arrays back into the caches, and outlast the 10 ms
# or so that the threads of another contestant's OpenMP keep spinning.
WARM_UP_SECONDS = 20e-3
# Which pages of memory arrays get moves the time of what fits into the caches by a tenth and more, in
# either direction. So small workloads are made anew some times; large ones average over their pages.
PLACEMENTS, SMALL_BYTES = 6, 100e6
# On a slow or busy machine a group ends after this, with this many rounds at least.
GROUP_SECONDS, FEWEST_ROUNDS = 40.0, 5


@dataclass
class Series:
    """The samples of a contestant on a workload in seconds per step, one for each round.

    Attributes:
        workload: the workload's name.
        contestant: the contestant's name.
        steps: how many steps are timed at once; one beside a spinner or after pauses, where times differ.
        samples: the time of a block over its steps, or the median of steps timed one by one.
        means: where steps are timed one by one, the mean of the block's.
        absent: why there are no samples.
    """

    workload: str
    contestant: str
    steps: int = 0
    samples: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    absent: str = ""

    @property
    def median(self) -> float:
        """The median of the samples."""
        return median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the samples."""
        first, _, third = quantiles(self.samples, n=4, method="inclusive")
        return first, third

    def over(self, other: "Series") -> float:
        """How many times as long as the other one: the median of the ratios within each round."""
        return median(self.samples[i] / other.samples[i] for i in self._rounds_with(other))

    def mean_over(self, other: "Series") -> float:
        """The same with the blocks' means in the place of this one's medians."""
        return median(self.means[i] / other.samples[i] for i in self._rounds_with(other))

    def _rounds_with(self, other: "Series") -> range:
        return range(min(len(self.samples), len(other.samples)))


@dataclass(frozen=True)
class Lane:
    """A contestant on a workload, ready to step."""

    series: Series
    step: Callable[[], object]
    spinner: bool
    pause: float

    def run_block(self) -> None:
        """Warm up, then add a sample."""
        if self.spinner:
            with spinning_thread():
                run_for(WARM_UP_SECONDS, self.step)
                self._add(run_for(SPINNER_BLOCK_SECONDS, self.step))
        elif self.pause:
            self._add([time_after(self.pause, self.step) for _ in range(STEPS_AFTER_PAUSES)])
        else:
            run_for(WARM_UP_SECONDS, self.step)
            step, steps = self.step, self.series.steps
            start = perf_counter()
            for _ in repeat(None, steps):
                step()
            self.series.samples.append((perf_counter() - start) / steps)

    def _add(self, times: list[float]) -> None:
        self.series.samples.append(median(times))
        self.series.means.append(mean(times))


def time_after(pause: float, step: Callable[[], object]) -> float:
    """Rest for so many seconds, as while other parts of a program compute; return the time of one step."""
    sleep(pause)
    start = perf_counter()
    step()
    return perf_counter() - start


def run_for(seconds: float, step: Callable[[], object]) -> list[float]:
    """Step at least once and for so many seconds; return the time of each step."""
    times: list[float] = []
    begin = former = perf_counter()
    while not times or former - begin < seconds:
        step()
        now = perf_counter()
        times.append(now - former)
        former = now
    return times


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


def prepare(series: Series, workload: Workload, threads: int) -> Lane | None:
    """Make a contestant, warm its state and size its blocks; or note in its series why not."""
    if series.absent:
        return None
    try:
        if available_bytes() < 2 * workload.held_bytes:  # some copy as they are made
            raise UnavailableError("too little memory is free")
        made = make(
            series.contestant, workload.shapes, dtype=workload.dtype, threads=threads, step=workload.step
        )
    except UnavailableError as error:
        series.absent = str(error)
        return None
    for _ in range(3):
        made.step()
    each = median(run_for(WARM_UP_SECONDS, made.step))
    one_by_one = workload.spinner or workload.pause > 0
    series.steps = 1 if one_by_one else max(round(BLOCK_SECONDS / each), 1)
    return Lane(series, made.step, workload.spinner, workload.pause)


def measure(group: list[Workload], rounds: int, threads: int) -> list[Series]:
    """Measure all contestants of the workloads of a group."""
    wanted = [(Series(workload.name, name), workload) for workload in group for name in workload.contestants]
    small = max(workload.held_bytes for workload in group) < SMALL_BYTES
    placements = min(PLACEMENTS, rounds) if small else 1
    begin = perf_counter()
    for placement in range(placements):
        # Who is made first gets the holes of the heap, scattered: so each time somebody else.
        turn = placement * len(wanted) // placements
        prepared = [prepare(series, workload, threads) for series, workload in wanted[turn:] + wanted[:turn]]
        lanes = [lane for lane in prepared if lane is not None]
        first_round, last_round = (rounds * p // placements for p in (placement, placement + 1))
        gc.collect()
        gc.disable()
        try:
            for number in range(first_round, last_round):
                if number >= FEWEST_ROUNDS and perf_counter() - begin > GROUP_SECONDS:
                    break
                turn = number % len(lanes)  # so that nobody always follows the same one
                for lane in lanes[turn:] + lanes[:turn]:
                    lane.run_block()
        finally:
            gc.enable()
    return [series for series, _ in wanted]
