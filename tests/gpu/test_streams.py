"""When a step runs: one launch, on the library's stream, and the host waits for nothing."""

import copy
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conftest import Array, random_array
from fusedstep import SGD, Adam, AdamW, ExponentialDecay, Lamb, LossScaleOptimizer, Optimizer
from gpu.libraries import GPU, assert_same, fresh, host, loaded, on_gpu
from reference import Reference, same_bits

pytestmark = GPU

SIZES = [5, 300, 70_000]
SPIN = 'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n); }'
HALF_A_SECOND = 10**9  # in cycles of the GPU's clock, at 2 GHz

# Steps, and how many kernels each of them is.
STEPS: list[tuple[Optimizer, int]] = [
    (SGD(0.1), 1),
    (AdamW(0.01, weight_decay=0.1, use_ema=True, clipvalue=0.5), 1),
    (Adam(0.01, gradient_accumulation_steps=2, loss_scale_factor=8.0), 1),
    (Adam(0.01, global_clipnorm=1.0), 2),
    (Adam(0.01, clipnorm=1.0, skip_nonfinite=True), 2),
    (Lamb(0.01), 2),
    (Lamb(0.01, global_clipnorm=1.0), 3),
]


def arrays(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [random_array(rng, size, np.float32) for size in SIZES]


def load_kernels(library: Any, optimizer: Optimizer) -> None:
    """CUDA loads a kernel when it is launched first, for which it may wait."""
    fresh(optimizer).apply(on_gpu(library, arrays(1)), on_gpu(library, arrays(2)))


def occupier(cupy: Any) -> Callable[[int], None]:
    """What keeps the current stream busy for some cycles; compiled already."""
    spin = cupy.RawKernel(SPIN, "spin")

    def occupy(cycles: int) -> None:
        spin((1,), (1,), (np.int64(cycles),))

    occupy(1)
    cupy.cuda.runtime.deviceSynchronize()
    return occupy


@pytest.mark.parametrize(("optimizer", "kernels"), STEPS, ids=repr)
def test_launches_as_a_graph_has_them(optimizer: Optimizer, kernels: int, cupy: Any) -> None:
    """A captured step is so many kernels, and nothing else: no copy, no memory set."""
    library, runtime = loaded("cupy"), cupy.cuda.runtime
    optimizer, variables, grads = fresh(optimizer), on_gpu(library, arrays(1)), on_gpu(library, arrays(2))
    stream = cupy.cuda.Stream(non_blocking=True)
    runtime.deviceSynchronize()
    with stream:
        optimizer.apply(grads, variables)
        stream.synchronize()
        runtime.streamBeginCapture(stream.ptr, runtime.streamCaptureModeRelaxed)
        try:
            optimizer.apply(grads, variables)
        finally:
            graph = runtime.streamEndCapture(stream.ptr)
    try:
        assert kinds_of_nodes(graph) == kernels * ["kernel"]
    finally:
        runtime.graphDestroy(graph)


def kinds_of_nodes(graph: int) -> list[str]:
    """What a cudaGraph_t, which is a CUgraph, is made of."""
    cuda, count, kind = ctypes.CDLL("libcuda.so.1"), ctypes.c_size_t(), ctypes.c_int()
    assert cuda.cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count)) == 0
    nodes = (ctypes.c_void_p * count.value)()
    if count.value:
        assert cuda.cuGraphGetNodes(ctypes.c_void_p(graph), nodes, ctypes.byref(count)) == 0
    found = []
    for node in nodes:
        assert cuda.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)) == 0
        found.append({0: "kernel", 1: "copy", 2: "memory set"}.get(kind.value, str(kind.value)))
    return found


@pytest.mark.parametrize(("optimizer", "kernels"), STEPS, ids=repr)
def test_launches_as_the_profiler_sees_them(optimizer: Optimizer, kernels: int, torch: Any) -> None:
    """The same for a step that is not captured."""
    library = loaded("torch")
    optimizer, variables, grads = fresh(optimizer), on_gpu(library, arrays(1)), on_gpu(library, arrays(2))
    optimizer.apply(grads, variables)
    seen: list[str] = []
    for _ in range(2):  # the first one makes the profiler ready
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            optimizer.apply(grads, variables)
            torch.cuda.synchronize()
        on_device = torch.autograd.DeviceType.CUDA
        seen = [event.name for event in profile.events() if event.device_type == on_device]
    assert len(seen) == kernels, seen
    assert all("sweep_kernel" in name or "norms_kernel" in name for name in seen), seen


NOT_WAITING: list[Optimizer] = [optimizer for optimizer, _ in STEPS]
NOT_WAITING.append(Adam(ExponentialDecay(0.1, 2, 0.5), skip_nonfinite=True))


