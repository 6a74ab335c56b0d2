"""The goals, as data, and whether a run reached them."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.contestants import (
    DEEPSPEED,
    FUSEDSTEP,
    KERAS_TORCH,
    NUMPY,
    OURS_KERAS,
    OURS_THINC,
    OURS_TORCH,
    PYTORCH,
    PYTORCH_DEFAULT,
    PYTORCH_FOREACH,
    SAME_BYTES,
)
from bench.figures import short
from bench.memory import Memory
from bench.series import Results

PEERS = [PYTORCH, DEEPSPEED, NUMPY]
ALLOWED_GROWTH = 1_000_000


@dataclass(frozen=True)
class Goal:
    """A bound for something measured."""

    text: str
    measure: Callable[[Results], float]
    at_most: float = float("inf")
    at_least: float = 0.0
    unit: str = "x"


@dataclass(frozen=True)
class Verdict:
    """What came of a goal; None where it was not measured."""

    goal: str
    measured: str
    reached: bool | None


def time(workload: str, ours: str = FUSEDSTEP) -> Callable[[Results], float]:
    """Measure fusedstep's median time in microseconds."""
    return lambda results: 1e6 * results[workload, ours].median


def beside(workload: str, other: str) -> Callable[[Results], float]:
    """Measure how many times as long fusedstep takes as for another workload of the group."""
    return lambda results: results[workload, FUSEDSTEP].over(results[other, FUSEDSTEP])


def mean_beside(workload: str, other: str) -> Callable[[Results], float]:
    """Measure the same with the mean over all steps of the first workload."""
    return lambda results: results[workload, FUSEDSTEP].mean_over(results[other, FUSEDSTEP])


def slower(peer: str, workload: str, ours: str = FUSEDSTEP) -> Callable[[Results], float]:
    """Measure how many times as long as fusedstep a peer takes."""
    return lambda results: results[workload, peer].over(results[workload, ours])


def fastest_slower(peers: list[str], workload: str, ours: str) -> Callable[[Results], float]:
    """Measure how many times as long as fusedstep the fastest of some peers takes."""
    return lambda results: min(slower(peer, workload, ours)(results) for peer in peers)


def over(workload: str, peer: str) -> Callable[[Results], float]:
    """Measure how many times as long as a peer fusedstep takes."""
    return lambda results: results[workload, FUSEDSTEP].over(results[workload, peer])


def share(workload: str) -> Callable[[Results], float]:
    """Measure how fast fusedstep is where the same-bytes loop is 1."""
    return slower(SAME_BYTES, workload)


