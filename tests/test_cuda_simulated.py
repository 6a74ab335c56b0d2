"""Steps on a simulated GPU: the kernels' own functions, over a grid of threads that take turns.

What these tests see holds for every GPU, but for CUDA itself: whether nvcc compiles the same, and what the
hardware does with many threads at once, is for tests on one (``pytest -m gpu``).
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import DTYPES, OPTIONS, STAGES, VARIANTS, random_array, with_arguments
from fusedstep import (
    SGD,
    Adam,
    ExponentialDecay,
    Ftrl,
    Lamb,
    Nadam,
    Optimizer,
    PiecewiseConstantDecay,
    RAdam,
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
@pytest.mark.parametrize("cls", [Adam, SGD, Lamb, Nadam, RAdam])
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


@pytest.mark.parametrize("options", [{"maximize": True}, {"clipvalue": 0.25}, *OPTIONS], ids=str)
def test_options_where_the_bare_kernel_could_be(options: Any, gpus: None) -> None:
    """All variables and gradients of one dtype: an option that a launch forgets would be left out unseen."""
    optimizer, rng = SGD(0.5, **options), np.random.default_rng(8)
    variables = [random_array(rng, 5000, np.float32) for _ in range(2)]
    on_gpu, reference = put(variables), Reference(optimizer, variables)
    for _ in range(4):
        grads = [random_array(rng, 5000, np.float32) for _ in variables]
        optimizer.apply(put(grads), on_gpu)
        reference.apply(grads)
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


def test_a_norm_over_more_arrays_than_a_leaf_in_a_second_step(gpus: None) -> None:
    """Behind the arrays' sums lie the factors of the step before."""
    rng = np.random.default_rng(0)
    start = [random_array(rng, 3, np.float32) for _ in range(4300)]
    optimizer, twin = Lamb(0.1, global_clipnorm=0.5), Lamb(0.1, global_clipnorm=0.5)
    variables, here = put(start), [one.copy() for one in start]
    for _ in range(2):
        grads = [random_array(rng, 3, np.float32) for _ in range(4300)]
        optimizer.apply(put(grads), variables)
        twin.apply(grads, here)
        assert optimizer.gradient_norm.copy() == twin.gradient_norm
    assert all(same_bits(a.copy(), b) for a, b in zip(variables, here, strict=True))


@pytest.mark.parametrize("place", [0, 127, 128, 4095, 4096, 8999])
def test_one_nan_anywhere(place: int, gpus: None) -> None:
    gradient = np.ones(9000, np.float32)
    gradient[place] = np.nan
    optimizer = SGD(0.5, skip_nonfinite=True)
    w = put([np.ones(9000, np.float32)])
    optimizer.apply(put([gradient]), w)
    assert optimizer.skipped
    assert (w[0].copy() == 1).all()


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


@pytest.mark.parametrize("cls", [SGD, Lamb])
@pytest.mark.parametrize("options", [{"clipnorm": 0.5}, {"skip_nonfinite": True}, {"global_clipnorm": 0.5}])
def test_options_over_many_arrays(cls: Any, options: Any, gpus: None) -> None:
    """Factors, norms and flags of arrays beyond a block's threads, and beyond a launch."""
    rng = np.random.default_rng(0)
    start = [random_array(rng, 3, np.float32) for _ in range(4300)]
    optimizer, variables, here = cls(0.1, **options), put(start), [one.copy() for one in start]
    twin = cls(0.1, **options)
    for step in range(3):
        grads = [random_array(rng, 3, np.float32) * (1 + k % 7) for k in range(4300)]
        if step == 1:
            grads[5][0] = np.nan
        optimizer.apply(put(grads), variables)
        twin.apply(grads, here)
    assert (optimizer.iterations, optimizer.skipped_calls) == (twin.iterations, twin.skipped_calls)
    assert all(same_bits(a.copy(), b) for a, b in zip(variables, here, strict=True))


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
        with pytest.raises(ValueError, match="learning_rate must not be so near to 0"):
            optimizer.apply([gradient], [on_gpu])
    assert optimizer.iterations == 4


def test_rates_ahead_are_looked_at_again_with_other_settings(gpus: None) -> None:
    optimizer = SGD(ExponentialDecay(1e10, 1, 0.5), skip_nonfinite=True)
    on_gpu, gradient = put([np.zeros(3), np.ones(3)])
    for _ in range(3):
        optimizer.apply([gradient], [on_gpu])
    optimizer.adjust(on_gpu, learning_rate_multiplier=1e305)
    with pytest.raises(ValueError, match=r"learning_rate times a variable's multiplier must be finite"):
        optimizer.apply([gradient], [on_gpu])
    assert optimizer.iterations == 3


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


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_learning_rate_of_any_dtype(dtype: Any, gpus: None) -> None:
    rate = simulation.array_on(0, np.array(0.5, dtype))
    (w, g) = put([np.ones(3), np.ones(3)])
    SGD(rate).apply([g], [w])
    assert w.copy().tolist() == [0.5] * 3


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


@pytest.mark.parametrize("cls", [Adam, Lamb])
def test_final_averages_of_every_kind_of_rule(cls: Any, gpus: None) -> None:
    rng = np.random.default_rng(0)
    start = [random_array(rng, 5000, np.float32), random_array(rng, 7, np.float16)]
    optimizer, twin = cls(0.1, use_ema=True), cls(0.1, use_ema=True)
    w, here = put(start), [one.copy() for one in start]
    for _ in range(3):
        grads = [random_array(rng, one.shape, np.float32) for one in start]
        optimizer.apply(put(grads), w)
        twin.apply(grads, here)
    optimizer.finalize_variable_values()
    twin.finalize_variable_values()
    assert all(same_bits(a.copy(), b) for a, b in zip(w, here, strict=True))
    assert optimizer.iterations == 3


def test_averages_after_a_call_left_out(gpus: None) -> None:
    start = [np.ones(5, np.float32)]
    optimizer, w, here = SGD(0.5, use_ema=True, skip_nonfinite=True), put(start), [start[0].copy()]
    twin = SGD(0.5, use_ema=True, skip_nonfinite=True)
    for value in (1.0, 2.0, np.inf):
        grads = [np.full(5, value, np.float32)]
        optimizer.apply(put(grads), w)
        twin.apply(grads, here)
    optimizer.finalize_variable_values()
    twin.finalize_variable_values()
    assert same_bits(w[0].copy(), here[0])


def test_averages_before_the_first_step(gpus: None) -> None:
    start = np.full(5, 3.0, np.float16)
    optimizer, w = SGD(0.5, use_ema=True), put([start])
    optimizer.build(w)
    assert optimizer.slots(w[0])["average"].copy().tolist() == [3.0] * 5
    optimizer.finalize_variable_values()
    assert w[0].copy().tolist() == [3.0] * 5


def test_averages_beside_an_accumulator(gpus: None) -> None:
    optimizer, w = SGD(0.5, use_ema=True, gradient_accumulation_steps=2), put([np.full(5, 3.0)])
    optimizer.build(w)
    assert optimizer.slots(w[0])["average"].copy().tolist() == [3.0] * 5
    assert optimizer.slots(w[0])["gradient_accumulator"].copy().tolist() == [0.0] * 5


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
