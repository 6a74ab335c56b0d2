"""Bugs of other libraries, one named test each, so that they do not happen here."""

import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fusedstep
from fusedstep import SGD, Adagrad, Adam, AdamW, LossScaleOptimizer, Optimizer, RMSprop

Array = npt.NDArray[Any]
bfloat16 = ml_dtypes.bfloat16
DTYPES = [np.float32, np.float64, np.float16, bfloat16]

OPTIMIZERS = [
    SGD(0.01),
    SGD(0.01, momentum=0.9),
    SGD(0.01, momentum=0.9, nesterov=True, form="torch", dampening=0.0),
    Adam(0.01),
    Adam(0.01, amsgrad=True, epsilon_hat=True),
    AdamW(0.01, weight_decay=0.01),
    RMSprop(0.01),
    RMSprop(0.01, centered=True, momentum=0.9),
    Adagrad(0.01),
]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)


def fresh(optimizer: Optimizer, **changes: Any) -> Optimizer:
    return type(optimizer).from_config(optimizer.get_config() | changes)


def normal(shape: Any, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def state(optimizer: Optimizer, *variables: Array) -> list[bytes]:
    return [array.tobytes() for array in (*variables, *optimizer.variables)]


def at_phase(array: Array, phase: int) -> Array:
    """A copy whose address is `phase` bytes after a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + phase
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def misaligned(array: Array) -> Array:
    memory = np.empty(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def python(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Gradients of shape (6, 8), and larger, that do not lie in C order.
LAYOUTS: dict[str, Callable[[tuple[int, int], Any], Array]] = {
    "transposed": lambda shape, dtype: normal(shape[::-1], dtype).T,
    "Fortran": lambda shape, dtype: np.asfortranarray(normal(shape, dtype)),
    "every other row": lambda shape, dtype: normal((2 * shape[0], shape[1]), dtype)[::2],
    "every third column": lambda shape, dtype: normal((shape[0], 3 * shape[1]), dtype)[:, 1::3],
    "rows backwards": lambda shape, dtype: normal(shape, dtype)[::-1],
    "columns backwards": lambda shape, dtype: normal(shape, dtype)[:, ::-1],
    "a part of the columns": lambda shape, dtype: normal((shape[0], shape[1] + 3), dtype)[:, 2:-1],
    "one row, expanded": lambda shape, dtype: np.broadcast_to(normal((1, shape[1]), dtype), shape),
    "one column, expanded": lambda shape, dtype: np.broadcast_to(normal((shape[0], 1), dtype), shape),
    "one number, expanded": lambda shape, dtype: np.broadcast_to(normal((), dtype), shape),
    "channels last": lambda shape, dtype: np.moveaxis(normal(shape[::-1], dtype), -1, 0),
    "overlapping windows": lambda shape, dtype: np.lib.stride_tricks.sliding_window_view(
        normal(shape[0] + shape[1] - 1, dtype), shape[1]
    ),
    "misaligned": lambda shape, dtype: misaligned(normal(shape, dtype)),
}


@pytest.mark.parametrize("shape", [(6, 8), (500, 700)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@every_dtype
def test_01_gradients_of_any_layout_are_read_by_their_strides(
    dtype: Any, layout: str, shape: tuple[int, int]
) -> None:
    """PyTorch 2.13's fused CPU step ignores strides.

    Transposed, channels-last, sliced or expanded gradients silently give wrong numbers.
    """
    for optimizer in (SGD(0.1), Adam(0.1, weight_decay=0.1)):
        gradient = LAYOUTS[layout](shape, dtype)
        assert gradient.shape == shape
        assert not (gradient.flags.c_contiguous and gradient.flags.aligned)
        w, expected, plain = normal(shape, seed=1), normal(shape, seed=1), gradient.copy(order="C")
        opt, twin = fresh(optimizer), fresh(optimizer)
        for _ in range(2):
            opt.apply([gradient], [w])
            twin.apply([plain], [expected])
        assert state(opt, w) == state(twin, expected)
        assert gradient.tobytes() == plain.tobytes()


@pytest.mark.parametrize("phase", [4, 36])
def test_01_variables_do_not_spill_into_their_neighbours(phase: int) -> None:
    """PyTorch 2.13's fused CPU step overwrites the neighbours of strided parameters.

    Strided ones are refused here, and a part that is contiguous is updated and nothing beside it.
    """
    whole = at_phase(normal((20, 8)), phase)
    before = whole.copy()
    with pytest.raises(ValueError, match="is not contiguous"):
        SGD(1.0).apply([np.ones((20, 4))], [whole[:, :4]])
    assert whole.tobytes() == before.tobytes()
    SGD(1.0).apply([np.ones((5, 8))], [whole[3:8]])
    assert (whole[3:8] == before[3:8] - np.float32(1)).all()
    assert (np.delete(whole, slice(3, 8), 0) == np.delete(before, slice(3, 8), 0)).all()


def test_01_another_view_of_a_variable_is_not_updated_in_the_wrong_order() -> None:
    """PyTorch 2.13's fused CPU step ignores strides; here, w.T is not w because it begins where w does."""
    w = normal((5, 5))
    before = w.copy()
    opt = SGD(1.0)
    opt.build([w])
    with pytest.raises(ValueError, match="contiguous"):
        opt.apply([normal((5, 5), seed=1)], [w.T])
    assert w.tobytes() == before.tobytes()


@every_optimizer
def test_02_the_first_step_may_be_skipped(optimizer: Optimizer) -> None:
    """PyTorch's fused SGD left the momentum buffer uninitialised where the first step was skipped for inf.

    The first update is then that of the first step that is taken, with t = 1.
    """
    opt, twin = fresh(optimizer, skip_nonfinite=True), fresh(optimizer)
    w, expected, bad = normal(5000), normal(5000), normal(5000)
    bad[4321] = np.inf
    for _ in range(2):
        assert opt.apply([bad], [w]) == 0
        assert opt.skipped
    assert w.tobytes() == expected.tobytes()
    for step in range(2):
        opt.apply([normal(5000, seed=step)], [w])
        twin.apply([normal(5000, seed=step)], [expected])
    assert state(opt, w) == state(twin, expected)
    assert (opt.iterations, opt.skipped_calls) == (2, 2)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("places", [1, 2, 4, 6])
def test_03_a_step_is_skipped_however_many_places_are_not_finite(places: int, threads: int) -> None:
    """The flag was compared with 1; where two devices found something it was 2 and the step was taken.

    PyTorch's fused steps. Here: elements of several arrays, leaves, threads and replicas.
    """
    sizes, chosen = [200_000, 3, 200_000], [(0, 5), (2, 199_999), (1, 1), (0, 199_999), (2, 0), (0, 6)]
    variables = [normal(size) for size in sizes]
    before = [w.tobytes() for w in variables]
    opt = Adam(0.1, skip_nonfinite=True)
    grads = [normal(size, seed=1) for size in sizes]
    for number, (array, element) in enumerate(chosen[:places]):
        grads[array][element] = (np.inf, np.nan, -np.inf)[number % 3]
    fusedstep.set_num_threads(threads)
    try:
        assert opt.apply(grads, variables) == 0
        assert opt.skipped
        assert opt.apply(variables=variables, replicas=[grads, grads], mean=True) == 0
        assert opt.skipped_calls == 2
    finally:
        fusedstep.set_num_threads(None)
    assert [w.tobytes() for w in variables] == before
    assert all((slot == 0).all() for slot in opt.variables)


@every_optimizer
def test_04_the_first_gradient_may_come_late(optimizer: Optimizer) -> None:
    """PyTorch's fused SGD crashes where a parameter's first gradient comes in a later step than the others'.

    A variable without a gradient stays as it is, with its slots; t counts the optimizer's updates.
    """
    opt, twin = fresh(optimizer), fresh(optimizer)
    early, late, expected = normal(40), normal(30), normal(40)
    before = late.copy()
    for step in range(3):
        opt.apply([normal(40, seed=step), None], [early, late])
        twin.apply([normal(40, seed=step)], [expected])
    assert early.tobytes() == expected.tobytes()
    assert late.tobytes() == before.tobytes()
    initial = 0.1 if isinstance(opt, Adagrad) else 0
    assert all((slot == np.float32(initial)).all() for slot in opt.slots(late).values())
    opt.apply([None, normal(30, seed=9)], [early, late])
    assert early.tobytes() == expected.tobytes()
    assert opt.iterations == 4
    assert np.isfinite(late).all()
    assert (late != before).all()


def test_05_short_gradients_are_refused() -> None:
    """PyTorch's functional API reads a gradient shorter than its parameter beyond its end."""
    w, buffer = np.ones(1000), np.ones(1000)
    opt = Adam(0.1)
    for gradient in (buffer[:999], buffer[:1], buffer[:0], buffer[:500].reshape(2, 250)):
        with pytest.raises(ValueError, match=r"grads\[0\] has shape \(.*\), its variable has \(1000,\)"):
            opt.apply([gradient], [w])
    assert (w == 1).all()


@every_optimizer
def test_05_no_two_slots_share_memory(optimizer: Optimizer) -> None:
    """PyTorch's functional API takes one buffer for both m and v."""
    opt = fresh(optimizer)
    variables = [normal(size, dtype) for size in (1, 7, 64) for dtype in DTYPES]
    opt.build(variables)
    memories = sorted(
        (array.ctypes.data, array.ctypes.data + array.nbytes) for array in (*variables, *opt.variables)
    )
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(memories))