@pytest.mark.parametrize("optimizer", NOT_WAITING, ids=repr)
def test_a_step_waits_for_nothing(optimizer: Optimizer, cupy: Any) -> None:
    """Calls return while the stream is still busy with what came before them."""
    library, occupy = loaded("cupy"), occupier(cupy)
    optimizer, start = fresh(optimizer), arrays(1)
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    steps = [arrays(seed) for seed in range(2, 6)]
    on_device = [on_gpu(library, grads) for grads in steps]
    optimizer.apply(on_device[0], variables)  # makes slots, and loads kernels
    optimizer.apply(on_device[1], variables)  # asks the schedule ahead
    cupy.cuda.runtime.deviceSynchronize()
    occupy(HALF_A_SECOND)
    busy_until = cupy.cuda.Event(disable_timing=True)
    busy_until.record()
    for grads in on_device[2:]:
        optimizer.apply(grads, variables)
        _ = optimizer.gradient_norm  # stays on the device
    assert not busy_until.done
    for grads in steps:
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


def test_a_change_of_settings_waits_for_nothing(cupy: Any) -> None:
    """It comes behind the steps that are queued, whatever becomes of the memory it came from."""
    library, occupy, start = loaded("cupy"), occupier(cupy), arrays(1)
    optimizer, twin = SGD(0.1, weight_decay=0.1), SGD(0.1, weight_decay=0.1)
    variables, grads = on_gpu(library, start), arrays(2)
    on_device = on_gpu(library, grads)
    optimizer.apply(on_device, variables)
    twin.apply(grads, start)
    cupy.cuda.runtime.deviceSynchronize()
    occupy(HALF_A_SECOND)
    busy_until = cupy.cuda.Event(disable_timing=True)
    busy_until.record()
    for decay in (0.2, 0.3, 0.4):
        optimizer.weight_decay = decay
        optimizer.apply(on_device, variables)
    assert not busy_until.done
    for decay in (0.2, 0.3, 0.4):
        twin.weight_decay = decay
        twin.apply(grads, start)
    assert all(same_bits(host(theirs), ours) for ours, theirs in zip(start, variables, strict=True))


def test_a_step_runs_on_cupys_current_stream(cupy: Any) -> None:
    library, occupy = loaded("cupy"), occupier(cupy)
    optimizer, start, grads = Adam(0.01), arrays(1), arrays(2)
    variables, on_device = on_gpu(library, start), on_gpu(library, grads)
    reference = Reference(optimizer, start)
    load_kernels(library, optimizer)
    optimizer.build(variables)
    side, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    cupy.cuda.runtime.deviceSynchronize()
    with side:
        occupy(HALF_A_SECOND)
        optimizer.apply(on_device, variables)
    with other:  # which has nothing to wait for
        now = variables[0].get(stream=other)
    assert not side.done
    assert same_bits(now, start[0])
    side.synchronize()
    reference.apply(grads)
    assert_same(optimizer, variables, reference)


def test_a_step_runs_on_pytorchs_current_stream(torch: Any) -> None:
    library = loaded("torch")
    optimizer, start, grads = Adam(0.01), arrays(1), arrays(2)
    variables, on_device = on_gpu(library, start), on_gpu(library, grads)
    reference = Reference(optimizer, start)
    load_kernels(library, optimizer)
    optimizer.build(variables)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(HALF_A_SECOND)
        optimizer.apply(on_device, variables)
        behind = side.record_event()
    with torch.cuda.stream(torch.cuda.Stream()):
        now = variables[0].cpu().numpy()
    assert not behind.query()
    assert same_bits(now, start[0])
    side.synchronize()
    reference.apply(grads)
    assert_same(optimizer, variables, reference)


