"""A few steps of every rule, for compute-sanitizer, which slows a GPU down.

Each array has an allocation of its own, so that an access beside it is seen. Most are small; with one a block
takes several slices. The bits must be the CPU's.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import DTYPES, VARIANTS, random_array, with_arguments
from fusedstep import Adam, Optimizer
from gpu.libraries import CuPy, host, on_gpu
from reference import same_bits

SIZES = [0, 1, 17, 4097, 9000]
LARGE = 5_000_000  # more slices than a GPU has blocks, or warps
FEW = ("adam", "lamb")  # of one pass, and of two
OPTIONS: list[dict[str, Any]] = [
    {},
    {"clipnorm": 0.5, "weight_decay": 0.1, "use_ema": True},
    {"global_clipnorm": 0.5, "skip_nonfinite": True, "gradient_accumulation_steps": 2},
]


def at_any_phase(library: CuPy, arrays: list[Any]) -> list[Any]:
    """Put arrays where 16 bytes at a time begin at their first element, or at another one."""
    return [library.array(one, number % 3 * one.itemsize) for number, one in enumerate(arrays)]


def differences(library: CuPy, optimizer: Optimizer, large: bool) -> int:
    """Take two steps on the CPU and the GPU; return how many arrays differ."""
    rng = np.random.default_rng(1)
    twin = with_arguments(optimizer)
    here = [random_array(rng, size, dtype) for size in SIZES for dtype in DTYPES]
    if large:
        here.append(random_array(rng, LARGE, np.float32))
    there = at_any_phase(library, here)
    grads = [random_array(rng, one.size, one.dtype) for one in here]
    on_device = at_any_phase(library, grads[::-1])[::-1]
    for _ in range(2):
        optimizer.apply(grads, here)
        twin.apply(on_device, there)
    return sum(not same_bits(ours, host(theirs)) for ours, theirs in zip(here, there, strict=True))


def differences_of_rows(library: CuPy) -> int:
    """The same with sparse gradients, of rows of several sizes; some indices are of no row."""
    rng = np.random.default_rng(2)
    here, there = Adam(0.01, clipnorm=0.5), Adam(0.01, clipnorm=0.5)
    start = [random_array(rng, (70, size), dtype) for size in (0, 1, 3, 64) for dtype in DTYPES]
    on_cpu, on_device = [one.copy() for one in start], on_gpu(library, start)
    for integers in (np.int32, np.int64):
        grads = [
            (rng.integers(0, 70, 700).astype(integers), random_array(rng, (700, one.shape[1]), one.dtype))
            for one in start
        ]
        here.apply(grads, on_cpu)
        rows = []
        for indices, values in grads:
            outside = np.array([-1, 70], integers)
            more = (
                np.concatenate([indices, outside]),
                np.concatenate([values, np.full_like(values[:2], np.nan)]),
            )
            rows.append(tuple(on_gpu(library, more)))
        there.apply(rows, on_device)
    return sum(not same_bits(ours, host(theirs)) for ours, theirs in zip(on_cpu, on_device, strict=True))


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        description="Take a few steps of every rule, and compare with the CPU's."
    )
    parser.add_argument("--few", action="store_true", help="of two rules, with small arrays")
    few = parser.parse_args().few
    library = CuPy()
    library.cupy.cuda.set_allocator(None)
    different, of_each_rule = differences_of_rows(library), {variant._rule(): variant for variant in VARIANTS}
    rules = {rule: variant for rule, variant in of_each_rule.items() if not few or rule in FEW}
    for rule, variant in rules.items():
        for options in OPTIONS:
            different += differences(library, with_arguments(variant, **options), rule in FEW and not few)
    print(f"{len(rules)} rules, {different} arrays differ from those of the CPU")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