@pytest.mark.parametrize("places", [(0,), (3,), (0, 1), (0, 3), (1, 2), (3, 4), (0, 2, 4)], ids=str)
@every_optimizer
def test_07_empty_arrays_anywhere(optimizer: Optimizer, places: tuple[int, ...]) -> None:
    """With an empty tensor at the start, at the end or alone, nothing is launched or memory is corrupted.

    PyTorch #94865, #100701, #109402; TransformerEngine #3202.
    """
    sizes = [5, 3000, 40]
    shapes: list[Any] = list(sizes)
    for place in places:
        shapes.insert(place, (0, 3))
    opt, twin = fresh(optimizer), fresh(optimizer)
    variables, expected = [normal(shape) for shape in shapes], [normal(size) for size in sizes]
    for step in range(2):
        assert opt.apply([normal(shape, seed=step) for shape in shapes], variables) == step + 1
        twin.apply([normal(size, seed=step) for size in sizes], expected)
    full = [variable for variable in variables if variable.size]
    assert [v.tobytes() for v in full] == [v.tobytes() for v in expected]
    assert all(opt.slots(v)[name].shape == v.shape for v in variables for name in opt.slots(v))


def test_07_empty_arrays_alone() -> None:
    """As above: a step over nothing but empty arrays is a step."""
    opt, empty = Adam(0.1), np.zeros((3, 0))
    assert [opt.apply([np.zeros((3, 0))], [empty]) for _ in range(3)] == [1, 2, 3]
    assert opt.iterations == 3


