"""Steps on a simulated GPU: the kernels' own functions, over a grid of threads that take turns.

What these tests see holds for every GPU, but for CUDA itself: whether nvcc compiles the same, and what the
hardware does with many threads at once, is for tests on one (``pytest -m gpu``).
"""

import itertools
import math
import re
import shutil
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from conftest import DTYPES, OPTIONS, STAGES, VARIANTS, random_array, with_arguments
from fusedstep import (
    SGD,
    Adam,
    AdamW,
    ExponentialDecay,
    Ftrl,
    Lamb,
    Nadam,
    Optimizer,
    PiecewiseConstantDecay,
)
from fusedstep._native import DeviceArray, simulation
from reference import Reference, same_bits
from simulated import assert_same, kernels, put

Array = npt.NDArray[Any]

SIZES = [0, 1, 3, 15, 16, 17, 511, 513, 4095, 4096, 4097, 9000]
CASES = list(itertools.product(SIZES, DTYPES))


def gradients_for(rng: np.random.Generator, special: bool = False) -> list[Any]:
    """For CASES: of their variable's dtype or float32, and None here and there."""
    dtypes = [dtype if number % 3 else np.float32 for number, (_, dtype) in enumerate(CASES)]
    found: list[Any] = [
        random_array(rng, size, dtype, special) for (size, _), dtype in zip(CASES, dtypes, strict=True)
    ]
    for number in rng.choice(len(found), len(found) // 5, replace=False):
        found[number] = None
    return found


@pytest.mark.parametrize("stages", STAGES, ids=lambda stages: "+".join(stages) or "bare")
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_every_rule(variant: Optimizer, stages: dict[str, Any], gpus: None) -> None:
    """All sizes and dtypes, alike and mixed, with special values: the reference's bits, in one launch."""
    rng = np.random.default_rng(1)
    optimizer = with_arguments(variant, **stages)
    variables = [random_array(rng, size, dtype, special=size > 100) for size, dtype in CASES]
    on_gpu, reference = put(variables), Reference(optimizer, variables)
    for step in range(3):
        grads = gradients_for(rng, special=True)
        if step == 1:  # alike, for the kernel without stages
            grads = [random_array(rng, size, dtype) for size, dtype in CASES]
        given = put(grads)
        simulation.take_events()
        optimizer.apply(given, on_gpu)
        if step > 0:
            alone = step == 1 and not stages and not optimizer.weight_decay
            alone_or_not = ["bare"] if alone else ["staged"]
            assert kernels() == (["staged", "second"] if isinstance(optimizer, Lamb) else alone_or_not)
        reference.apply(grads)
    assert_same(optimizer, on_gpu, reference)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("cls", [Adam, SGD, Lamb, Nadam])
def test_every_option(cls: type[Optimizer], options: dict[str, Any], blocks: int) -> None:
    """Norms, averages, sums over calls and calls left out, decided there; the host asks for nothing."""
    rng = np.random.default_rng(2)
    optimizer = cls(0.01, **options)
    variables = [random_array(rng, size, dtype) for size, dtype in CASES]
    on_gpu, reference = put(variables), Reference(optimizer, variables)
    wants_norms = bool(options.keys() & {"clipnorm", "global_clipnorm", "skip_nonfinite"})
    for step in range(7):
        grads = gradients_for(rng, special=step % 3 == 2)
        given = put(grads)
        simulation.take_events()
        optimizer.apply(given, on_gpu)
        if step > 0:
            done = kernels()
            assert set(done) <= {"norms", "staged", "second"}, "no copy, no waiting, no memory in a step"
            assert done.count("norms") <= wants_norms
            assert done.count("staged") == 1
        reference.apply(grads)
    assert optimizer.iterations == reference.updates
    assert optimizer.skipped_calls == reference.skips
    assert_same(optimizer, on_gpu, reference)


@pytest.mark.parametrize("clip", [{"global_clipnorm": 2.0}, {"clipnorm": 0.5}, {"skip_nonfinite": True}])
def test_the_norm_stays_there(clip: dict[str, Any], gpus: None) -> None:
    rng = np.random.default_rng(3)
    sizes = [100, 4097, 0, 70_000]
    variables = [random_array(rng, size, np.float32) for size in sizes]
    optimizer = SGD(0.01, **clip)
    on_gpu, reference = put(variables), Reference(optimizer, variables)
    for _ in range(2):
        grads = [random_array(rng, size, np.float32) for size in sizes]
        optimizer.apply(put(grads), on_gpu)
        reference.apply(grads)
    norm = optimizer.gradient_norm
    assert isinstance(norm, DeviceArray)
    assert norm.shape == ()
    assert norm.dtype == np.float64
    assert norm.copy() == reference.norm


def test_large_norms_and_many_leaves(gpus: None) -> None:
    """More leaves than one leaf of the tree takes, more arrays than that, and squares beyond float32."""
    rng = np.random.default_rng(4)
    sizes = [4096 * 4096 + 5000] + [3] * 5000
    variables = [np.zeros(size, np.float32) for size in sizes]
    grads = [random_array(rng, size, np.float32) for size in sizes]
    grads[7][1] = 1e25
    optimizer = SGD(1.0, global_clipnorm=1.0)
    on_gpu, here = put(variables), [variable.copy() for variable in variables]
    optimizer.apply(put(grads), on_gpu)
    twin = SGD(1.0, global_clipnorm=1.0)
    twin.apply(grads, here)
    assert optimizer.gradient_norm.copy() == twin.gradient_norm
    assert all(same_bits(a.copy(), b) for a, b in zip(on_gpu, here, strict=True))


@pytest.mark.parametrize("count", [1, 3999, 4000, 4001, 10_000])
def test_many_arrays(count: int, gpus: None) -> None:
    """A launch for each 4000 arrays, one kernel more for norms; empty ones among them."""
    rng = np.random.default_rng(5)
    variables = [random_array(rng, number % 4, np.float32) for number in range(count)]
    here = [variable.copy() for variable in variables]
    grads = [random_array(rng, number % 4, np.float32) for number in range(count)]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["bare"]),
        ({"global_clipnorm": 0.1}, ["norms", "staged"]),
    ]
    for arguments, each in cases:
        optimizer, twin = Adam(0.01, **arguments), Adam(0.01, **arguments)
        on_gpu, given = put(here), put(grads)
        optimizer.build(on_gpu)
        simulation.take_events()
        optimizer.apply(given, on_gpu)
        assert kernels() == [kernel for kernel in each for _ in range(math.ceil(count / 4000))]
        twin.apply(grads, variables)
        assert all(same_bits(a.copy(), b) for a, b in zip(on_gpu, variables, strict=True))
        here = [variable.copy() for variable in variables]


