"""Everything that needs a GPU: arrays, the clock, fusedstep on CuPy's arrays, its peers, and the yardsticks.

Nothing here has been run on a GPU yet: bench/README.md says what that means. All contestants use the default
stream, so CuPy's events see PyTorch's work, too; JAX has streams of its own, and the host's clock.
"""

import gc
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from statistics import median
from time import perf_counter
from typing import Any

from bench.contestants import expression, optax, ours, pytorch
from bench.contestants.contestant import (
    Array,
    Contestant,
    Given,
    Timed,
    UnavailableError,
    import_peer,
    scaling,
)
from bench.models import Shape
from bench.workloads import Workload, slot_bytes

# Calls that tell how long one keeps the host, with nothing queued before; no more after so many seconds,
# with all that comes before them.
CALLS, CALLS_SECONDS = 5, 0.05

# Copies that keep the GPU busy while steps are queued: the bytes of each, no more seconds than it takes, and
# how many of them a queue has room for beside the steps.
BUSY_BYTES, BUSY_SECONDS, BUSY_COPIES = 1 << 28, 5e-5, 400

ADAM_KERNEL = """
const float gradient = g;
const float mean = b1 * m + (1 - b1) * gradient;
const float square = b2 * v + (1 - b2) * gradient * gradient;
m = mean;
v = square;
p = (float)p - a * mean / (sqrtf(square) * r + e);
"""
MOVE_KERNEL = "p ^= g; const T_SLOT former = m; m = v; v = former"


def describe() -> dict[str, Any]:
    """Return what a GPU's figures depend on."""
    runtime = import_peer("cupy").cuda.runtime
    properties = runtime.getDeviceProperties(0)
    return {
        "name": properties["name"].decode(),
        "memory_bytes": properties["totalGlobalMem"],
        "L2_bytes": properties["l2CacheSize"],
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
    }


def give_back_memory() -> None:
    """Free what libraries keep for later, so that others can have it."""
    gc.collect()
    import_peer("cupy").get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def available_bytes() -> float:
    """Return how much memory the GPU has left."""
    give_back_memory()
    free: int = import_peer("cupy").cuda.runtime.memGetInfo()[0]
    return free


def device_array(shape: Shape, numbers: Array, offset: bool) -> Any:
    """Make a CuPy array of numbers that are repeated; or one that begins an element after an allocation."""
    cupy = import_peer("cupy")
    size, block = math.prod(shape), cupy.asarray(numbers)
    array = cupy.empty(size + offset, block.dtype)[int(offset) :]
    for begin in range(0, size, numbers.size):
        part = array[begin : begin + numbers.size]
        part[...] = block[: part.size]
    return array.reshape(shape)


def event_clock(step: Callable[[], object], steps: int, before: Callable[[], object]) -> Timed:
    """Time steps on the GPU, by CUDA events; and, apart, how long calls keep the host.

    The GPU begins when the steps are queued: else it would wait for the host between short ones.
    """
    cuda, host = import_peer("cupy").cuda, _host_time(step, before)
    begin, end = cuda.Event(), cuda.Event()
    before()
    cuda.runtime.deviceSynchronize()
    _keep_busy(host * steps)
    begin.record()
    for _ in repeat(None, steps):
        step()
    end.record()
    end.synchronize()
    return Timed(cuda.get_elapsed_time(begin, end) / 1e3 / steps, host)


def _keep_busy(seconds: float) -> None:
    """Queue copies that take so long or longer, as far as the queue has room."""
    cupy = import_peer("cupy")
    source, copy = cupy.empty(BUSY_BYTES, "uint8"), cupy.empty(BUSY_BYTES, "uint8")
    copy_async, kind = cupy.cuda.runtime.memcpyAsync, cupy.cuda.runtime.memcpyDeviceToDevice
    for _ in range(min(math.ceil(seconds / BUSY_SECONDS), BUSY_COPIES)):
        copy_async(copy.data.ptr, source.data.ptr, BUSY_BYTES, kind, 0)


def _host_time(step: Callable[[], object], before: Callable[[], object]) -> float:
    """Calls alone: behind a full queue a call would wait for the GPU."""
    runtime, times, began = import_peer("cupy").cuda.runtime, [], perf_counter()
    for _ in range(CALLS):
        before()
        runtime.deviceSynchronize()
        start = perf_counter()
        step()
        times.append(perf_counter() - start)
        if perf_counter() - began > CALLS_SECONDS:
            break
    return median(times)