@every_dtype
def test_08_amsgrad_stores_its_maximum(dtype: Any) -> None:
    """The AMSGrad maximum was computed and never stored (PyTorch #78807)."""
    opt, w = Adam(0.1, amsgrad=True, beta_2=0.5), np.ones(100, dtype)
    opt.apply([np.full(100, 8, dtype)], [w])
    largest = opt.slots(w)["velocity"].copy()
    assert (opt.slots(w)["velocity_hat"] == largest).all()
    for _ in range(3):
        opt.apply([np.full(100, 0.5, dtype)], [w])
    assert (opt.slots(w)["velocity_hat"] == largest).all()
    assert (opt.slots(w)["velocity"] < largest).all()
    opt.apply([np.full(100, 64, dtype)], [w])
    assert (opt.slots(w)["velocity_hat"] == opt.slots(w)["velocity"]).all()


@pytest.mark.parametrize("dynamic", [False, True], ids=["loss_scale_factor", "LossScaleOptimizer"])
@pytest.mark.parametrize("steps", [None, 2], ids=["no accumulation", "accumulation"])
@pytest.mark.parametrize(
    "clip", [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.1}], ids=str
)
def test_09_the_loss_scale_is_applied_once(clip: dict[str, float], steps: int | None, dynamic: bool) -> None:
    """The loss scale was applied twice, or inf used, where unscaling, clipping and the fused step met.

    PyTorch #88258, #95847, #96755; apex #1512. A scale of 2^k divides exactly: no bit may differ from steps
    on gradients without it.
    """
    arguments = {**clip, "gradient_accumulation_steps": steps}
    twin = Adam(0.1, **arguments)  # type: ignore[arg-type]
    opt: Optimizer = Adam(0.1, **arguments)  # type: ignore[arg-type]
    if dynamic:
        opt = LossScaleOptimizer(opt, 2.0**10, dynamic_growth_steps=2)
    else:
        opt.loss_scale_factor = 2.0**10
        opt.skip_nonfinite = True
    w, expected = normal(5000), normal(5000)
    for step in range(6):
        gradient = normal(5000, seed=step)
        scale = np.float32(opt.loss_scale_factor or 0)
        if step == 3:  # an inf between two micro-steps takes no part in their sum
            opt.apply([np.full(5000, np.inf, np.float32)], [w])
            scale = np.float32(opt.loss_scale_factor or 0)
        opt.apply([gradient * scale], [w])
        twin.apply([gradient], [expected])
    assert state(opt, w) == state(twin, expected)
    assert opt.skipped_calls == 1