@pytest.mark.parametrize("sizes", [[0], [0, 5], [5, 0], [0, 0, 5, 0, 5000, 0], [5, 0, 0]], ids=str)
@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 0.1, "use_ema": True}, {"skip_nonfinite": True}])
def test_empty_arrays_anywhere(sizes: list[int], options: dict[str, Any], gpus: None) -> None:
    rng = np.random.default_rng(6)
    optimizer = Adam(0.01, **options)
    variables = [random_array(rng, size, np.float32) for size in sizes]
    on_gpu, reference = put(variables), Reference(optimizer, variables)
    for _ in range(3):
        grads = [random_array(rng, size, np.float32) for size in sizes]
        optimizer.apply(put(grads), on_gpu)
        reference.apply(grads)
    assert optimizer.iterations == 3
    assert_same(optimizer, on_gpu, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "clipnorm": 1.0}], ids=["bare", "staged"])
def test_odd_offsets(dtype: Any, options: dict[str, Any], gpus: None) -> None:
    """Variables and gradients at every phase of 16 bytes, together and apart."""
    rng = np.random.default_rng(7)
    itemsize = np.dtype(dtype).itemsize
    for size, cls in itertools.product([1, 5, 513, 4097, 8200], [Adam, Lamb]):
        optimizer = cls(0.01, **options)
        offsets = [(a * itemsize, b * itemsize) for a in range(16 // itemsize) for b in (0, 1, a)]
        variables = [random_array(rng, size, dtype) for _ in offsets]
        on_gpu = [
            simulation.array_on(0, v, offset) for v, (offset, _) in zip(variables, offsets, strict=True)
        ]
        reference = Reference(optimizer, variables)
        for _ in range(2):
            grads = [random_array(rng, size, dtype) for _ in offsets]
            optimizer.apply(
                [simulation.array_on(0, g, offset) for g, (_, offset) in zip(grads, offsets, strict=True)],
                on_gpu,
            )
            reference.apply(grads)
        assert_same(optimizer, on_gpu, reference)


def test_a_replayed_graph_trains_on(gpus: None) -> None:
    """Counts, sums over calls, skips and the learning rate advance on the device."""
    rng = np.random.default_rng(8)
    options: dict[str, Any] = {
        "gradient_accumulation_steps": 2,
        "skip_nonfinite": True,
        "use_ema": True,
    }
    optimizer, variable = Nadam(0.01, **options), random_array(rng, 5000, np.float32)
    on_gpu, gradient = simulation.array_on(0, variable), simulation.array_on(0, np.ones(5000, np.float32))
    reference = Reference(optimizer, [variable])
    optimizer.build([on_gpu])
    simulation.begin_capture()
    optimizer.apply([gradient], [on_gpu])
    simulation.end_capture()
    assert optimizer.iterations == 0, "a capture runs nothing"
    for step in range(9):
        grads = random_array(rng, 5000, np.float32)
        if step in (3, 4):
            grads[17] = np.nan
        gradient.assign(grads)
        if step == 5:
            optimizer.learning_rate = 0.5
            reference.config["learning_rate"] = 0.5
        simulation.replay()
        reference.apply([grads])
    assert (optimizer.iterations, optimizer.skipped_calls) == (reference.updates, reference.skips) == (3, 2)
    assert_same(optimizer, [on_gpu], reference)
    optimizer.apply([gradient], [on_gpu])  # and without the graph
    reference.apply([gradient.copy()])
    assert_same(optimizer, [on_gpu], reference)


def test_settings_change_without_waiting(gpus: None) -> None:
    """They are written in the stream's order, before the next step; for graphs that are replayed, at once."""
    optimizer = SGD(1.0)
    on_gpu, gradient = put([np.zeros(3), np.ones(3)])
    optimizer.build([on_gpu])
    optimizer.apply([gradient])
    simulation.take_events()
    optimizer.adjust(on_gpu, learning_rate_multiplier=0.5)
    assert kernels() == []
    optimizer.apply([gradient])
    optimizer.apply([gradient])
    assert kernels() == ["write in order", "bare", "bare"]
    assert on_gpu.copy().tolist() == [-2.0] * 3
    optimizer.adjust(on_gpu, learning_rate_multiplier=2.0)
    simulation.begin_capture()
    optimizer.apply([gradient])
    simulation.end_capture()
    simulation.replay()
    assert on_gpu.copy().tolist() == [-4.0] * 3
    simulation.take_events()
    optimizer.adjust(on_gpu, learning_rate_multiplier=0.5)
    assert kernels() == ["write"]
    simulation.replay()
    assert on_gpu.copy().tolist() == [-4.5] * 3


def capture(work: Callable[[], object]) -> None:
    simulation.begin_capture()
    try:
        work()
    finally:
        simulation.end_capture()


def test_more_settings_after_a_capture(gpus: None) -> None:
    """A graph reads them where it found them, however many there are."""
    optimizer, on_gpu, ones = SGD(1.0), put([np.zeros(3)] * 3), put([np.ones(3)] * 3)
    optimizer.build(on_gpu)
    capture(lambda: optimizer.apply(ones))
    for k, multiplier in ((1, 0.5), (2, 0.25)):
        optimizer.adjust(on_gpu[k], learning_rate_multiplier=multiplier)
    simulation.replay()
    assert [variable.copy().tolist() for variable in on_gpu] == [[-1.0] * 3, [-0.5] * 3, [-0.25] * 3]


def test_settings_change_right_before_a_capture(gpus: None) -> None:
    """The simulation refuses what steps before the capture could still see: they may run as late as that."""
    optimizer = SGD(1.0)
    on_gpu, gradient = put([np.zeros(3), np.ones(3)])
    for decay in (0.0, 0.5):
        optimizer.weight_decay = decay
        optimizer.apply([gradient], [on_gpu])
    optimizer.weight_decay = 0.25
    capture(lambda: optimizer.apply([gradient]))
    optimizer.weight_decay = 0.5
    simulation.replay()
    twin, w = SGD(1.0), np.zeros(3)
    for decay in (0.0, 0.5, 0.5):
        twin.weight_decay = decay
        twin.apply([np.ones(3)], [w])
    assert same_bits(on_gpu.copy(), w)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda optimizer, _: optimizer.iterations, "asking what steps have counted"),
        (lambda optimizer, _: setattr(optimizer._plan, "calls", 5), "a graph is captured"),
        (lambda optimizer, w: optimizer.adjust(w[0], learning_rate_multiplier=0.5), "a change of settings"),
        (lambda optimizer, w: optimizer.adjust(w[0], weight_decay=0.5), "a change of settings"),
        (lambda optimizer, w: optimizer.build(w[1:]), "making slots"),
    ],
)
def test_what_would_wait_is_refused_while_a_graph_is_captured(
    change: Callable[[Adam, list[DeviceArray]], object], what: str, gpus: None
) -> None:
    """And the capture goes on: CUDA would end it."""
    optimizer, twin, w = Adam(0.1), Adam(0.1), np.ones(3)
    on_gpu, gradient, another = put([np.ones(3)] * 3)
    optimizer.build([on_gpu])

    def work() -> None:
        optimizer.apply([gradient])
        with pytest.raises((RuntimeError, ValueError), match=what):
            change(optimizer, [on_gpu, another])
        optimizer.learning_rate = 0.5

    capture(work)
    simulation.replay()
    twin.learning_rate = 0.5
    twin.apply([np.ones(3)], [w])
    assert same_bits(on_gpu.copy(), w)
    assert optimizer.iterations == 1


