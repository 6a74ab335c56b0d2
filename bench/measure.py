"""Interleaved rounds: every contestant of a group steps in every round, so all see the same machine."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median
from time import perf_counter
from typing import TypeVar

from bench import machine
from bench.conditions import before_each_step, beside
from bench.contestants import DEVICES, YARDSTICKS, Contestant, UnavailableError, make
from bench.contestants.contestant import Timed, first_line, no_collections, nothing
from bench.errors import error, key
from bench.series import Series
from bench.workloads import ONE_BY_ONE, Workload, workload

# A block of small steps, long against the clock and short against what else happens on the machine.
BLOCK_SECONDS = 10e-3
# Beside a spinning thread: Python's threads take turns of 5 ms, and a block sees many turns. A system's turns
# are about as long.
SPINNER_BLOCK_SECONDS = 200e-3
STEPS_OF_A_BLOCK = 10  # where something happens before each
# Uncounted steps before each block. They bring the arrays back into the caches, and outlast the 10 ms
# or so that the threads of another contestant's OpenMP keep spinning.
WARM_UP_SECONDS = 20e-3
# Which pages of memory arrays get moves the time of what fits into the caches by a tenth and more, in
# either direction. So small workloads are made anew some times; large ones average over their pages.
PLACEMENTS, SMALL_BYTES = 6, 100e6
# What takes longer to make, as it compiles, is made once.
SLOW_TO_MAKE = 1.0
# Where time runs out a group ends with this many rounds at least, and whoever takes so many times as long as
# the fastest, and longer than a moment, has had enough then in any case.
FEWEST_ROUNDS, MUCH_SLOWER, MOMENT = 5, 10, 50e-3
# Of what contestants hold: what they may need besides as they are made.
MARGIN = 1.15


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        device: cpu or cuda.
        threads: the threads of a step, for all.
        rounds: the samples of each contestant, at most.
        contestants: who takes part, if available.
    """

    device: str
    threads: int
    rounds: int
    contestants: list[str]


@dataclass(frozen=True)
class Lane:
    """A contestant on a workload, ready to step."""

    series: Series
    made: Contestant
    condition: str
    making: float  # seconds

    def run_block(self) -> None:
        """Warm up, then add a sample; or note in the series why there will be no more."""
        try:
            self._take_sample()
        except Exception as refusal:  # a peer may raise anything
            self.series.absent = first_line(refusal)

    def _take_sample(self) -> None:
        before = before_each_step(self.condition)
        if self.condition == "fresh" and self.made.renew is not None:
            before = self.made.renew
        with beside(self.condition):
            run_for(WARM_UP_SECONDS, self.made, before)
            if self.condition not in ONE_BY_ONE:
                timed = [self.made.time(self.series.steps)]
            elif self.condition in ("spinner", "busy"):
                timed = run_for(SPINNER_BLOCK_SECONDS, self.made)
            else:
                timed = [self.made.time(1, before) for _ in range(STEPS_OF_A_BLOCK)]
        times = [one.seconds for one in timed]
        self.series.samples.append(median(times))
        if self.condition in ONE_BY_ONE:
            self.series.means.append(mean(times))
        hosts = [one.host for one in timed if one.host is not None]
        if hosts:
            self.series.hosts.append(median(hosts))

    def is_hopeless(self, fastest: float) -> bool:
        """Whether more samples would only take others' time."""
        own = self.series.median
        return own > MOMENT and own > MUCH_SLOWER * fastest


def run_for(seconds: float, made: Contestant, before: Callable[[], object] = nothing) -> list[Timed]:
    """Step at least once and for so many seconds; return the time of each step, without what comes before."""
    timed: list[Timed] = []
    begin = perf_counter()
    while not timed or perf_counter() - begin < seconds:
        timed.append(made.time(1, before))
    return timed


class Errors:
    """The contestants' errors; each is computed once."""

    def __init__(self, settings: Settings) -> None:
        """Know none."""
        self._settings = settings
        self._known: dict[tuple[str, Workload], float | UnavailableError] = {}

    def of(self, contestant: str, measured: Workload) -> float | None:
        """The error of a contestant; None of a yardstick, which computes nothing.

        Raises:
            UnavailableError: it cannot take part.
        """
        if contestant in YARDSTICKS:
            return None
        place = contestant, key(measured)
        if place not in self._known:
            try:
                self._known[place] = error(
                    contestant, place[1], self._settings.threads, self._settings.device
                )
            except Exception as refusal:  # a peer may raise anything
                self._known[place] = UnavailableError(first_line(refusal))
        known = self._known[place]
        if isinstance(known, UnavailableError):
            raise known
        return known


def available_bytes(device: str) -> float:
    """How much memory a device has left."""
    if device == "cuda":
        from bench.contestants import cuda

        return cuda.available_bytes()
    return machine.available_bytes()