def test_09_two_loss_scales_are_refused() -> None:
    """As above: unscaling by the optimizer and by what is around it."""
    with pytest.raises(ValueError, match=r"loss_scale_factor=8\.0 of its own"):
        LossScaleOptimizer(SGD(loss_scale_factor=8.0))


def test_10_a_step_is_counted_once() -> None:
    """The step counter advanced once per dtype (DeepSpeed #8471), or for the last parameter only (apex)."""
    opt = Adam(0.1)
    variables = [np.ones(5, dtype) for dtype in DTYPES for _ in range(3)]
    alone = np.ones(5, np.float32)
    twin = Adam(0.1)
    for step in range(3):
        assert opt.apply([np.ones(5, np.float32) for _ in variables], variables) == step + 1
        twin.apply([np.ones(5, np.float32)], [alone])
        assert opt.iterations == step + 1
    assert all(v.tobytes() == alone.tobytes() for v in variables[:3])


@pytest.mark.parametrize("count", [2**24 - 1, 2**31 - 1, 2**32 - 1, 2**53])
def test_10_counts_go_beyond_2_to_the_24(count: int) -> None:
    """Counters in float32 stop at 2^24 (apex, PyTorch); those in 32 bits turn negative."""
    opt, w = Adam(0.1), np.ones(3)
    opt.build([w])
    opt._plans[0].calls = opt._plans[0].updates = count
    assert [opt.apply([np.ones(3)], [w]) for _ in range(3)] == [count + 1, count + 2, count + 3]
    assert opt.iterations == count + 3
    # The bias corrections are 1 by now, and v is (1 - beta_2)*(1 + beta_2 + beta_2^2).
    m, v = 1 - 0.9**3, 1 - 0.999**3
    before = w.copy()
    opt.apply([np.ones(3)], [w])
    m, v = 0.9 * m + 0.1, 0.999 * v + 0.001
    np.testing.assert_allclose(before - w, 0.1 * m / (np.sqrt(v) + 1e-7), rtol=1e-9)


@every_dtype
def test_11_updates_land_in_the_callers_memory(dtype: Any) -> None:
    """Updates landed in a contiguous copy that was thrown away (DeepSpeed's CPUAdam, thinc, bitsandbytes)."""
    w = np.ones((8, 8), dtype)
    address, view, part = w.ctypes.data, w.reshape(-1), w[2:4]
    opt = SGD(0.5)
    opt.apply([np.ones((8, 8), dtype)], [w])
    opt.apply([np.ones((8, 8), dtype).T], [w])
    assert w.ctypes.data == address
    assert (w == 0).all()
    assert (view == 0).all()
    assert (part == 0).all()
    for strided in (w.T, w[:, ::2], w[::-1]):
        with pytest.raises(ValueError, match="is not contiguous"):
            SGD().apply([np.ones(strided.shape)], [strided])


@pytest.mark.parametrize("stages", [{"weight_decay": 0.1}, {"l2": 0.1}], ids=str)
@pytest.mark.parametrize("size", [1, 3, 7, 8, 15, 16, 17, 33, 513, 1000])
@every_optimizer
def test_12_decay_reaches_the_variable_and_no_gradient_is_written(
    optimizer: Optimizer, size: int, stages: dict[str, float]
) -> None:
    """Weight decay changed the accumulator only, and the scalar tail overwrote the caller's gradient.

    DeepSpeed's CPUAdagrad.
    """
    for dtype in DTYPES:
        w, gradient = np.ones(size, np.float32), np.zeros(size, dtype)
        opt = fresh(optimizer, **stages)
        opt.apply([gradient], [w])
        assert (gradient == 0).all()
        assert (w == w[0]).all()
        assert w[0] < 1
        if "weight_decay" in stages:
            decay = np.float32(opt.get_config()["weight_decay"] * 0.01)
            assert w[0] == np.float32(1) - decay

        gradient = normal(size, dtype)
        before = gradient.copy()
        for _ in range(2):
            opt.apply([gradient], [w])
        assert gradient.tobytes() == before.tobytes()


