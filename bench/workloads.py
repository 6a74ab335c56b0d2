"""What is measured, as data: arrays, an optimizer, dtypes, a step, and the condition it is taken in.

A workload's name says all of it: ``resnet50-sgd-bfloat16-clip-ema-cold``. What goes without saying (adam,
float32, a plain step in its usual condition) is left out.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property

from bench.models import MODELS, Shape
from bench.optimizers import OPTIMIZERS

# Bytes of an element; "mixed" has matrices in bfloat16 and vectors in float32.
ITEMSIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
DTYPES = [*ITEMSIZES, "mixed"]
# clip: by the norm of all gradients. clip-ema: and an average of the variables. sparse: some rows of each.
STEPS = ["plain", "clip", "clip-ema", "sparse"]
# pauses: a rest before each step. cold: the caches have other data before each step. spinner: beside a Python
# thread that never rests. busy: beside a process on every core that never rests. offset: arrays begin one
# element after a cache line. fresh: each step has its gradients in other arrays than the step before.
CONDITIONS = ["usual", "pauses", "cold", "fresh", "spinner", "busy", "offset"]
ONE_BY_ONE = ["pauses", "cold", "fresh", "spinner", "busy"]  # each step is timed alone

TOUCHED = 16  # a sparse step touches one row in so many


class UnknownWorkloadError(ValueError):
    """No workload has this name."""


@dataclass(frozen=True)
class Workload:
    """Arrays and what is done to them."""

    arrays: str
    optimizer: str = "adam"
    dtype: str = "float32"
    step: str = "plain"
    condition: str = "usual"

    @property
    def name(self) -> str:
        """The name, without what goes without saying."""
        parts = [self.arrays]
        for value, usual in (
            (self.optimizer, "adam"),
            (self.dtype, "float32"),
            (self.step, "plain"),
            (self.condition, "usual"),
        ):
            parts += [value] if value != usual else []
        return "-".join(parts)

    @cached_property
    def shapes(self) -> list[Shape]:
        """The shapes of the variables."""
        if self.arrays in MODELS:
            return MODELS[self.arrays]
        count, size = map(int, self.arrays.split("x"))
        return [(size,)] * count

    @property
    def dtypes(self) -> list[str]:
        """The dtype of each variable and its gradient."""
        if self.dtype == "mixed":
            return ["bfloat16" if len(shape) > 1 else "float32" for shape in self.shapes]
        return [self.dtype] * len(self.shapes)

    @property
    def elements(self) -> int:
        """The elements of all its variables."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def slots(self) -> int:
        """The slots of a variable, an average among them."""
        return OPTIMIZERS[self.optimizer].slots + (self.step == "clip-ema")

    @property
    def reads_twice(self) -> bool:
        """Whether the gradients come in twice: once for their norm."""
        return self.step in ("clip", "clip-ema")

    @cached_property
    def step_bytes(self) -> int:
        """The bytes that any step must move: gradients in, once or twice; variables and slots in and out."""
        total = 0
        for shape, itemsize in zip(self.shapes, self.itemsizes, strict=True):
            elements = math.prod(shape) if self.step != "sparse" else touched(shape) * math.prod(shape[1:])
            gradients = 2 if self.reads_twice else 1
            total += elements * (itemsize * (gradients + 2) + 2 * self.slots * slot_bytes(itemsize))
        return total

    @cached_property
    def held_bytes(self) -> int:
        """The bytes of one contestant's variables, gradients and slots."""
        of_gradients = 2 if self.condition == "fresh" else 1  # the former ones are there as others are made
        return sum(
            math.prod(shape) * ((1 + of_gradients) * itemsize + self.slots * slot_bytes(itemsize))
            for shape, itemsize in zip(self.shapes, self.itemsizes, strict=True)
        )

    @property
    def itemsizes(self) -> list[int]:
        """The bytes of an element of each variable."""
        return [ITEMSIZES[dtype] for dtype in self.dtypes]


def slot_bytes(itemsize: int) -> int:
    """The bytes of a slot's element, where a variable's has so many."""
    return max(itemsize, 4)


