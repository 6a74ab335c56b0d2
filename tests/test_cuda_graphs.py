"""Steps in graphs, on a simulated GPU: captured once and replayed, beside steps that are not."""

import copy
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conftest import Array, random_array
from fusedstep import SGD, Adam, Nadam
from fusedstep._native import DeviceArray, Group, simulation
from reference import Reference, same_bits
from simulated import Plain, Strided, assert_same, capture, kernels, put, put_any, random_rows


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
    capture(lambda: optimizer.apply([gradient], [on_gpu]))
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


def test_a_learning_rate_of_another_kind_between_replays(gpus: None) -> None:
    """A graph reads what was set last: a number, or an array, which stays as long as it is read."""
    (w, g), optimizer = put([np.zeros(3), np.ones(3)]), SGD(simulation.array_on(0, np.array(1.0)))
    optimizer.build([w])
    capture(lambda: optimizer.apply([g]))
    rates: list[Any] = [None, 0.5, simulation.array_on(0, np.array(0.25, np.float32)), 2.0]
    for rate, expected in zip(rates, (-1.0, -1.5, -1.75, -3.75), strict=True):
        if rate is not None:
            optimizer.learning_rate = rate
        simulation.replay()
        assert w.copy().tolist() == [expected] * 3
    with pytest.raises(ValueError, match="learning_rate is on cuda:1, but there are variables on another"):
        optimizer.learning_rate = simulation.array_on(1, np.array(8.0))
    assert optimizer.learning_rate == 2.0
    simulation.replay()
    assert w.copy().tolist() == [-5.75] * 3
    with pytest.warns(UserWarning, match="replays of captured steps keep the learning rate"):
        optimizer.learning_rate = lambda step: 8.0
    simulation.replay()
    assert w.copy().tolist() == [-7.75] * 3
    optimizer.apply([g])
    assert w.copy().tolist() == [-15.75] * 3


def test_a_step_beside_a_graph_has_norms_when_the_device_updates(gpus: None) -> None:
    rng = np.random.default_rng(0)
    options: Any = {"gradient_accumulation_steps": 2, "global_clipnorm": 0.01}
    start = [random_array(rng, 50, np.float32)]
    optimizer, w, reference = SGD(0.5, **options), put(start), Reference(SGD(0.5, **options), start)
    grads = [random_array(rng, 50, np.float32)]
    there = put(grads)
    optimizer.build(w)
    capture(lambda: optimizer.apply(there, w))
    simulation.replay()  # of which the host does not know
    optimizer.apply(there, w)  # this one updates
    for _ in range(2):
        reference.apply(grads)
    assert_same(optimizer, w, reference)


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
    capture(lambda: optimizer.apply([gradient]))
    simulation.replay()
    assert on_gpu.copy().tolist() == [-4.0] * 3
    simulation.take_events()
    optimizer.adjust(on_gpu, learning_rate_multiplier=0.5)
    assert kernels() == ["write"]
    simulation.replay()
    assert on_gpu.copy().tolist() == [-4.5] * 3


def test_more_settings_after_a_capture(gpus: None) -> None:
    """A graph reads them where it found them, however many there are."""
    optimizer, on_gpu, ones = SGD(1.0), put([np.zeros(3)] * 3), put([np.ones(3)] * 3)
    optimizer.build(on_gpu)
    capture(lambda: optimizer.apply(ones))
    for k, multiplier in ((1, 0.5), (2, 0.25)):
        optimizer.adjust(on_gpu[k], learning_rate_multiplier=multiplier)
    simulation.replay()
    assert [variable.copy().tolist() for variable in on_gpu] == [[-1.0] * 3, [-0.5] * 3, [-0.25] * 3]


@pytest.mark.parametrize("captured", [False, True], ids=["which variable has which", "what they are"])
def test_settings_that_could_not_be_written_are_written_later(captured: bool, gpus: None) -> None:
    optimizer, on_gpu, ones = SGD(1.0), put([np.zeros(3)] * 2), put([np.ones(3)] * 2)
    optimizer.build(on_gpu)
    plan = optimizer._plan
    assert plan is not None
    groups = [Group(rate, 0.0, 0.0, [], 0, 1.0) for rate in (1.0, 0.5)]
    if captured:
        plan.set_groups([groups[0], groups[0]], [0, 1])
        capture(lambda: optimizer.apply(ones))
    simulation.refuse_writes(True)
    with pytest.raises(RuntimeError, match="cudaMemcpy failed"):
        plan.set_groups(groups, [0, 1])
    simulation.refuse_writes(False)
    plan.set_groups(groups, [0, 1])
    optimizer.apply(ones)
    assert [variable.copy().tolist() for variable in on_gpu] == [[-1.0] * 3, [-0.5] * 3]


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


def state_of_one() -> dict[str, Any]:
    optimizer = Adam(0.1)
    optimizer.build([np.ones(3)])
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda optimizer, _: optimizer.iterations, "asking what steps have counted"),
        (lambda optimizer, _: setattr(optimizer._plan, "calls", 5), "a graph is captured"),
        (lambda optimizer, w: optimizer.adjust(w[0], learning_rate_multiplier=0.5), "a change of settings"),
        (lambda optimizer, w: optimizer.adjust(w[0], weight_decay=0.5), "a change of settings"),
        (lambda optimizer, w: optimizer.build(w[1:]), "making slots"),
        (lambda optimizer, _: optimizer.state_dict(), "Adam: a graph is captured, and copying or loading"),
        (lambda optimizer, _: copy.deepcopy(optimizer), "Adam: a graph is captured, and copying or loading"),
        (lambda optimizer, _: optimizer.load_state_dict(state_of_one()), "and copying or loading a state"),
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
    with pytest.raises(ValueError, match="learning_rate is a schedule or a callable, which a graph"):
        capture(lambda: optimizer.apply([gradient], [on_gpu]))
    assert optimizer.apply([gradient], [on_gpu]) == 1


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
    simulation.begin_capture()  # not by a function, which would keep the optimizer
    optimizer.apply([gradient])
    simulation.end_capture()
    simulation.replay()
    assert on_gpu.copy().tolist() == (-2 * values).tolist()
    del optimizer
    assert [copy() for copy in gradient.copies] == [None, None]


def test_a_step_of_fewer_replicas_frees_nothing(gpus: None) -> None:
    rng = np.random.default_rng(0)
    optimizer, w = SGD(0.1), put([random_array(rng, (50, 6), np.float32)])
    one = put_any([random_rows(rng, (50, 6), 20)])
    two = [put_any([random_rows(rng, (50, 6), 20)]) for _ in range(2)]
    optimizer.apply(variables=w, replicas=two)
    capture(lambda: optimizer.apply(variables=w, replicas=two))
    simulation.take_events()
    optimizer.apply(one, w)
    assert kernels() == ["order", "staged"]


def test_memory_of_a_graph_outlives_steps_beside_it(gpus: None) -> None:
    rng = np.random.default_rng(0)
    optimizer, w = SGD(0.1), put([random_array(rng, (50, 6), np.float32)])
    few, many = (put_any([random_rows(rng, (50, 6), count)]) for count in (20, 200))
    optimizer.apply(few, w)
    capture(lambda: optimizer.apply(few, w))
    optimizer.apply(few, w)
    simulation.take_events()
    optimizer.apply(many, w)
    assert kernels() == ["allocate", "order", "staged"]
