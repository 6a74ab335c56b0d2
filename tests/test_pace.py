"""How a plan learns from the times of its steps: told times instead of measured ones."""

from collections.abc import Callable

import numpy as np
import pytest

from fusedstep import _native

COST = 1_000_000
THREADS = 4


class Loop:
    """Steps with pauses between them, of times that a function of the threads and the step's number gives."""

    def __init__(self, pause: float, takes: Callable[[int, int], float], undisturbed: bool = True) -> None:
        self.pace, self.pause, self.takes, self.undisturbed = _native.Pace(), pause, takes, undisturbed
        self.now, self.number, self.ways = 0.0, 0, list[int]()

    def run(self, steps: int) -> "Loop":
        for _ in range(steps):
            self.now += self.pause
            threads = self.pace.choose(COST, THREADS, self.now)
            end = self.now + self.takes(threads, self.number)
            self.pace.measured(COST, self.now, end, self.undisturbed)
            self.ways.append(threads)
            self.now, self.number = end, self.number + 1
        return self

    def share_on_one(self, last: int) -> float:
        return self.ways[-last:].count(1) / last


def faster_on_all(threads: int, number: int) -> float:
    return 100e-6 if threads > 1 else 200e-6


def test_steps_use_all_threads_where_that_is_faster() -> None:
    loop = Loop(0, faster_on_all).run(10_000)
    assert set(loop.ways) == {1, THREADS}, "one thread was never tried"
    assert loop.share_on_one(5000) < 0.02


def test_the_other_way_is_tried_for_a_few_steps_first() -> None:
    ways = Loop(0, faster_on_all).run(100).ways
    assert 1 <= ways.count(1) <= 8


FIRST = 9  # steps on all threads: one as after a pause, and 8


def test_the_next_trial_comes_soon_after_one_that_was_won() -> None:
    won, lost = (Loop(0, takes).run(400).ways for takes in (lambda n, i: n * 100e-6, faster_on_all))
    assert set(won[FIRST : FIRST + 8]) == set(lost[FIRST : FIRST + 8]) == {1}
    assert won.index(THREADS, FIRST) < 100
    assert 1 not in lost[FIRST + 8 : 130]


@pytest.mark.parametrize(("on_all", "on_one", "slow"), [(200e-6, 150e-6, 50e-3), (400e-6, 300e-6, 7.8e-3)])
def test_a_trial_that_took_too_long_is_lost_however_fast_most_of_it_was(
    on_all: float, on_one: float, slow: float
) -> None:
    ways = Loop(0, lambda n, i: on_all if n > 1 else slow if i == FIRST + 5 else on_one).run(60).ways
    assert set(ways[FIRST : FIRST + 6]) == {1}
    assert set(ways[FIRST + 6 :]) == {THREADS}


def test_one_bad_sample_in_the_middle_of_a_trial_does_not_lose_it() -> None:
    ways = Loop(0, lambda n, i: 200e-6 if n > 1 else 3e-3 if i == FIRST + 4 else 100e-6).run(60).ways
    assert set(ways[FIRST:]) == {1}


def test_ways_that_take_about_as_long_are_not_exchanged_at_once() -> None:
    ways = Loop(0, lambda n, i: 110e-6 if n == 1 else 100e-6 if i < 20 else 120e-6).run(100).ways
    assert set(ways[FIRST + 8 :]) == {THREADS}


def test_steps_without_a_choice_say_nothing_of_the_ways() -> None:
    """As with one thread, or too large to be worth one."""
    ways = []
    for cost, threads in ((0, 0), (COST, 1), (100 * COST, THREADS)):
        loop = Loop(0, faster_on_all).run(50)
        for _ in range(100 if cost else 0):
            assert loop.pace.choose(cost, threads, loop.now) == threads
            loop.pace.measured(cost, loop.now, loop.now + 1e-3, True)
            loop.now += 1e-3
        ways.append(loop.run(400).ways)
    assert ways[1] == ways[2]
    assert ways[1][:50] == ways[0][:50]


@pytest.mark.parametrize("late", [0.2, 0.5, 0.9])
def test_steps_use_one_thread_where_waking_the_others_takes_longer(late: float) -> None:
    """After a pause some of the steps on all threads wait milliseconds for a thread to wake."""
    draws = np.random.default_rng(0).random(3000)
    loop = Loop(20e-3, lambda n, i: 300e-6 if n == 1 else 8e-3 if draws[i] < late else 150e-6).run(3000)
    assert loop.share_on_one(2000) > 0.95
    assert loop.share_on_one(2000) < 1, "all threads were never tried again"


def test_a_few_good_samples_at_the_beginning_do_not_deceive() -> None:
    """Threads that slept are sometimes awake at once, but mostly the first millisecond is slow."""
    draws = np.random.default_rng(0).random(100)
    loop = Loop(50e-3, lambda n, i: 740e-6 if n == 1 else 650e-6 if draws[i] < 0.25 else 1150e-6).run(80)
    assert loop.share_on_one(64) == 1


def test_what_steps_after_a_pause_take_says_nothing_of_the_others() -> None:
    loop = Loop(20e-3, lambda n, i: 300e-6 if n == 1 else 8e-3).run(1000)
    loop.pause, loop.takes = 0, faster_on_all
    assert loop.run(3000).share_on_one(2000) < 0.02


def test_a_step_held_up_now_and_then_changes_nothing() -> None:
    loop = Loop(0, lambda n, i: 10e-3 if i % 200 == 0 else faster_on_all(n, i)).run(10_000)
    assert loop.share_on_one(5000) < 0.03