def _on_gpu(made: Contestant, variables: list[Any]) -> Contestant:
    cupy = import_peer("cupy")
    return replace(made, clock=event_clock, variables=lambda: [cupy.asnumpy(one) for one in variables])


def make_fusedstep(given: Given) -> Contestant:
    """Step over CuPy's arrays in one call."""
    return _on_gpu(ours.make(given), given.variables)


def make_expression(given: Given) -> Contestant:
    """CuPy's expression: a kernel for each operation on each array."""
    made = expression.make(import_peer("cupy"), given, given.variables, given.gradients)
    return _on_gpu(made, given.variables)


def make_elementwise_kernel(given: Given) -> Contestant:
    """cupy.ElementwiseKernel: one kernel for each array."""
    given.refuse(optimizers=("adam",), steps=("plain",))
    cupy, h = import_peer("cupy"), given.definition.arguments
    kernel = cupy.ElementwiseKernel(
        "T g, float32 a, float32 r, float32 b1, float32 b2, float32 e",
        "T p, float32 m, float32 v",
        ADAM_KERNEL,
        "bench_adam",
    )
    slots = [tuple(cupy.zeros(p.shape, "float32") for _ in range(2)) for p in given.variables]
    b1, b2, t = h["beta_1"], h["beta_2"], 0

    def step() -> None:
        nonlocal t
        t += 1
        a, r = given.learning_rate / (1 - b1**t), (1 - b2**t) ** -0.5
        for p, g, (m, v) in zip(given.variables, given.gradients, slots, strict=True):
            kernel(g, a, r, b1, b2, h["epsilon"], p, m, v)

    return _on_gpu(Contestant(step, list, scaling(given.gradients)), given.variables)


def _tensor(array: Any) -> Any:
    """A PyTorch tensor of the same memory."""
    torch, cupy = import_peer("torch"), import_peer("cupy")
    if array.dtype.name == "bfloat16":
        return torch.as_tensor(array.view(cupy.int16), device="cuda").view(torch.bfloat16)
    return torch.as_tensor(array, device="cuda")


def _parameters(given: Given) -> list[Any]:
    torch = import_peer("torch")
    made = []
    for variable, gradient in zip(given.variables, given.gradients, strict=True):
        parameter = torch.nn.Parameter(_tensor(variable))
        # PyTorch clips in place, and the given gradients are needed for errors.
        parameter.grad = _tensor(gradient).clone() if given.workload.reads_twice else _tensor(gradient)
        made.append(parameter)
    return made


def _torch(given: Given, setting: str) -> Contestant:
    given.refuse(steps=("plain", "clip", "clip-ema"))
    params = _parameters(given)
    opt, form = pytorch.optimizer(given, params, setting)
    step = pytorch.step_of(given, params, opt, setting)
    scale, renew = pytorch.scaling_of(given, params, _tensor), pytorch.renewing_of(params)
    return Contestant(step, lambda: pytorch.arrays_of(params), scale, form, event_clock, renew)


def make_torch_ours(given: Given) -> Contestant:
    """fusedstep.torch."""
    return _torch(given, pytorch.OURS)


def make_torch_fused(given: Given) -> Contestant:
    """torch.optim, fused=True."""
    return _torch(given, "fused")


def make_torch_foreach(given: Given) -> Contestant:
    """torch.optim, foreach=True."""
    return _torch(given, "foreach")


def make_torch_default(given: Given) -> Contestant:
    """torch.optim as it comes."""
    return _torch(given, "default")


def make_optax(given: Given) -> Contestant:
    """Optax in one jax.jit, with donation."""
    cupy, jax = import_peer("cupy"), import_peer("jax")
    blocks = [cupy.asnumpy(array.reshape(-1)[: 1 << 20]) for array in (*given.variables, *given.gradients)]
    block_of = dict(zip(map(id, (*given.variables, *given.gradients)), blocks, strict=True))

    def to_device(arrays: list[Any]) -> list[Any]:
        return [jax.numpy.resize(block_of[id(array)], array.shape) for array in arrays]

    begin, finish, made = optax.prepare(given, "gpu", to_device)

    def clock(step: Callable[[], object], steps: int, before: Callable[[], object]) -> Timed:
        before()
        finish()
        start = perf_counter()
        for _ in repeat(None, steps):
            begin()
        finish()
        seconds = (perf_counter() - start) / steps
        before()
        start = perf_counter()
        begin()
        host = perf_counter() - start
        finish()
        return Timed(seconds, host)

    return replace(made, clock=clock)


