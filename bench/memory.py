"""What a step allocates beyond the optimizer's slots."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from bench.contestants.contestant import start
from bench.optimizers import LEARNING_RATE, OPTIMIZERS
from bench.workloads import workload

ARRAYS = "2x25000000"  # 200 MB of float32 variables
STEPS = 20


@dataclass(frozen=True)
class Memory:
    """The slots' bytes, and by how many the memory of the process grew at most during the steps."""

    dtype: str
    elements: int
    variable_bytes: int
    slot_bytes: int
    growth: int


def measure_memory(dtype: str) -> Memory:
    """Step on contiguous arrays and look at the peak of the process's resident memory."""
    variables, gradients = start(workload(f"{ARRAYS}-{dtype}" if dtype != "float32" else ARRAYS))
    opt = OPTIMIZERS["adam"].build(LEARNING_RATE)
    opt.apply(gradients, variables)
    with contextlib.suppress(OSError):  # where this is forbidden, an earlier peak can only add to the growth
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    for _ in range(STEPS):
        opt.apply(gradients, variables)
    return Memory(
        dtype,
        sum(variable.size for variable in variables),
        sum(variable.nbytes for variable in variables),
        sum(slot.nbytes for slot in opt.variables),
        max(_resident("VmHWM") - before, 0),
    )


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
