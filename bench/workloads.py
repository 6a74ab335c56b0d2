"""What is measured: lists of shapes, and who steps over them. Data only."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, ...]

FUSEDSTEP = "fusedstep"
PAIRS = "fusedstep, pairs"  # apply_gradients(zip(grads, variables))
PYTORCH = "PyTorch fused"
DEEPSPEED = "DeepSpeed"
NUMPY = "NumPy expression"
SAME_BYTES = "same bytes"

# What a step is.
ADAM = "Adam"
CLIP_EMA = "clip by global norm, AdamW, EMA"


@dataclass(frozen=True)
class Workload:
    """Variables and gradients of one dtype, with Adam's two slots in float32."""

    name: str
    shapes: list[Shape]
    contestants: tuple[str, ...]
    dtype: str = "float32"
    spinner: bool = False  # with a Python thread that never rests beside the steps
    pause: float = 0.0  # seconds of rest before each step
    step: str = ADAM

    @property
    def elements(self) -> int:
        """The elements of all its variables."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def itemsize(self) -> int:
        """The bytes of an element of a variable or gradient."""
        return {"float32": 4, "bfloat16": 2}[self.dtype]

    @property
    def step_bytes(self) -> int:
        """The bytes that any step must move: the gradient in; the variable and two slots in and out.

        With clipping the gradient comes in twice; an average comes in and goes out.
        """
        more = self.itemsize + 2 * 4 if self.step == CLIP_EMA else 0
        return (3 * self.itemsize + 2 * 2 * 4 + more) * self.elements

    @property
    def held_bytes(self) -> int:
        """The bytes of one contestant's variables, gradients and slots."""
        return (2 * self.itemsize + 3 * 4) * self.elements


def resnet50() -> Iterator[Shape]:
    """ResNet-50 (He et al. 2015): each convolution has a batch norm with scale and shift."""

    def convolution(out: int, into: int, size: int) -> Iterator[Shape]:
        yield from ((out, into, size, size), (out,), (out,))

    yield from convolution(64, 3, 7)
    into = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            yield from convolution(width, into, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:  # the shortcut changes width
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield from ((1000, into), (1000,))


def gpt2() -> Iterator[Shape]:
    """GPT-2 with 124 M parameters (Radford et al. 2019); the output shares the embedding."""
    width = 768
    norm = [(width,), (width,)]

    def dense(into: int, out: int) -> list[Shape]:
        return [(into, out), (out,)]

    yield from ((50257, width), (1024, width))
    for _ in range(12):
        yield from (*norm, *dense(width, 3 * width), *dense(width, width))
        yield from (*norm, *dense(width, 4 * width), *dense(4 * width, width))
    yield from norm


RESNET50, GPT2 = list(resnet50()), list(gpt2())

SMALL = (FUSEDSTEP, PAIRS, PYTORCH, DEEPSPEED, NUMPY, SAME_BYTES)
LARGE = (FUSEDSTEP, PYTORCH, DEEPSPEED, SAME_BYTES)
CLIPPING = (FUSEDSTEP, PYTORCH, SAME_BYTES)
ALONE = (
    FUSEDSTEP,
    SAME_BYTES,
)  # in bfloat16 the peers are not compared: PyTorch's slots would be bfloat16, too

PAUSE = 20e-3  # in which the threads of OpenMP fall asleep

# The workloads of one group are measured in the same rounds, so they can be compared with each other.
GROUPS: list[list[Workload]] = [
    [
        Workload("1000x256", [(256,)] * 1000, SMALL),
        Workload("1x256000", [(256_000,)], LARGE),
    ],
    [
        Workload("10000x64", [(64,)] * 10_000, (FUSEDSTEP, PAIRS, SAME_BYTES)),
        Workload("10000x64-spinner", [(64,)] * 10_000, (FUSEDSTEP,), spinner=True),
    ],
    [
        Workload("1x64", [(64,)], SMALL),
        Workload("1x64-spinner", [(64,)], (FUSEDSTEP,), spinner=True),
    ],
    [
        Workload("1000x256-pauses", [(256,)] * 1000, SMALL, pause=PAUSE),
        Workload("1x1000000-pauses", [(1_000_000,)], LARGE, pause=PAUSE),
    ],
    [Workload("1x100000", [(100_000,)], LARGE)],
    [Workload("1x1000000", [(1_000_000,)], LARGE)],
    [Workload("resnet50", RESNET50, LARGE)],
    [Workload("resnet50-bfloat16", RESNET50, ALONE, dtype="bfloat16")],
    [Workload("resnet50-clip-ema", RESNET50, CLIPPING, step=CLIP_EMA)],
    [Workload("1000x256-clip-ema", [(256,)] * 1000, CLIPPING, step=CLIP_EMA)],
    [Workload("gpt2", GPT2, LARGE)],
    [Workload("gpt2-bfloat16", GPT2, ALONE, dtype="bfloat16")],
]

MEMORY = "memory"  # the name of the check in memory.py

assert (len(RESNET50), GROUPS[6][0].elements) == (161, 25_557_032)
assert (len(GPT2), GROUPS[10][0].elements) == (148, 124_439_808)
