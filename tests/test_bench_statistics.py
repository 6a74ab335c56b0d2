"""bench: medians, quartiles, ratios, goals and comparisons, of samples that are told."""

from typing import Any

import pytest

pytest.importorskip("rich", reason="needs the bench extra")

from bench.compare import compare
from bench.contestants import FUSEDSTEP, PYTORCH, SAME_BYTES
from bench.figures import number, ratio, share, short, time
from bench.goals import Goal, judge
from bench.memory import Memory
from bench.result import Result
from bench.series import Series, Spread, by_key


def series(contestant: str, samples: list[float], **more: Any) -> Series:
    return Series("1x64", contestant, 1, samples, **more)


def result(*made: Series) -> Result:
    return Result({"cpu": "some"}, "cpu", list(made))


def test_quartiles() -> None:
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(2.0, 3.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratios_are_of_the_same_round() -> None:
    """Drift that both see cancels: the second machine half is ten times slower, the ratio stays 2."""
    ours, theirs = series(FUSEDSTEP, [1.0, 1.0, 10.0, 10.0]), series(PYTORCH, [2.0, 2.0, 20.0, 20.0])
    assert theirs.ratios(ours) == Spread(2.0, 2.0, 2.0)


def test_ratios_leave_out_rounds_that_one_has_not() -> None:
    ours, slow = series(FUSEDSTEP, [1.0, 2.0, 99.0]), series(PYTORCH, [10.0, 20.0])
    assert slow.over(ours) == 10.0


def test_means_are_compared_with_medians() -> None:
    beside = series(FUSEDSTEP, [1.0, 1.0], means=[3.0, 5.0])
    assert beside.mean_over(series(FUSEDSTEP, [1.0, 1.0])) == 4.0


@pytest.mark.parametrize(("samples", "noisy"), [([1.0, 1.0, 1.1], False), ([1.0, 2.0, 3.0], True)])
def test_noise_is_seen(samples: list[float], noisy: bool) -> None:
    assert Spread.of(samples).is_noisy == noisy


def test_a_ratio_on_both_sides_of_1_says_so() -> None:
    assert ratio(Spread(0.9, 1.05, 1.2)).startswith("= ")
    assert not ratio(Spread(1.1, 1.2, 1.3)).startswith("= ")


def test_the_share_is_that_of_the_yardstick() -> None:
    ours, limit = series(FUSEDSTEP, [2.0, 4.0]), series(SAME_BYTES, [1.0, 2.0])
    assert share(ours, by_key([ours, limit])) == 0.5
    assert share(ours, by_key([ours])) is None


def test_series_without_samples_are_not_compared() -> None:
    assert by_key([Series("1x64", PYTORCH, absent="is not here")]) == {}


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "cannot tell"), (1.01, "cannot tell"), (2.0, "slower"), (0.5, "faster")]
)
def test_two_runs(factor: float, verdict: str) -> None:
    samples = [1.0 + 0.01 * (i % 7) for i in range(30)]
    first = result(series(FUSEDSTEP, samples), series(SAME_BYTES, [0.5] * 30))
    second = result(
        series(FUSEDSTEP, [factor * sample for sample in reversed(samples)]), series(SAME_BYTES, [0.5] * 30)
    )
    change = compare(first, second)["1x64", FUSEDSTEP]
    assert change.verdict == verdict
    assert change.ratio == pytest.approx(factor)
    assert change.low <= change.ratio <= change.high
    assert change.shares is not None
    assert change.shares[0] / change.shares[1] == pytest.approx(factor, rel=0.05)


def test_only_what_both_runs_have_is_compared() -> None:
    assert compare(result(series(FUSEDSTEP, [1.0])), result(series(PYTORCH, [1.0]))) == {}


def test_goals_are_judged() -> None:
    results = by_key([Series("1x64", FUSEDSTEP, 1, [2e-6, 2e-6])])
    verdicts = {verdict.goal: verdict for verdict in judge(results, [])}
    assert verdicts["1x64 takes <= 3 us"].reached is True
    assert verdicts["gpt2 runs at >= 0.9 of same bytes"].reached is None
    slow = by_key([Series("1x64", FUSEDSTEP, 1, [4e-6, 4e-6])])
    assert {verdict.goal: verdict for verdict in judge(slow, [])}["1x64 takes <= 3 us"].reached is False


def test_goals_of_memory_are_judged() -> None:
    reached = [
        [verdict.reached for verdict in judge({}, [memory])][-2:]
        for memory in (Memory("float32", 10, 40, 80, 999_999), Memory("float32", 10, 40, 120, 1_000_001))
    ]
    assert reached == [[True, True], [False, False]]
    assert Goal("a", lambda results: 1.0).at_least == 0


def test_figures_read_well() -> None:
    assert [time(2.5e-6), time(1.234e-2), time(3.0)] == ["2.5 µs", "12.3 ms", "3 s"]
    assert [time(9.996e-4), time(0.9996), time(9.994e-4), time(2000.0)] == ["1 ms", "1 s", "999 µs", "2000 s"]
    assert [short(999.4), short(999.6), short(1234.5), short(0.0123456)] == ["999", "1000", "1234", "0.0123"]
    slow = judge(by_key([Series("10000x64", FUSEDSTEP, 1, [1.234e-3])]), [])
    assert "1234 us" in [verdict.measured for verdict in slow]
    assert [number(0.0), number(3.2e-7)] == ["0", "3e-07"]