@pytest.mark.parametrize("size", [5, 100, 5000])
@every_dtype
def test_13_variables_and_gradients_at_every_address(dtype: Any, size: int) -> None:
    """Aligned stores of 16-bit values faulted on NumPy's buffers, aligned to 16 bytes (DeepSpeed)."""
    itemsize = np.dtype(dtype).itemsize
    gradient, expected = normal(size, dtype), normal(size, dtype, seed=1)
    twin = Adam(0.01, weight_decay=0.1)
    twin.apply([gradient], [expected])
    for phase in range(0, 64, itemsize):
        for gradient_phase in {phase, 0, 16, 64 - itemsize, (phase + 16) % 64}:
            w = at_phase(normal(size, dtype, seed=1), phase)
            opt = fresh(twin)
            opt.apply([at_phase(gradient, gradient_phase)], [w])
            assert state(opt, w) == state(twin, expected), (phase, gradient_phase)


@every_dtype
@every_optimizer
def test_14_results_do_not_depend_on_length_and_alignment(optimizer: Optimizer, dtype: Any) -> None:
    """Vector body and scalar tail followed different formulas (PyTorch, TensorFlow, DeepSpeed).

    So the same element came out otherwise in an array of another length or at another address.
    """
    itemsize = np.dtype(dtype).itemsize
    whole = normal(5000, dtype)
    grads = [normal(5000, np.float32, seed=seed) for seed in (1, 2)]
    opt = fresh(optimizer)
    expected = whole.copy()
    for gradient in grads:
        opt.apply([gradient], [expected])

    pieces = [slice(k * 50, k * 50 + k) for k in range(70)] + [slice(k, 4800 + k) for k in range(0, 64, 3)]
    variables = [at_phase(whole[piece], number * itemsize % 64) for number, piece in enumerate(pieces)]
    in_pieces = fresh(optimizer)
    for gradient in grads:
        in_pieces.apply([gradient[piece] for piece in pieces], variables)
    for piece, variable in zip(pieces, variables, strict=True):
        assert variable.tobytes() == expected[piece].tobytes(), piece


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_15_beta_2_does_not_round_to_one(dtype: Any) -> None:
    """In bfloat16 a beta_2 of 0.999 is 1, and no weight ever moved (Keras 3.15, keras-hub #2629)."""
    w = np.ones(100, dtype)
    opt = Adam(0.1)
    for _ in range(3):
        opt.apply([np.ones(100, dtype)], [w])
    assert {slot.dtype for slot in opt.slots(w).values()} == {np.dtype(np.float32)}
    assert (opt.slots(w)["velocity"] > 0).all()
    np.testing.assert_allclose(w.astype(np.float64), 0.7, atol=0.01)


def test_16_bfloat16_is_rounded_once_after_decay_and_rule() -> None:
    """Rounding to bfloat16 before the decay made the decay a no-op (bitsandbytes).

    Decay and update, of 0.0015 each, are below half the distance to 1's neighbour, 2^-8; their sum is not.
    """
    w, only_decayed = np.ones(1000, bfloat16), np.ones(1000, bfloat16)
    SGD(0.0015, weight_decay=1.0).apply([np.ones(1000, np.float32)], [w])
    SGD(0.0015, weight_decay=1.0).apply([np.zeros(1000, np.float32)], [only_decayed])
    assert (only_decayed == 1).all()
    assert (w == bfloat16(1 - 2**-8)).all()


@pytest.mark.parametrize("lazy", [False, True], ids=["dense", "lazy"])
@every_optimizer
def test_17_duplicate_rows_are_summed(optimizer: Optimizer, lazy: bool) -> None:
    """Duplicate rows of a sparse gradient are not summed (Keras 3 on TensorFlow)."""
    indices, values = [5, 2, 5, 0, 5, 2], normal((6, 40))
    opt, twin = fresh(optimizer, lazy=lazy), fresh(optimizer, lazy=lazy)
    w, expected = normal((7, 40)), normal((7, 40))
    summed = [values[3], values[1] + values[5], (values[0] + values[2]) + values[4]]
    for _ in range(2):
        opt.apply([(indices, values)], [w])
        twin.apply([([0, 2, 5], np.array(summed))], [expected])
    assert state(opt, w) == state(twin, expected)
    once = normal((7, 40))
    fresh(optimizer, lazy=lazy).apply([([0, 2, 5], values[[3, 5, 4]])], [once])
    assert once.tobytes() != expected.tobytes()