def test_who_asks_or_sets_comes_behind_the_steps(cupy: Any) -> None:
    """Counts, slots and settings are read and written after the steps before, whatever their stream."""
    library, start = loaded("cupy"), arrays(1)
    optimizer = Adam(0.01, weight_decay=0.5, skip_nonfinite=True)
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    optimizer.build(variables)

    def step(seed: int) -> None:
        optimizer.apply(on_gpu(library, arrays(seed)), variables)
        reference.apply(arrays(seed))

    cupy.cuda.runtime.deviceSynchronize()
    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        step(2)
        assert optimizer.iterations == 1
        for decay in (0.1, 0.2, 0.3):
            optimizer.weight_decay = reference.config["weight_decay"] = decay
            step(3)
        state, slots = optimizer.state_dict(), copy.deepcopy(reference.slots)
        step(4)
        optimizer.load_state_dict(state)
        reference.calls, reference.updates, reference.slots = 4, 4, slots
        step(5)
    assert_same(optimizer, variables, reference)
    assert optimizer.iterations == 5


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_gradients_may_go_right_after_the_call(contiguous: bool, cupy: Any) -> None:
    """Their memory is written again by what is enqueued next, before the step has begun to run."""
    library, occupy = loaded("cupy"), occupier(cupy)
    optimizer, shape = Adam(0.01), (257, 300)
    rng = np.random.default_rng(1)
    start = [random_array(rng, shape, np.float32)]
    variables, reference = on_gpu(library, start), Reference(optimizer, start)
    load_kernels(library, optimizer)
    optimizer.build(variables)
    steps = [random_array(rng, shape, np.float32) for _ in range(8)]
    given = [library.array(gradient if contiguous else gradient.T.copy()) for gradient in steps]
    garbage = cupy.full(shape, np.nan, np.float32)
    cupy.ascontiguousarray(garbage.T)  # compiled
    occupy(HALF_A_SECOND)
    reused = set()
    for gradient in given:
        mine = gradient.copy() if contiguous else gradient.T
        address = mine.data.ptr
        optimizer.apply([mine], variables)
        del mine
        after = cupy.empty(shape, np.float32)
        cupy.copyto(after, garbage)
        reused.add(after.data.ptr == address)
        del after
    if contiguous:
        assert True in reused
    for gradient in steps:
        reference.apply([gradient])
    assert_same(optimizer, variables, reference)


def test_lists_and_numbers_may_go_right_after_the_call(cupy: Any) -> None:
    """What the host passed is with the step: another learning rate, other gradients, the next step."""
    library, occupy = loaded("cupy"), occupier(cupy)
    optimizer, start = SGD(0.5), [np.zeros(1000, np.float32)]
    variables, ones = on_gpu(library, start), on_gpu(library, [np.ones(1000, np.float32)])
    optimizer.apply(ones, variables)
    occupy(HALF_A_SECOND)
    expected = np.float32(-0.5)
    for number in range(1, 100):
        optimizer.learning_rate = 2.0 ** -(number % 7)
        optimizer.apply(list(ones), list(variables))
        expected = expected - np.float32(2.0 ** -(number % 7))
    assert (host(variables[0]) == expected).all()


def test_another_gpu_is_the_current_one(cupy: Any) -> None:
    """The step goes to the GPU, and its stream, that has the arrays."""
    library = loaded("cupy")
    if library.devices < 2:
        pytest.skip("needs two GPUs")
    for optimizer in (Adam(0.01, global_clipnorm=1.0), Lamb(0.01, skip_nonfinite=True)):
        start, grads = arrays(1), arrays(2)
        with cupy.cuda.Device(1):
            variables, on_device = on_gpu(library, start), on_gpu(library, grads)
        reference = Reference(optimizer, start)
        for _ in range(3):
            with cupy.cuda.Device(0):
                optimizer.apply(on_device, variables)
                assert cupy.cuda.runtime.getDevice() == 0
            reference.apply(grads)
        assert_same(optimizer, variables, reference)


def test_what_is_made_of_arrays_is_on_their_gpu(cupy: Any) -> None:
    """Copies of strided gradients, of rows and their indices, and a scaled loss; another GPU is current."""
    library = loaded("cupy")
    if library.devices < 2:
        pytest.skip("needs two GPUs")
    optimizer, start = LossScaleOptimizer(SGD(1.0), 8.0), [np.zeros((3, 4), np.float32)]
    with cupy.cuda.Device(1):
        variables = on_gpu(library, start)
        strided = library.array(np.full((4, 3), 8.0, np.float32)).T
        indices = library.array(np.array([[0, 9], [2, 9], [0, 9]]))[:, 0]
        loss = library.array(np.array(3.0, np.float32))
    optimizer.build(variables)
    with cupy.cuda.Device(0):
        assert float(host(optimizer.scale_loss(loss))) == 24.0
        optimizer.apply([strided], variables)
        optimizer.apply([(indices, strided)], variables)
    assert host(variables[0])[:, 0].tolist() == [-3.0, -1.0, -2.0]


def test_variables_on_two_gpus_and_the_cpu(cupy: Any) -> None:
    library = loaded("cupy")
    if library.devices < 2:
        pytest.skip("needs two GPUs")
    optimizer, start, grads = Adam(0.01, global_clipnorm=1.0), arrays(1), arrays(2)
    reference, variables, given = Reference(optimizer, start), [start[0].copy()], [grads[0]]
    for number in range(2):
        with cupy.cuda.Device(number):
            variables += on_gpu(library, [start[number + 1]])
            given += on_gpu(library, [grads[number + 1]])
    for _ in range(3):
        optimizer.apply(given, variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)