def test_a_change_of_what_is_faster_is_found() -> None:
    """Another program takes the other cores for a while, and steps on all threads wait for them."""
    loop = Loop(0, faster_on_all).run(3000)
    loop.takes = lambda n, i: 300e-6 if n == 1 else 8e-3 if i % 3 == 0 else 100e-6
    assert loop.run(3000).share_on_one(1000) > 0.95
    loop.takes = faster_on_all
    assert loop.run(5000).share_on_one(1000) < 0.05


def test_large_steps_always_use_all_threads() -> None:
    pace = _native.Pace()
    for number in range(100):
        assert pace.choose(10**8, THREADS, number) == THREADS
        pace.measured(10**8, number, number + 0.5, True)


def test_long_steps_are_those_above_a_millisecond() -> None:
    assert not Loop(0, lambda n, i: 900e-6).run(100).pace.is_long(COST)
    assert Loop(0, lambda n, i: 1100e-6).run(100).pace.is_long(COST)
    assert not Loop(0, lambda n, i: 900e-6).run(100).pace.is_long(COST // 2)
    assert _native.Pace().is_long(10**8), "the first guess"


def test_a_step_held_up_does_not_make_the_next_one_long() -> None:
    """Else it would release the GIL, wait for it beside a busy thread, and count as long for ever."""
    loop = Loop(0, lambda n, i: 12e-3 if i % 16 < 3 else 300e-6)
    for _ in range(200):
        assert not loop.run(1).pace.is_long(COST)


def test_a_step_that_was_disturbed_says_how_long_it_took_at_most() -> None:
    loop = Loop(0, lambda n, i: 300e-6).run(50)
    loop.takes, loop.undisturbed = lambda n, i: 12e-3, False
    assert not loop.run(1000).pace.is_long(COST)


def test_steps_after_a_pause_do_not_make_steps_long() -> None:
    """A thread that lost the GIL has paused; were its steps long for that, they would lose it for ever."""
    assert not Loop(5e-3, lambda n, i: 4e-3).run(100).pace.is_long(COST)


def test_trials_do_not_make_steps_long() -> None:
    loop = Loop(0, lambda n, i: 600e-6 if n > 1 else 1800e-6)
    for _ in range(1000):
        assert not loop.run(1).pace.is_long(COST)
    assert 1 in loop.ways


def test_trials_of_what_is_a_little_slower_come_seldom() -> None:
    """All steps of a trial count for the time until the next one."""
    loop = Loop(0, lambda n, i: 1e-3 if n == 1 else 2.4e-3).run(500)
    assert loop.ways[: 3 * FIRST].count(1) > 8
    assert loop.ways[3 * FIRST :].count(THREADS) <= 8


@pytest.mark.parametrize("pause", [0, 20e-3])
def test_trials_of_what_is_much_slower_cost_little(pause: float) -> None:
    """Where other programs keep the cores busy, a step on all threads may wait 20 ms for one of them."""
    loop = Loop(pause, lambda n, i: 130e-6 if n == 1 else 22e-3)
    loop.run(20).run(20_000)
    lost = 22e-3 * loop.ways.count(THREADS)
    assert loop.ways.count(THREADS) > 2, "all threads were never tried again"
    assert loop.ways[:20].count(THREADS) <= 2, "after a pause and without"
    assert lost < 0.03 * loop.now + 2 * 22e-3  # the first steps are beside that


def test_a_slow_first_step_does_not_keep_the_next_ones_on_one_thread() -> None:
    """It makes threads and fetches memory: as a trial, it had the next one wait for seconds."""
    loop = Loop(5e-3, lambda n, i: 100e-3 if i == 0 else faster_on_all(n, i)).run(300)
    assert THREADS in loop.ways[1:100]
    assert loop.share_on_one(150) < 0.1


@pytest.mark.parametrize("slow", [8e-3, 20e-3, 100e-3])
def test_all_threads_come_back_soon_after_other_programs_were_busy(slow: float) -> None:
    loop = Loop(10e-3, lambda n, i: 500e-6 if n == 1 else slow).run(3000)
    loop.takes = lambda n, i: 500e-6 if n == 1 else 88e-6
    assert loop.run(2500).share_on_one(200) < 0.1


def test_large_steps_decide_where_plans_of_many_sizes_share_a_pace() -> None:
    """What all threads cost before they begin is little beside a large step, and much beside a small one."""
    pace, now, taken = _native.Pace(), 0.0, {True: 0.0, False: 0.0}
    costs = [int(10**x) for x in np.random.default_rng(0).uniform(4.55, 7.1, 40)]
    for number in range(20_000):
        cost = costs[number % len(costs)]
        on_one, on_all = cost * 0.5e-9, cost * 0.5e-9 / 6 + 300e-6
        threads = pace.choose(cost, 8, now)
        end = now + (on_one if threads == 1 else on_all)
        pace.measured(cost, now, end, True)
        now = end
        if number >= 10_000:
            taken[threads == 1] += cost
    assert taken[False] > 0.9 * sum(taken.values())


def test_small_steps_do_not_make_large_ones_long() -> None:
    """They take longer for their size, from the first after a large one on."""
    pace, now = _native.Pace(), 0.0
    for number in range(210):
        cost, takes = (COST, 300e-6) if number % 21 == 0 else (35_000, 100e-6)
        pace.choose(cost, 1, now)
        pace.measured(cost, now, now + takes, True)
        now += takes
        assert not pace.is_long(COST)