@pytest.mark.parametrize(
    ("gradient", "variable"),
    [
        ((2,), (3, 2)),
        ((1, 2), (3, 2)),
        ((3, 1), (3, 2)),
        ((), (3, 2)),
        ((1,), (6,)),
        ((1,), ()),
        ((2, 1), (2,)),
    ],
)
def test_18_nothing_is_broadcast(gradient: tuple[int, ...], variable: tuple[int, ...]) -> None:
    """Keras 3 broadcasts a gradient of shape (2,) onto a variable of shape (3, 2)."""
    w = np.ones(variable)
    sentence = f"grads[0] has shape {gradient}, its variable has {variable}"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Adam().apply([np.ones(gradient)], [w])
    assert (w == 1).all()


@pytest.mark.parametrize("magnitude", [1e18, 1.9e19, 1e25, 3e38], ids=str)
@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm"])
def test_19_norms_above_the_root_of_the_largest_float32(option: str, magnitude: float) -> None:
    """A norm above 1.8e19 turns every gradient into 0 or NaN (Keras 3, clipnorm and global_clipnorm)."""
    gradient = normal(1000)
    gradient *= np.float32(magnitude / np.abs(gradient).max())
    w = np.zeros(1000, np.float32)
    opt = SGD(1.0, **{option: 2.0})  # type: ignore[arg-type]
    opt.apply([gradient], [w])
    exact = gradient.astype(np.float64)
    np.testing.assert_allclose(w, -2 * exact / np.linalg.norm(exact), rtol=1e-6)
    assert opt.gradient_norm == pytest.approx(np.linalg.norm(exact))


@every_optimizer
def test_20_a_state_with_another_number_of_variables_is_an_error(optimizer: Optimizer) -> None:
    """Loading a state with another number of variables only warns, and loads nothing (Keras 3)."""
    arrays = [normal(size) for size in (5, 6, 7)]
    saved, goal = fresh(optimizer), fresh(optimizer)
    for opt, count in ((saved, 2), (goal, 3)):
        opt.build(arrays[:count])
        opt.apply([normal(w.size, seed=count) for w in arrays[:count]])
        opt.learning_rate = count
    for one, other in ((saved, goal), (goal, saved)):
        before = (state(one, *arrays), one.iterations, one.learning_rate)
        with pytest.raises(ValueError, match=r"\d variables are in the state, \d here; nothing was loaded"):
            one.load_state_dict(other.state_dict())
        assert (state(one, *arrays), one.iterations, one.learning_rate) == before


STEPS = """
import hashlib, numpy as np, fusedstep
rng = np.random.default_rng(0)
total = hashlib.sha256()
for optimizer in (
    fusedstep.SGD(momentum=0.9),
    fusedstep.AdamW(amsgrad=True),
    fusedstep.RMSprop(centered=True),
    fusedstep.Adagrad(),
):
    variables = [rng.standard_normal(n).astype(d) for n in (17, 50_000) for d in ("f2", "f4", "f8")]
    for _ in range(3):
        grads = [rng.standard_normal(v.shape).astype("f4") for v in variables]
        optimizer.apply(grads, variables)
    for array in (*variables, *optimizer.variables):
        total.update(array.tobytes())
print(fusedstep.build_info()["target"], total.hexdigest())
"""