def touched(shape: Shape) -> int:
    """How many rows a sparse step touches."""
    return max(shape[0] // TOUCHED, 1)


def workload(name: str) -> Workload:
    """Find the workload of a name.

    Raises:
        UnknownWorkloadError: there is none.
    """
    arrays, *rest = re.split("-", name, maxsplit=1)
    if arrays not in MODELS and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", arrays):
        raise UnknownWorkloadError(f"{name}: there are no arrays {arrays!r}")
    left = "-" + rest[0] if rest else ""
    found = []
    for choices in (OPTIMIZERS, DTYPES, STEPS, CONDITIONS):
        fitting = [choice for choice in choices if re.match(rf"-{choice}(-|$)", left)]
        best = max(fitting, key=len, default=next(iter(choices)))
        found.append(best)
        left = left.removeprefix(f"-{best}")
    if left:
        raise UnknownWorkloadError(f"{name}: nothing is called {left.removeprefix('-')!r} there")
    made = Workload(arrays, *found)
    if made.dtype == "mixed" and set(made.dtypes) == {"float32"}:
        raise UnknownWorkloadError(
            f"{name}: mixed has matrices in bfloat16, of which {arrays} has none; name a model"
        )
    return made


# The workloads of one group are measured in the same rounds, so they can be compared with each other.
Group = list[str]

SIZES = [f"1x{2**k}" for k in range(6, 29, 2)]

SETS: dict[str, tuple[str, list[Group]]] = {
    "default": (
        "what most people want to know",
        [
            ["1x1"],
            ["1000x256"],
            ["resnet50"],
            ["1x1048576"],
            ["mlp-adamw-clip-ema"],
            ["mlp-bfloat16"],
            ["embedding-sparse"],
        ],
    ),
    "goals": (
        "what the project's goals are about",
        [
            ["1000x256", "1x256000"],
            ["1000x256-fresh"],
            ["10000x64", "10000x64-spinner"],
            ["1x64", "1x64-spinner"],
            ["1000x256-pauses", "1x1000000-pauses"],
            ["1x100000"],
            ["1x1000000"],
            ["resnet50"],
            ["resnet50-bfloat16"],
            ["resnet50-adamw-clip-ema"],
            ["1000x256-adamw-clip-ema"],
            ["gpt2"],
            ["gpt2-bfloat16"],
        ],
    ),
    "adapters": (
        "what the adapters' goals are about",
        [
            ["1x64"],
            ["400x64"],
            ["1000x256-adamw"],
            ["1000x256-adamw-fresh"],
            ["1000x256-rmsprop"],
            ["resnet50-adamw"],
            ["gpt2-adamw"],
        ],
    ),
    "call": ("the overhead of the call: steps with nothing to do", [["1x1"], ["1000x1"]]),
    "counts": (
        "the number of arrays",
        [["1x256", "10x256"], ["100x256"], ["1000x256"], ["10000x256"]],
    ),
    "sizes": ("one array, from 64 to 2^28 elements", [[name] for name in SIZES]),
    "models": ("models", [["mlp"], ["resnet50"], ["gpt2"], ["llama1b"]]),
    "steps": (
        "more than a plain step",
        [
            ["resnet50"],
            ["resnet50-clip"],
            ["resnet50-adamw-clip-ema"],
            ["resnet50-mixed"],
            ["embedding-sparse"],
        ],
    ),
    "dtypes": ("dtypes", [[f"resnet50-{dtype}"] if dtype != "float32" else ["resnet50"] for dtype in DTYPES]),
    "optimizers": (
        "every optimizer",
        [[Workload("1x1048576", optimizer).name] for optimizer in OPTIMIZERS],
    ),
    "conditions": (
        "the same arrays in every condition",
        [[Workload("1000x256", condition=condition).name for condition in CONDITIONS]],
    ),
    "cuda": (
        "GPUs",
        [
            ["1x64"],
            ["1000x256", "1000x256-clip"],
            ["1x1000000000"],
            ["1x1000000000-adamw"],
            ["1x1000000000-clip"],
            ["1x1000000000-bfloat16"],
            ["1x1000000000-adamw-bfloat16"],
            ["1x16777216", "1x16777217", "1x16777216-offset"],
            ["1000x256-fresh"],
            ["gpt2", "gpt2-clip"],
            ["10000x64"],  # last: a kernel for each operation on each array takes seconds
        ],
    ),
}