def test_a_first_step_cannot_be_captured(gpus: None) -> None:
    optimizer = Adam(0.1)
    on_gpu, gradient = put([np.ones(3), np.ones(3)])
    sentence = re.escape(
        "Adam.build: a graph is captured, and making slots would have to wait for the GPU; build("
    )

    def work() -> None:
        with pytest.raises(RuntimeError, match=sentence):
            optimizer.apply([gradient], [on_gpu])

    capture(work)
    assert optimizer.apply([gradient], [on_gpu]) == 1


def test_a_schedule_cannot_be_captured(gpus: None) -> None:
    optimizer = SGD(lambda step: 0.1)
    on_gpu, gradient = put([np.ones(3), np.ones(3)])
    optimizer.build([on_gpu])
    simulation.begin_capture()
    with pytest.raises(ValueError, match="learning_rate is a schedule or a callable, which a graph"):
        optimizer.apply([gradient], [on_gpu])
    simulation.end_capture()
    assert optimizer.apply([gradient], [on_gpu]) == 1


SCHEDULES: list[Callable[[], Any]] = [
    lambda: ExponentialDecay(0.5, 3, 0.9),
    lambda: PiecewiseConstantDecay([4, 300], [0.5, 0.25, 0.125]),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cls", [Adam, Lamb, SGD])
def test_a_schedule_is_asked_ahead_where_the_device_counts(
    cls: type[Optimizer], schedule: Callable[[], Any], gpus: None
) -> None:
    """One wait for 256 steps, whichever of them are left out."""
    rng = np.random.default_rng(14)
    here, there = cls(schedule(), skip_nonfinite=True), cls(schedule(), skip_nonfinite=True)
    w = random_array(rng, 40, np.float32)
    on_gpu, gradient = put([w, w])
    there.build([on_gpu])
    waits = []
    simulation.take_events()
    for step in range(600):
        grads = random_array(rng, 40, np.float32)
        if step % 7 == 3 or 250 < step < 260:
            grads[step % 40] = np.nan
        gradient.assign(grads)
        simulation.take_events()
        there.apply([gradient])
        waits += [step for what, _, _ in simulation.take_events() if what == "read"]
        here.apply([grads], [w])
    assert waits == [1, 257, 513]
    assert same_bits(on_gpu.copy(), w)
    assert (there.iterations, there.skipped_calls) == (here.iterations, here.skipped_calls)


def test_rates_that_were_asked_ahead_are_forgotten_with_what_they_depend_on(gpus: None) -> None:
    schedule, pieces = ExponentialDecay(0.5, 3, 0.9), PiecewiseConstantDecay([7], [2.0, 1.0])
    here, there = SGD(schedule, skip_nonfinite=True), SGD(schedule, skip_nonfinite=True)
    w = np.zeros(3)
    on_gpu, gradient = put([w, np.ones(3)])
    changes: list[Callable[[SGD, Any], object]] = [
        lambda _, __: setattr(schedule, "decay_rate", 0.5),
        lambda one, _: setattr(one, "learning_rate", pieces),
        lambda _, __: pieces.values.__setitem__(1, 3.0),
        lambda one, variable: one.adjust(variable, learning_rate_multiplier=0.5),
        lambda one, _: setattr(one, "learning_rate", 0.125),
        lambda one, _: setattr(one, "learning_rate", lambda step: step / 8),
        lambda one, _: one.load_state_dict(one.state_dict()),
    ]
    for change in changes:
        for _ in range(3):
            here.apply([np.ones(3)], [w])
            there.apply([gradient], [on_gpu])
            assert same_bits(on_gpu.copy(), w)
        change(here, w)
        change(there, on_gpu)
    assert there.iterations == here.iterations == 21


def test_a_rate_ahead_that_is_refused_is_refused_in_its_turn(gpus: None) -> None:
    optimizer = Ftrl(PiecewiseConstantDecay([3], [0.5, 0.0]), skip_nonfinite=True)
    on_gpu, gradient = put([np.zeros(3), np.ones(3)])
    for _ in range(4):
        optimizer.apply([gradient], [on_gpu])
    for _ in range(2):
        with pytest.raises(ValueError, match="learning_rate must not be 0"):
            optimizer.apply([gradient], [on_gpu])
    assert optimizer.iterations == 4


def test_a_learning_rate_on_the_device(gpus: None) -> None:
    rate = simulation.array_on(0, np.array(0.5))
    optimizer = SGD(rate)
    on_gpu, gradient = put([np.ones(3), np.ones(3)])
    optimizer.apply([gradient], [on_gpu])
    rate.assign(np.array(0.25))
    simulation.take_events()
    optimizer.apply([gradient], [on_gpu])
    assert kernels() == ["bare"]
    assert on_gpu.copy().tolist() == [0.25, 0.25, 0.25]
    elsewhere = SGD(simulation.array_on(1, np.array(0.5)))
    with pytest.raises(ValueError, match="learning_rate is on cuda:1, but there are variables on another"):
        elsewhere.apply([gradient], [on_gpu])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("places", [[0, 1, 0, 1], [None, 0, None, 0], [0, None, 1, 0]], ids=str)
def test_several_devices(places: list[int | None], options: dict[str, Any], gpus: None) -> None:
    """Variables on two GPUs and on the CPU, in one optimizer: one launch each, and one norm over all."""
    rng = np.random.default_rng(9)
    sizes = [100, 5000, 4096, 30_000]
    optimizer = AdamW(0.01, **options)
    variables = [random_array(rng, size, np.float32) for size in sizes]

    def spread(arrays: Sequence[Array]) -> list[Any]:
        return [
            array.copy() if place is None else simulation.array_on(place, array)
            for array, place in zip(arrays, places, strict=True)
        ]

    spread_variables, reference = spread(variables), Reference(optimizer, variables)
    for step in range(5):
        grads = [random_array(rng, size, np.float32) for size in sizes]
        if step == 2:
            grads[1][5] = np.inf
        given = spread(grads)
        simulation.take_events()
        optimizer.apply(given, spread_variables)
        reference.apply(grads)
        if step > 0 and not optimizer.skipped:
            launched = [(what, device) for what, device, _ in simulation.take_events() if what != "read"]
            devices = {place for place in places if place is not None}
            assert {device for _, device in launched} == devices
            assert len(launched) == len(set(launched))
    assert optimizer.iterations == reference.updates
    assert_same(optimizer, spread_variables, reference)


@pytest.mark.parametrize("cls", [Adam, Nadam, Lamb])
def test_state_moves_between_cpu_and_gpu(cls: type[Optimizer], gpus: None) -> None:
    rng = np.random.default_rng(10)
    sizes = [17, 5000]
    variables = [random_array(rng, size, np.float32) for size in sizes]
    here, there, back = cls(0.01, use_ema=True), cls(0.01, use_ema=True), cls(0.01, use_ema=True)
    reference = Reference(here, variables)
    current: list[Any] = variables
    for optimizer, place in ((here, None), (there, 0), (back, None)):
        values = [array.copy() for array in current]
        current = values if place is None else put(values)
        optimizer.build(current)
        for _ in range(2):
            grads = [random_array(rng, size, np.float32) for size in sizes]
            optimizer.apply(grads if place is None else put(grads), current)
            reference.apply(grads)
        state = optimizer.state_dict()
        following = {id(here): there, id(there): back}.get(id(optimizer))
        if following is not None:
            following.load_state_dict(state)
    assert back.iterations == reference.updates == 6
    assert_same(back, current, reference)


def test_settings_replicas_and_final_averages(gpus: None) -> None:
    rng = np.random.default_rng(11)
    options: dict[str, Any] = {"use_ema": True, "weight_decay": 0.1}
    variables = [random_array(rng, 5000, np.float32) for _ in range(3)]
    here, there = Adam(0.01, **options), Adam(0.01, **options)
    on_cpu, on_gpu = [variable.copy() for variable in variables], put(variables)
    here.build(on_cpu)
    there.build(on_gpu)
    for optimizer, arrays in ((here, on_cpu), (there, on_gpu)):
        optimizer.adjust(arrays[1], learning_rate_multiplier=0.5, weight_decay=0.0)
        optimizer.adjust(arrays[2], frozen=True)
    for _ in range(3):
        replicas = [[random_array(rng, 5000, np.float32) for _ in range(3)] for _ in range(3)]
        replicas[1][0] = None  # type: ignore[call-overload]
        here.apply(variables=on_cpu, replicas=replicas, mean=True)
        there.apply(variables=on_gpu, replicas=[put(one) for one in replicas], mean=True)
    assert all(same_bits(a.copy(), b) for a, b in zip(on_gpu, on_cpu, strict=True))
    here.finalize_variable_values()
    there.finalize_variable_values()
    assert all(same_bits(a.copy(), b) for a, b in zip(on_gpu, on_cpu, strict=True))


def test_former_gradients_come_again(gpus: None) -> None:
    """The very arrays of an earlier step, after a step that had others in another order."""
    start = [np.zeros(500, np.float32) for _ in range(2)]
    optimizer, on_gpu, reference = SGD(1.0), put(start), Reference(SGD(1.0), start)
    values = [[np.full(500, 10.0**k + i, np.float32) for i in range(2)] for k in range(2)]
    first, second = (put(one) for one in values)
    for given, expected, order in [
        (first, 0, 1),
        (first, 0, 1),
        (second, 1, -1),
        (first, 0, 1),
        (first, 0, 1),
    ]:
        optimizer.apply(given[::order], on_gpu[::order])
        reference.apply(values[expected])
        assert_same(optimizer, on_gpu, reference)


def test_replicas_of_many_arrays(gpus: None) -> None:
    """Gradients of all replicas share a kernel's parameters: half the arrays a launch, of two."""
    rng = np.random.default_rng(12)
    variables = [random_array(rng, 3, np.float32) for _ in range(2500)]
    replicas = [[random_array(rng, 3, np.float32) for _ in variables] for _ in range(2)]
    optimizer, on_gpu = SGD(0.1), put(variables)
    optimizer.build(on_gpu)
    given = [put(one) for one in replicas]
    simulation.take_events()
    optimizer.apply(replicas=given)
    assert kernels() == ["staged", "staged"]
    SGD(0.1).apply(variables=variables, replicas=replicas)
    assert all(same_bits(a.copy(), b) for a, b in zip(on_gpu, variables, strict=True))


class Strided:
    """An array over a simulated GPU's memory that is not contiguous, by the interface that Numba uses."""

    def __init__(self, memory: DeviceArray) -> None:
        self.memory, (rows, columns) = memory, memory.shape
        itemsize = memory.dtype.itemsize
        self.__cuda_array_interface__ = memory.__cuda_array_interface__ | {
            "shape": (columns, rows),
            "strides": (itemsize, itemsize * columns),
        }


class Copied(Strided):
    """The same, which can make itself contiguous, as PyTorch's."""

    def __init__(self, memory: DeviceArray, values: Array) -> None:
        super().__init__(memory)
        self.pool = [simulation.array_on(0, values) for _ in range(2)]  # a capture can make none
        self.copies = list[weakref.ref[Plain]]()

    def contiguous(self) -> "Plain":
        copy = Plain(self.pool.pop())
        self.copies.append(weakref.ref(copy))
        return copy


def test_the_copy_of_a_gradient_in_a_graph_lives_as_long_as_the_plan(gpus: None) -> None:
    """Each replay makes it anew, in the same memory."""
    on_gpu, values = simulation.array_on(0, np.zeros((3, 2))), np.arange(6.0).reshape(3, 2)
    optimizer, gradient = SGD(1.0), Copied(simulation.array_on(0, np.zeros((2, 3))), values)
    optimizer.apply([gradient], [on_gpu])
    assert [copy() for copy in gradient.copies] == [None], "a step has no use for it afterwards"
    simulation.begin_capture()
    optimizer.apply([gradient])
    simulation.end_capture()
    simulation.replay()
    assert on_gpu.copy().tolist() == (-2 * values).tolist()
    del optimizer
    assert [copy() for copy in gradient.copies] == [None, None]


class Plain:
    """The same, contiguous."""

    def __init__(self, memory: DeviceArray, read_only: bool = False) -> None:
        self.memory = memory
        described = memory.__cuda_array_interface__
        self.__cuda_array_interface__ = described | {"data": (described["data"][0], read_only)}


def test_arrays_by_the_cuda_array_interface(gpus: None) -> None:
    on_gpu = Plain(simulation.array_on(1, np.ones(5, np.float32)))
    optimizer = SGD(0.5)
    optimizer.apply([Plain(simulation.array_on(1, np.ones(5, np.float32)))], [on_gpu])
    assert on_gpu.memory.copy().tolist() == [0.5] * 5
    assert ("bare", 1, 0) in simulation.take_events()


class Empty:
    """An array without elements, whose memory is null, as PyTorch's is; it counts who looks at it."""

    looks = 0

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self.looks += 1
        return {"version": 3, "shape": (0,), "typestr": "<f4", "data": (0, False), "strides": None}


def test_an_empty_array_without_memory_is_looked_at_once_a_step(gpus: None) -> None:
    on_gpu, empty = simulation.array_on(0, np.zeros(3, np.float32)), Empty()
    variables, gradients = [on_gpu, empty], [simulation.array_on(0, np.ones(3, np.float32)), Empty()]
    optimizer = SGD(0.5)
    optimizer.build(variables)
    optimizer.apply(gradients, variables)
    before = empty.looks
    optimizer.apply(gradients, variables)
    assert empty.looks == before + 2, "whether it has the interface, and what that says"
    assert on_gpu.copy().tolist() == [-1.0] * 3
    with pytest.raises(ValueError, match="all 2 gradients are None"):
        optimizer.apply([None, None], variables)


class OfJax:
    """A stand-in for a jax.Array on a GPU, which has no stream that a caller could know."""

    __module__ = "jaxlib._jax"

    def __init__(self, memory: DeviceArray) -> None:
        self.memory = memory

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory.__dlpack_device__()

    def __dlpack__(self, stream: int | None = None, **more: Any) -> object:
        assert stream is None, "JAX takes any other for one of CUDA's, -1 too"
        return self.memory.__dlpack__(**more)


def test_a_gradient_of_jax(gpus: None) -> None:
    on_gpu = simulation.array_on(0, np.zeros(3, np.float32))
    SGD(0.5).apply([OfJax(simulation.array_on(0, np.ones(3, np.float32)))], [on_gpu])
    assert on_gpu.copy().tolist() == [-0.5] * 3


def wide() -> DeviceArray:
    return simulation.array_on(0, np.ones((2, 3), np.float32))


BAD = [
    (
        lambda: wide(),
        lambda: np.ones((2, 3), np.float32),
        "variables[0] is on cuda:0 but its gradient on the CPU",
    ),
    (lambda: np.ones((2, 3)), wide, "variables[0] is on the CPU but its gradient on cuda:0"),
    (
        wide,
        lambda: simulation.array_on(1, np.ones((2, 3), np.float32)),
        "variables[0] is on cuda:0 but its gradient on cuda:1",
    ),
    (wide, lambda: simulation.array_on(0, np.ones((3, 2), np.float32)), "grads[0] has shape (3, 2), its"),
    (lambda: Strided(wide()), lambda: None, "is not contiguous (shape (3, 2), strides (4, 12))"),
    (lambda: Plain(wide(), read_only=True), lambda: None, "variables[0] is read-only"),
]


@pytest.mark.parametrize(("variable", "gradient", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_refusals_change_nothing(variable: Any, gradient: Any, sentence: str, gpus: None) -> None:
    good = simulation.array_on(0, np.ones(3, np.float32))
    bad = variable()
    optimizer = Adam(0.1)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        optimizer.apply([gradient(), simulation.array_on(0, np.ones(3, np.float32))], [bad, good])
    assert good.copy().tolist() == [1, 1, 1]
    assert optimizer.iterations == 0


def test_memory_goes_with_its_last_owner(gpus: None) -> None:
    optimizer = Adam(0.1)
    on_gpu, gradient = put([np.ones(3), np.ones(3)])
    optimizer.apply([gradient], [on_gpu])
    slot = optimizer.slots(on_gpu)["momentum"]
    expected = slot.copy()
    simulation.take_events()
    del optimizer
    assert "free" in kernels()
    assert same_bits(slot.copy(), expected)
    del slot
    assert kernels().count("free") == 1


def test_streams(gpus: None) -> None:
    """Steps run on the stream that the variables' library uses now, here as Numba tells it."""

    class OnStream(Plain):
        def __init__(self, memory: DeviceArray) -> None:
            super().__init__(memory)
            self.__cuda_array_interface__ |= {"stream": 42}

    on_gpu = OnStream(simulation.array_on(0, np.ones(3)))
    SGD(0.1).apply([Plain(simulation.array_on(0, np.ones(3)))], [on_gpu])
    assert ("bare", 0, 42) in simulation.take_events()


def test_without_a_gpu_the_sentence_says_why() -> None:
    simulation.start(1, 1)
    on_gpu = simulation.array_on(0, np.ones(3))
    simulation.stop()
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU")
    why = r"this build has no CUDA kernels|CUDA [\d.]+ finds no device here"
    with pytest.raises(RuntimeError, match=rf"is a GPU array .*, but ({why})"):
        fusedstep.SGD(0.1).apply([on_gpu], [on_gpu])