def test_22_every_target_runs_and_the_best_one_is_chosen_at_import() -> None:
    """Built on one CPU and run on another: illegal instruction; or scalar code on a CPU with AVX-512.

    DeepSpeed #1886, #2618, #6363.
    """
    targets = fusedstep.build_info()["targets"]
    supported = [name for name, runs in targets.items() if runs]
    assert list(targets)[-1] == "baseline", "what runs everywhere comes last"
    assert targets["baseline"]
    results = [python(STEPS, FUSEDSTEP_TARGET=name).split() for name in supported]
    assert [target for target, _ in results] == supported
    assert len({bits for _, bits in results}) == 1
    target, bits = python(STEPS, FUSEDSTEP_TARGET="").split()
    assert (target, bits) == (supported[0], results[0][1])


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="reads x86's /proc/cpuinfo"
)
def test_22_targets_are_those_of_this_cpu() -> None:
    """As above: what Linux says of the CPU decides, and nothing that was known when the package was built."""
    flags = set(re.findall(r"^flags\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].split())
    needed = {
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx2": {"avx2"},
        "baseline": {"sse2"},
    }
    assert fusedstep.build_info()["targets"] == {name: flags >= needed[name] for name in needed}


@pytest.mark.parametrize("form", ["keras", "torch"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_23_centered_rmsprop_stays_finite(form: str, momentum: float) -> None:
    """In float32 v - q*q comes out negative and weights become NaN.

    After 500 steps of a constant-like gradient for 10 % of the elements in Keras 3, 49 % in PyTorch.
    """
    rng = np.random.default_rng(0)
    constant = rng.standard_normal(2000).astype(np.float32)
    w = np.zeros(2000, np.float32)
    opt = RMSprop(1e-4, centered=True, form=form, momentum=momentum)
    negative = 0
    for _ in range(500):
        opt.apply([constant], [w])
        slots = opt.slots(w)
        negative += int((slots["velocity"] - slots["average_gradient"] ** 2 < 0).sum())
    assert negative > 0, "these gradients do not try it"
    assert np.isfinite(w).all()
    assert all(np.isfinite(slot).all() for slot in opt.variables)


FLOATING_POINT_MODE = """
#if defined(__x86_64__)
#include <xmmintrin.h>
unsigned long get_mode(void) { return _mm_getcsr() & ~0x3fUL; }  /* without the sticky exceptions */
void set_mode(unsigned long mode) { _mm_setcsr((unsigned int)mode); }
#else
unsigned long get_mode(void) {
  unsigned long mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_mode(unsigned long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#endif
"""

# What is added to the default mode.
MODES = {
    "x86_64": {"default": 0, "flush to zero": 0x8040, "down": 0x2000, "up": 0x4000, "to zero": 0x6000},
    "aarch64": {"default": 0, "flush to zero": 1 << 24, "down": 2 << 22, "up": 1 << 22, "to zero": 3 << 22},
}.get(platform.machine(), {})

# What is tried in each mode: subnormal, tiny and ordinary values.
IN_A_MODE = [
    "SGD(0.5)",
    "SGD(0.5, momentum=0.9, weight_decay=0.3)",
    "Adam(0.1, l2=0.1)",
    "Adam(0.1, epsilon=1e-40)",
    "AdamW()",
    "RMSprop(0.1, centered=True)",
    "Adagrad(0.1)",
    "Adagrad(0.1, initial_accumulator_value=1e-40)",
    "Nadam(0.1)",
]

# All threads but the first are made in the mode.
STEPS_IN_A_MODE = """
import ctypes, hashlib, sys
import ml_dtypes, numpy as np, fusedstep
from fusedstep import SGD, Adagrad, Adam, AdamW, Nadam, RMSprop

library, mode, threads = ctypes.CDLL(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
library.get_mode.restype = ctypes.c_ulong
library.set_mode.argtypes = [ctypes.c_ulong]
default = library.get_mode()
fusedstep.set_num_threads(threads)

def bits(make):
    rng = np.random.default_rng(0)
    cases = [
        [(rng.standard_normal(size) * scale).astype(dtype) for _ in range(3)]
        for scale in (1e-40, 1e-37, 1.0, 1e-310)
        for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
        for size in (37, 30_000)
    ]
    tables = [np.zeros((3, 37), dtype) for dtype in (np.float32, np.float64)]
    rows = [rng.standard_normal((4, 37)).astype(np.float32) * np.float32(scale) for scale in (1e-40, 1.0)]
    library.set_mode(default | mode)
    try:
        opt, sparse = make(), make()
        for k in (1, 2):
            opt.apply([case[k] for case in cases], [case[0] for case in cases])
        for values in rows:
            sparse.apply([([2, 0, 2, 0], values) for table in tables], tables)
        assert library.get_mode() == default | mode, "the caller's mode changed"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        library.set_mode(default)
    total = hashlib.sha256()
    for array in (*(case[0] for case in cases), *opt.variables, *tables, *sparse.variables):
        total.update(array.tobytes())
    return total.hexdigest()

library.set_mode(default | mode)
tiny, one, ten = np.full(100, 1e-40, np.float32), np.ones(100), np.full(100, 10.0)
behaviour = [float(x[50]) for x in (tiny * np.float32(1), one / ten, -one / ten)]
library.set_mode(default)
print(behaviour)
for optimizer in sys.argv[4:]:
    print(bits(eval("lambda: " + optimizer)))  # its numbers are read in the default mode
"""


class Modes:
    """What the steps give in each mode, with some number of threads: a process for each pair."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self.known: dict[tuple[str, int], list[str]] = {}

    def results(self, mode: str, threads: int) -> list[str]:
        if (mode, threads) not in self.known:
            arguments = str(self.library), str(MODES[mode]), str(threads), *IN_A_MODE
            self.known[mode, threads] = python(STEPS_IN_A_MODE, *arguments).splitlines()
        return self.known[mode, threads]


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Modes:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not MODES:
        pytest.skip("needs a C compiler, and x86-64 or aarch64")
    folder = tmp_path_factory.mktemp("mode")
    source, library = folder / "mode.c", folder / "mode.so"
    source.write_text(FLOATING_POINT_MODE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    return Modes(library)


@pytest.mark.parametrize("optimizer", IN_A_MODE)
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "default"])
def test_24_the_floating_point_mode_of_the_process_does_not_matter(
    mode: str, threads: int, optimizer: str, modes: Modes
) -> None:
    """Steps go wrong after somebody switched on flush-to-zero in the process (every peer).

    torch.set_flush_denormal does it, and any library built with -ffast-math when it is loaded. The same for
    the other rounding modes. After the call the caller's mode is what it was.
    """
    behaviour, *bits = modes.results(mode, threads)
    usual_behaviour, *usual_bits = modes.results("default", 2)
    assert behaviour != usual_behaviour, "the mode is not on"
    number = IN_A_MODE.index(optimizer)
    assert bits[number] == usual_bits[number]


def plain_sgd(p: Array, grads: list[Array]) -> None:
    m = np.zeros_like(p)
    for g in grads:
        m = np.float32(0.9) * m - np.float32(0.01) * g
        p += m


def plain_adam(p: Array, grads: list[Array]) -> None:
    m, v = np.zeros_like(p), np.zeros_like(p)
    b1, c1, b2, c2 = (np.float32(x) for x in (0.9, 1 - 0.9, 0.999, 1 - 0.999))
    power_1 = power_2 = 1.0
    for g in grads:
        power_1, power_2 = power_1 * 0.9, power_2 * 0.999
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        a, r = np.float32(0.01 / (1 - power_1)), np.float32(1 / np.sqrt(1 - power_2))
        p -= (a * m) / (np.sqrt(v) * r + np.float32(1e-7))


def plain_rmsprop(p: Array, grads: list[Array]) -> None:
    v = np.zeros_like(p)
    for g in grads:
        v = np.float32(0.9) * v + np.float32(1 - 0.9) * (g * g)
        p -= (np.float32(0.01) * g) / np.sqrt(v + np.float32(1e-7))


def plain_adagrad(p: Array, grads: list[Array]) -> None:
    s = np.full_like(p, 0.1)
    for g in grads:
        s += g * g
        p -= (np.float32(0.01) * g) / np.sqrt(s + np.float32(1e-7))


@pytest.mark.parametrize("size", [6, 63, 64, 1000, 4097, 300_001])
@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda: SGD(0.01, momentum=0.9), plain_sgd),
        (lambda: Adam(0.01), plain_adam),
        (lambda: RMSprop(0.01), plain_rmsprop),
        (lambda: Adagrad(0.01), plain_adagrad),
    ],
    ids=["SGD", "Adam", "RMSprop", "Adagrad"],
)
def test_25_parity_with_plain_numpy_at_sizes_that_reach_the_vectors(
    make: Callable[[], Optimizer], plain: Callable[[Array, list[Array]], None], size: int
) -> None:
    """The parity test compared fused with fused, or used tensors of 6 elements (PyTorch #91228).

    These formulas are NumPy's and share nothing with the package; the sizes reach vectors and threads.
    """
    grads = [normal(size, seed=seed) for seed in (1, 2, 3)]
    w, expected = normal(size), normal(size)
    opt = make()
    for gradient in grads:
        opt.apply([gradient], [w])
    plain(expected, grads)
    assert w.tobytes() == expected.tobytes()