GOALS = [
    Goal("1000x256 takes <= 1.5x the time of 1x256000", beside("1000x256", "1x256000"), at_most=1.5),
    Goal("1000x256: PyTorch takes >= 50x", slower(PYTORCH, "1000x256"), at_least=50),
    Goal("1000x256: DeepSpeed takes >= 30x", slower(DEEPSPEED, "1000x256"), at_least=30),
    Goal("1000x256-fresh: PyTorch takes >= 20x", slower(PYTORCH, "1000x256-fresh"), at_least=20),
    Goal("10000x64 takes <= 300 us", time("10000x64"), at_most=300, unit=" us"),
    Goal("1x64 takes <= 3 us", time("1x64"), at_most=3, unit=" us"),
    Goal("10000x64-spinner takes <= 3x the quiet time", beside("10000x64-spinner", "10000x64"), at_most=3),
    Goal("1x64-spinner takes <= 3x the quiet time", beside("1x64-spinner", "1x64"), at_most=3),
    Goal(
        "10000x64-spinner takes <= 5x the quiet time in the mean",
        mean_beside("10000x64-spinner", "10000x64"),
        at_most=5,
    ),
    Goal("1x100000: PyTorch takes >= 2.5x", slower(PYTORCH, "1x100000"), at_least=2.5),
    Goal("1x1000000: PyTorch takes >= 1.4x", slower(PYTORCH, "1x1000000"), at_least=1.4),
    Goal("1x1000000: DeepSpeed is not faster", slower(DEEPSPEED, "1x1000000"), at_least=1),
    Goal("resnet50 runs at >= 0.9 of same bytes", share("resnet50"), at_least=0.9),
    Goal("resnet50: PyTorch is not faster", slower(PYTORCH, "resnet50"), at_least=1),
    Goal(
        "resnet50-adamw-clip-ema takes <= 1.25x same bytes",
        over("resnet50-adamw-clip-ema", SAME_BYTES),
        at_most=1.25,
    ),
    Goal(
        "resnet50-adamw-clip-ema: PyTorch takes >= 2x", slower(PYTORCH, "resnet50-adamw-clip-ema"), at_least=2
    ),
    Goal(
        "1000x256-adamw-clip-ema: PyTorch takes >= 50x",
        slower(PYTORCH, "1000x256-adamw-clip-ema"),
        at_least=50,
    ),
    Goal("gpt2 runs at >= 0.9 of same bytes", share("gpt2"), at_least=0.9),
    Goal("gpt2: PyTorch is not faster", slower(PYTORCH, "gpt2"), at_least=1),
    Goal("resnet50-bfloat16 runs at >= 0.85 of same bytes", share("resnet50-bfloat16"), at_least=0.85),
    Goal("gpt2-bfloat16 runs at >= 0.85 of same bytes", share("gpt2-bfloat16"), at_least=0.85),
    Goal(
        "1000x256-adamw: PyTorch takes >= 15x fusedstep.torch",
        slower(PYTORCH, "1000x256-adamw", OURS_TORCH),
        at_least=15,
    ),
    Goal(
        "1000x256-adamw-fresh: PyTorch takes >= 5x fusedstep.torch",
        slower(PYTORCH, "1000x256-adamw-fresh", OURS_TORCH),
        at_least=5,
    ),
    Goal(
        "1000x256-rmsprop: PyTorch takes >= 5x fusedstep.torch",
        fastest_slower([PYTORCH_FOREACH, PYTORCH_DEFAULT], "1000x256-rmsprop", OURS_TORCH),
        at_least=5,
    ),
    Goal(
        "resnet50-adamw: PyTorch is not faster than fusedstep.torch",
        slower(PYTORCH, "resnet50-adamw", OURS_TORCH),
        at_least=1,
    ),
    Goal(
        "gpt2-adamw: PyTorch is not faster than fusedstep.torch",
        slower(PYTORCH, "gpt2-adamw", OURS_TORCH),
        at_least=1,
    ),
    Goal(
        "400x64: Keras takes >= 10x fusedstep.keras", slower(KERAS_TORCH, "400x64", OURS_KERAS), at_least=10
    ),
    Goal("1x64: a call of fusedstep.thinc takes <= 3 us", time("1x64", OURS_THINC), at_most=3, unit=" us"),
]


def judge(results: Results, memory: list[Memory]) -> list[Verdict]:
    """Say for each goal whether it was reached."""
    verdicts = []
    for goal in GOALS:
        try:
            measured = goal.measure(results)
        except KeyError:
            verdicts.append(Verdict(goal.text, "not measured", None))
        else:
            reached = goal.at_least <= measured <= goal.at_most
            verdicts.append(Verdict(goal.text, f"{short(measured)}{goal.unit}", reached))
    for one in memory:
        size = f"{one.variable_bytes / 1e6:.0f} MB of {one.dtype}"
        growth, slots = f"{one.growth / 1e6:.2f} MB", f"{one.slot_bytes / 1e6:.0f} MB"
        verdicts += [
            Verdict(f"{size}: steps allocate < 1 MB", growth, one.growth < ALLOWED_GROWTH),
            Verdict(
                f"{size}: slots take 2 x 4 bytes an element", slots, one.slot_bytes == 2 * 4 * one.elements
            ),
        ]
    return verdicts
