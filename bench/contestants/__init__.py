"""Who steps: fusedstep, its peers and the yardsticks, by name. A file for each, with arrays of its own."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

from bench.contestants.contestant import Contestant, Given, UnavailableError, host_array, start
from bench.contestants.worker import Worker
from bench.optimizers import LEARNING_RATE
from bench.workloads import Workload

FUSEDSTEP = "fusedstep"
PAIRS = "fusedstep, pairs"  # apply_gradients(zip(grads, variables))
OURS_TORCH, OURS_KERAS, OURS_THINC = "fusedstep.torch", "fusedstep.keras", "fusedstep.thinc"
PYTORCH = "PyTorch fused"
PYTORCH_FOREACH, PYTORCH_DEFAULT = "PyTorch foreach", "PyTorch default"
THINC = "thinc"
DEEPSPEED = "DeepSpeed"
NUMPY = "NumPy expression"
SAME_BYTES = "same bytes"
DEVICE_COPY = "device copy"
CUPY = "CuPy expression"

# And the packages that each needs: NumPy's imports JAX, too.
KERAS_BACKENDS = {
    "jax": ("jax",),
    "torch": ("torch",),
    "tensorflow": ("tensorflow",),
    "numpy": ("numpy", "jax"),
}
KERAS_TORCH = "Keras, torch"


@dataclass(frozen=True)
class Entry:
    """Where a contestant's function is, what it needs, and whether it steps in a process of its own."""

    module: str
    function: str
    needs: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()  # not empty: in a process of its own that has it

    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


CPU: dict[str, Entry] = {
    FUSEDSTEP: Entry("ours", "make"),
    PAIRS: Entry("ours", "make_of_pairs"),
    NUMPY: Entry("numpy", "make"),
    "numba": Entry("numba", "make", ("numba",)),
    OURS_TORCH: Entry("pytorch", "make_ours", ("torch",)),
    PYTORCH: Entry("pytorch", "make_fused", ("torch",)),
    PYTORCH_FOREACH: Entry("pytorch", "make_foreach", ("torch",)),
    PYTORCH_DEFAULT: Entry("pytorch", "make_default", ("torch",)),
    DEEPSPEED: Entry("deepspeed", "make", ("torch", "deepspeed")),
    "optax": Entry("optax", "make", ("jax", "optax")),
    OURS_KERAS: Entry("keras", "make_ours", ("keras", "torch"), (("KERAS_BACKEND", "torch"),)),
    **{
        f"Keras, {backend}": Entry("keras", "make", ("keras", *needs), (("KERAS_BACKEND", backend),))
        for backend, needs in KERAS_BACKENDS.items()
    },
    OURS_THINC: Entry("thinc", "make_ours", ("thinc",)),
    THINC: Entry("thinc", "make", ("thinc",)),
    SAME_BYTES: Entry("same_bytes", "make"),
}

CUDA: dict[str, Entry] = {
    name: Entry("cuda", function, ("cupy", *more))
    for name, (function, *more) in {
        FUSEDSTEP: ("make_fusedstep",),
        CUPY: ("make_expression",),
        "CuPy ElementwiseKernel": ("make_elementwise_kernel",),
        OURS_TORCH: ("make_torch_ours", "torch"),
        PYTORCH: ("make_torch_fused", "torch"),
        PYTORCH_FOREACH: ("make_torch_foreach", "torch"),
        PYTORCH_DEFAULT: ("make_torch_default", "torch"),
        "optax": ("make_optax", "jax", "optax"),
        "apex": ("make_apex", "torch", "apex"),
        "bitsandbytes": ("make_bitsandbytes", "torch", "bitsandbytes"),
        "bitsandbytes, 8 bits": ("make_bitsandbytes_8_bits", "torch", "bitsandbytes"),
        SAME_BYTES: ("make_same_bytes",),
        DEVICE_COPY: ("make_device_copy",),
    }.items()
}

DEVICES = {"cpu": CPU, "cuda": CUDA}
YARDSTICKS = (SAME_BYTES, DEVICE_COPY)

# The conditions that need a second thread or that only matter to fusedstep's own goals.
ONLY_OURS = ("spinner",)


def make(
    name: str, workload: Workload, *, threads: int, device: str = "cpu", learning_rate: float = LEARNING_RATE
) -> Contestant:
    """Make a contestant with fresh arrays.

    Raises:
        UnavailableError: it is not installed, does not build, or has no such step.
    """
    entry = DEVICES[device][name]
    missing = entry.missing()
    if missing:
        raise UnavailableError(f"{' and '.join(missing)} not installed")
    if workload.condition in ONLY_OURS and name != FUSEDSTEP:
        raise UnavailableError("only fusedstep's time beside a spinning thread is asked for")
    if entry.environment and dict(entry.environment).items() - os.environ.items():
        return Worker.of(entry.environment).make(name, workload, threads, device, learning_rate)
    module = importlib.import_module(f"bench.contestants.{entry.module}")
    filled = module.device_array if device == "cuda" else host_array
    given = Given(workload, *start(workload, filled), learning_rate, threads)
    function: Callable[[Given], Contestant] = getattr(module, entry.function)
    return function(given)


__all__ = ["Contestant", "Given", "UnavailableError", "make"]
