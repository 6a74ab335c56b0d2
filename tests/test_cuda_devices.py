"""Steps over variables on two simulated GPUs and the CPU, which agree on norms and on what is left out."""

from typing import Any

import numpy as np
import pytest

from conftest import OPTIONS, random_array
from fusedstep import SGD, Adam, AdamW, Lamb, Nadam, Optimizer
from fusedstep._native import simulation
from reference import Reference, same_bits
from simulated import OnStream, Plain, assert_same, put, put_on, random_rows


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("places", [[0, 1, 0, 1], [None, 0, None, 0], [0, None, 1, 0]], ids=str)
def test_several_devices(places: list[int | None], options: dict[str, Any], gpus: None) -> None:
    """Variables on two GPUs and on the CPU, in one optimizer: one launch each, and one norm over all."""
    rng = np.random.default_rng(9)
    sizes = [100, 5000, 4096, 30_000]
    optimizer = AdamW(0.01, **options)
    variables = [random_array(rng, size, np.float32) for size in sizes]
    spread_variables, reference = put_on(variables, places), Reference(optimizer, variables)
    for step in range(5):
        grads = [random_array(rng, size, np.float32) for size in sizes]
        if step == 2:
            grads[1][5] = np.inf
        given = put_on(grads, places)
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


@pytest.mark.parametrize("places", [[1, 0, 1, 0], [None, 0, None, 0], [0, None, 1, None]], ids=str)
def test_settings_on_several_devices(places: Any, gpus: None) -> None:
    rng = np.random.default_rng(0)
    start = [random_array(rng, 50, np.float32) for _ in places]
    optimizer, twin = SGD(0.1), SGD(0.1)
    w, here = put_on(start, places), [one.copy() for one in start]
    for step in range(4):
        if step == 2:
            for one, arrays in ((optimizer, w), (twin, here)):
                one.adjust(arrays[1], learning_rate_multiplier=0.5)
                one.adjust(arrays[2], weight_decay=0.5)
        grads = [random_array(rng, 50, np.float32) for _ in places]
        optimizer.apply(put_on(grads, places), w)
        twin.apply(grads, here)
        assert all(same_bits(a.copy(), b) for a, b in zip(w, here, strict=True)), step


@pytest.mark.parametrize("places", [[0, 0], [0, 1], [0, None]], ids=str)
def test_finite_gradients_whose_squares_are_not(places: Any, gpus: None) -> None:
    start = [np.ones(5000), np.ones(3)]
    grads = [np.full(5000, 1e200), np.ones(3)]
    optimizer, w, here = SGD(1e-200, skip_nonfinite=True), put_on(start, places), [v.copy() for v in start]
    twin = SGD(1e-200, skip_nonfinite=True)
    optimizer.apply(put_on(grads, places), w)
    twin.apply(grads, here)
    assert not optimizer.skipped
    assert not twin.skipped
    assert all(same_bits(a.copy(), b) for a, b in zip(w, here, strict=True))


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_any_device_may_see_inf(bad: int, gpus: None) -> None:
    places = [0, 1, None]
    start = [np.ones(5, np.float32) for _ in places]
    grads = [np.ones(5, np.float32) for _ in places]
    grads[bad][3] = np.inf
    optimizer, w = SGD(0.5, skip_nonfinite=True), put_on(start, places)
    optimizer.apply(put_on(grads, places), w)
    assert optimizer.skipped
    assert all((one.copy() == 1).all() for one in w)


def test_streams(gpus: None) -> None:
    """Steps run on the stream that the variables' library uses now."""
    on_gpu = OnStream(simulation.array_on(0, np.ones(3)), 42)
    SGD(0.1).apply([Plain(simulation.array_on(0, np.ones(3)))], [on_gpu])
    assert ("bare", 0, 42) in simulation.take_events()


def test_each_device_has_its_stream(gpus: None) -> None:
    w: list[Any] = [
        np.ones((5, 2), np.float32),
        OnStream(simulation.array_on(0, np.ones((5, 2), np.float32)), 40),
        OnStream(simulation.array_on(1, np.ones((5, 2), np.float32)), 41),
    ]
    rng = np.random.default_rng(0)
    optimizer = SGD(0.5, global_clipnorm=1.0, use_ema=True)
    optimizer.build(w)
    optimizer.adjust(w[2], learning_rate_multiplier=0.5)
    optimizer.adjust(w[2], learning_rate_multiplier=0.25)
    grads = put_on([random_rows(rng, (5, 2), 3) for _ in w], [None, 0, 1])
    simulation.take_events()
    optimizer.apply(grads, w)
    optimizer.finalize_variable_values()
    done = [event for event in simulation.take_events() if event[0] not in ("allocate", "read", "write")]
    assert {what for what, *_ in done} == {"write in order", "order", "norms of any", "staged"}
    assert all(stream == 40 + device for _, device, stream in done)


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


@pytest.mark.parametrize("places", [[0, 1], [None, 1]], ids=str)
def test_state_goes_to_every_device(places: Any, gpus: None) -> None:
    rng = np.random.default_rng(0)
    start = [random_array(rng, 50, np.float32) for _ in places]
    here, there = Adam(0.1), Adam(0.1)
    one, two = [v.copy() for v in start], put_on(start, places)
    there.build(two)
    for _ in range(3):
        here.apply([random_array(rng, 50, np.float32) for _ in places], one)
    there.load_state_dict(here.state_dict())
    for a, b in zip(one, two, strict=True):
        if isinstance(b, np.ndarray):
            b[...] = a
        else:
            b.assign(a)
    grads = [random_array(rng, 50, np.float32) for _ in places]
    here.apply(grads, one)
    there.apply(put_on(grads, places), two)
    assert all(same_bits(b.copy(), a) for a, b in zip(one, two, strict=True))