def _of_parameters(given: Given, opt: Any, params: list[Any]) -> Contestant:
    values = lambda: pytorch.arrays_of(params)  # noqa: E731
    return Contestant(opt.step, values, pytorch.scaling_of(given, params, _tensor), clock=event_clock)


def make_apex(given: Given) -> Contestant:
    """apex.optimizers.FusedAdam."""
    given.refuse(optimizers=("adam", "adamw"), steps=("plain",))
    optimizers, h = import_peer("apex.optimizers"), given.definition.arguments
    params = _parameters(given)
    opt = optimizers.FusedAdam(
        params,
        lr=given.learning_rate,
        betas=(h["beta_1"], h["beta_2"]),
        eps=h["epsilon"],
        adam_w_mode=given.workload.optimizer == "adamw",
        weight_decay=h.get("weight_decay", 0.0),
    )
    return _of_parameters(given, opt, params)


def _bitsandbytes(given: Given, name: str) -> Contestant:
    given.refuse(optimizers=("adam",), steps=("plain",))
    optim, h = import_peer("bitsandbytes").optim, given.definition.arguments
    params = _parameters(given)
    betas = h["beta_1"], h["beta_2"]
    opt = getattr(optim, name)(params, lr=given.learning_rate, betas=betas, eps=h["epsilon"])
    return _of_parameters(given, opt, params)


def make_bitsandbytes(given: Given) -> Contestant:
    """Bitsandbytes with 32-bit slots."""
    return _bitsandbytes(given, "Adam")


def make_bitsandbytes_8_bits(given: Given) -> Contestant:
    """Bitsandbytes with 8-bit slots; arrays of less than 4096 elements keep 32 bits."""
    return _bitsandbytes(given, "Adam8bit")


def _elements(workload: Workload) -> tuple[int, int]:
    """The elements, and the bytes of each, of workloads of one dtype."""
    (itemsize,) = set(workload.itemsizes)
    return workload.elements, itemsize


def make_same_bytes(given: Given) -> Contestant:
    """The yardstick: one kernel that moves a step's bytes, as of one array, and computes nothing."""
    given.refuse(optimizers=("adam", "adamw"), steps=("plain",), dtypes=("float32", "bfloat16", "float16"))
    cupy = import_peer("cupy")
    elements, itemsize = _elements(given.workload)
    unsigned, in_slots = f"uint{8 * itemsize}", f"uint{8 * slot_bytes(itemsize)}"
    kernel = cupy.ElementwiseKernel(
        f"{unsigned} g",
        f"{unsigned} p, {in_slots} m, {in_slots} v",
        MOVE_KERNEL.replace("T_SLOT", "unsigned int"),
        "bench_same_bytes",
    )
    given.variables.clear()  # as much memory is taken again
    given.gradients.clear()
    g, p = cupy.ones(elements, unsigned), cupy.ones(elements, unsigned)
    m, v = cupy.ones(elements, in_slots), cupy.ones(elements, in_slots)
    return Contestant(lambda: kernel(g, p, m, v), list, scaling([]), clock=event_clock)


def make_device_copy(given: Given) -> Contestant:
    """The yardstick that nobody can argue with: the driver's copy, of half a step's bytes, in and out."""
    cupy = import_peer("cupy")
    half = max(given.workload.step_bytes // 2, 1)
    given.variables.clear()
    given.gradients.clear()
    source, copy = cupy.ones(half, "uint8"), cupy.empty(half, "uint8")
    copy_async, kind = cupy.cuda.runtime.memcpyAsync, cupy.cuda.runtime.memcpyDeviceToDevice

    def step() -> None:
        copy_async(copy.data.ptr, source.data.ptr, half, kind, 0)

    return Contestant(step, list, scaling([]), clock=event_clock)


def check() -> None:
    """Raise UnavailableError where no GPU can be used."""
    cupy = import_peer("cupy")
    try:
        cupy.zeros(1)
    except Exception as error:
        raise UnavailableError(f"no GPU can be used: {error}") from error