def prepare(series: Series, measured: Workload, settings: Settings) -> Lane | None:
    """Make a contestant, warm its state and size its blocks; or note in its series why not."""
    if series.absent:
        return None
    begin = perf_counter()
    try:
        if available_bytes(settings.device) < MARGIN * measured.held_bytes:
            raise UnavailableError("too little memory is free")
        made = make(series.contestant, measured, threads=settings.threads, device=settings.device)
        if measured.condition == "fresh" and made.renew is None:
            raise UnavailableError("has no step whose gradients are in other arrays")
        made.time(3)
        each = median(one.seconds for one in run_for(WARM_UP_SECONDS, made))
    except Exception as refusal:  # a peer may raise anything; that is no reason to lose the others' figures
        series.absent = first_line(refusal)
        return None
    alone = measured.condition in ONE_BY_ONE
    series.steps = 1 if alone else max(round(BLOCK_SECONDS / each), 1)
    return Lane(series, made, measured.condition, perf_counter() - begin)


def measure(
    group: list[str], settings: Settings, errors: Errors, deadline: float, tick: Callable[[str], object]
) -> list[Series]:
    """Measure all contestants of the workloads of a group.

    Args:
        group: names of workloads.
        settings: how.
        errors: the errors known so far, and to come.
        deadline: when to end, by perf_counter, after the fewest rounds.
        tick: called with a word on what is going on, after each round with an empty one.
    """
    everyone = [name for name in DEVICES[settings.device] if name in settings.contestants]
    wanted = [
        (Series(measured.name, name), measured) for measured in map(workload, group) for name in everyone
    ]
    for series, measured in wanted:
        tick(f"{measured.name}: {series.contestant} is checked")
        try:
            series.error = errors.of(series.contestant, measured)
        except UnavailableError as refusal:
            series.absent = str(refusal)
    present = [(series, measured) for series, measured in wanted if not series.absent]
    together = sum(MARGIN * measured.held_bytes for _, measured in present)
    if together < available_bytes(settings.device):
        _measure_together(present, settings, deadline, tick)
    else:
        _measure_one_at_a_time(present, settings, deadline, tick)
    return [series for series, _ in wanted]


Wanted = list[tuple[Series, Workload]]
Item = TypeVar("Item")


def shuffled(everyone: list[Item], number: int) -> list[Item]:
    """The order of a round, the same in every run: nobody always steps after the same one."""
    return random.Random(number).sample(everyone, len(everyone))


def _measure_together(
    wanted: Wanted, settings: Settings, deadline: float, tick: Callable[[str], object]
) -> None:
    small = max((measured.held_bytes for _, measured in wanted), default=0) < SMALL_BYTES
    placements = min(PLACEMENTS, settings.rounds) if small and settings.device == "cpu" else 1
    lanes: list[Lane] = []
    kept: list[Lane] = []
    for placement in range(placements):
        if placement == 0 or perf_counter() < deadline:
            # Who is made first gets the holes of the heap, scattered: so each time somebody else.
            turn = placement * len(wanted) // placements
            lanes = list(kept)
            for series, measured in wanted[turn:] + wanted[:turn]:
                if all(lane.series is not series for lane in lanes):
                    tick(f"{measured.name}: {series.contestant} is made")
                    lane = prepare(series, measured, settings)
                    lanes += [lane] if lane else []
            kept = [lane for lane in lanes if lane.making > SLOW_TO_MAKE]
        first_round, last_round = (settings.rounds * p // placements for p in (placement, placement + 1))
        with no_collections():
            for number in range(first_round, last_round):
                enough = number >= FEWEST_ROUNDS
                if enough and perf_counter() > deadline:
                    return
                fastest = min((lane.series.median for lane in lanes if lane.series.samples), default=0.0)
                for lane in shuffled(lanes, number):
                    # Samples are paired by their number: who has missed a round does not come back.
                    present = len(lane.series.samples) == number
                    if present and not (enough and lane.is_hopeless(fastest)):
                        lane.run_block()
                tick("")


def _measure_one_at_a_time(
    wanted: Wanted, settings: Settings, deadline: float, tick: Callable[[str], object]
) -> None:
    """Rounds of contestants that do not fit into the memory together: each is made anew in each round."""
    for number in range(settings.rounds):
        if number >= FEWEST_ROUNDS and perf_counter() > deadline:
            return
        for series, measured in shuffled(wanted, number):
            tick(f"{measured.name}: {series.contestant} is made, alone")
            lane = prepare(series, measured, settings)
            if lane is not None:
                with no_collections():
                    lane.run_block()
            del lane
            if settings.device == "cuda":
                from bench.contestants import cuda

                cuda.give_back_memory()
        tick("")
