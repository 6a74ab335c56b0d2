"""Laws that hold for every optimizer, tried on data that hypothesis makes up."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import DTYPES, STAGES, VARIANTS, random_array, with_arguments
from fusedstep import Adam, Ftrl, Lamb, Optimizer
from reference import Reference, assert_same, same_bits


def with_rate(variant: Optimizer, stages: dict[str, Any], lr: float) -> Optimizer:
    """The variant; Ftrl, which divides by the learning rate, with one that it can divide by."""
    if isinstance(variant, Ftrl) and abs(lr) < 1e-37:
        lr = 0.5
    return with_arguments(variant, learning_rate=lr, **stages)


optimizers = st.builds(
    with_rate,
    st.sampled_from(VARIANTS),
    st.sampled_from(STAGES),
    st.floats(-1, 1),
)
elementwise = optimizers.filter(lambda optimizer: not isinstance(optimizer, Lamb))
shapes = st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)


def some(seed: int, shape: Any, dtype: Any) -> npt.NDArray[Any]:
    return random_array(np.random.default_rng(seed), shape, dtype, special=seed % 3 == 0)


@given(optimizers, shapes, st.lists(st.sampled_from(DTYPES), min_size=12, max_size=12), seeds)
@settings(max_examples=200, deadline=None)
def test_any_arrays_get_the_bits_of_the_reference(
    optimizer: Optimizer, shapes: list[tuple[int, ...]], dtypes: list[Any], seed: int
) -> None:
    variables = [some(seed + i, shape, dtypes[i]) for i, shape in enumerate(shapes)]
    reference = Reference(optimizer, variables)
    for step in range(3):
        grads: list[Any] = [some(seed + 100 * step + i, s, dtypes[6 + i]) for i, s in enumerate(shapes)]
        if len(grads) > 1:
            grads[(seed + step) % len(grads)] = None
        optimizer.apply(grads, variables)
        reference.apply(grads)
    assert_same(optimizer, variables, reference)


@given(
    optimizers.filter(lambda optimizer: not isinstance(optimizer, Lamb)),
    st.lists(st.integers(0, 5000), min_size=1, max_size=6),
    st.sampled_from(DTYPES),
    seeds,
)
@settings(max_examples=100, deadline=None)
def test_updating_a_concatenation_is_updating_the_parts(
    optimizer: Optimizer, sizes: list[int], dtype: Any, seed: int
) -> None:
    whole = some(seed, sum(sizes), dtype)
    ends = np.cumsum(sizes)[:-1]
    parts = [part.copy() for part in np.split(whole, ends)]
    other = with_arguments(optimizer)
    for step in range(2):
        gradient = some(seed + step + 1, whole.shape, np.float32)
        optimizer.apply([gradient], [whole])
        other.apply(np.split(gradient, ends), parts)
    assert same_bits(whole, np.concatenate(parts))


@given(optimizers, shapes, seeds, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_arrays_does_not_matter(
    optimizer: Optimizer, shapes: list[tuple[int, ...]], seed: int, random: Any
) -> None:
    variables = [some(seed + i, shape, np.float32) for i, shape in enumerate(shapes)]
    shuffled = [variable.copy() for variable in variables]
    other = with_arguments(optimizer)
    order = list(range(len(shapes)))
    for step in range(3):
        grads = [some(seed + 100 * step + i, shape, np.float32) for i, shape in enumerate(shapes)]
        optimizer.apply(grads, variables)
        other.apply([grads[i] for i in order], [shuffled[i] for i in order])
        random.shuffle(order)
    assert all(same_bits(a, b) for a, b in zip(variables, shuffled, strict=True))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not isinstance(v, Ftrl)], ids=repr)
def test_a_zero_gradient_leaves_fresh_variables(variant: Optimizer) -> None:
    variables = [random_array(np.random.default_rng(5), 1000, dtype) for dtype in DTYPES]
    before = [variable.copy() for variable in variables]
    variant = with_arguments(variant, weight_decay=None)
    variant.apply([np.zeros_like(variable) for variable in variables], variables)
    assert all(same_bits(a, b) for a, b in zip(variables, before, strict=True))


def test_ftrl_forgets_fresh_variables() -> None:
    """To Ftrl a variable is a function of its slots, which begin without it; a zero gradient adds nothing."""
    variable = np.array([3.0, -2.0])
    Ftrl(0.01).apply([np.zeros(2)], [variable])
    assert (variable == 0).all()


@given(optimizers, st.integers(0, 3), seeds)
@settings(max_examples=50, deadline=None)
def test_a_copy_continues_to_the_same_bits(optimizer: Optimizer, steps: int, seed: int) -> None:
    variable = some(seed, (30, 40), np.float32)
    optimizer.build([variable])
    for step in range(steps):
        optimizer.apply([some(seed + step, variable.shape, np.float32)], [variable])
    twin, twin_variable = copy.deepcopy(optimizer), variable.copy()
    assert twin.get_config() == optimizer.get_config()
    gradient = some(seed + 77, variable.shape, np.float32)
    optimizer.apply([gradient], [variable])
    twin.apply([gradient], [twin_variable])
    assert same_bits(variable, twin_variable)
    assert twin.iterations == optimizer.iterations == steps + 1


@given(st.sampled_from(VARIANTS))
def test_configurations_round_trip(optimizer: Optimizer) -> None:
    twin = type(optimizer).from_config(optimizer.get_config())
    assert twin.get_config() == optimizer.get_config()
    assert repr(twin) == repr(optimizer)


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided ones among them"])
def test_where_gradients_lie_does_not_matter(contiguous: bool, threads: int) -> None:
    """Other arrays at each step, between the variables' memory and slots, or onto them, which is refused."""
    rng = np.random.default_rng(5)
    memory = np.zeros((2000, 2, 4, 16), np.float32)  # of each variable, and of a gradient beside it
    variables = list(memory[:, 0])
    optimizer, twin = Adam(0.01), Adam(0.01)
    optimizer.build(variables)
    expected = [variable.copy() for variable in variables]
    for step in range(6):
        grads = list(random_array(rng, (2000, 4, 16), np.float32))
        places = rng.permutation(2000) if step % 2 else np.arange(2000)
        found: list[Any] = []
        for place, gradient in zip(places, grads, strict=True):
            memory[place, 1] = gradient
            found.append(memory[place, 1])
        if not contiguous:
            found[7::500] = [np.asfortranarray(one) for one in found[7::500]]
        bad, before = rng.integers(2000), memory.tobytes()
        with pytest.raises(ValueError, match=rf"grads\[{bad}\] shares memory with"):
            optimizer.apply([*found[:bad], memory[bad - 1, 0], *found[bad + 1 :]])
        assert memory.tobytes() == before
        assert optimizer.apply(found) == step + 1
        twin.apply(grads, expected)
    assert all(same_bits(ours, theirs) for ours, theirs in zip(variables, expected, strict=True))
