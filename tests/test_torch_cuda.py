"""fusedstep.torch over parameters on a simulated GPU: launches, bits, learning rates and graphs."""

import copy
import re
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import fusedstep.torch as adapted  # noqa: E402
from fusedstep._native import simulation  # noqa: E402
from simulated import capture, kernels  # noqa: E402
from simulated_torch import CudaTensor, cuda, streams, to_gpu  # noqa: E402, F401

pytestmark = pytest.mark.usefixtures("cuda")

NAMES = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Lion", "Lamb"]
OPTIONS: list[dict[str, Any]] = [{}, {"max_norm": 1.0, "ema": 0.5}]


def bits_of(tensor: Any) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return bytes(np.asarray(flat.as_subclass(torch.Tensor)).tobytes())


def random(shape: tuple[int, ...], seed: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Twins:
    """Two optimizers over equal parameters in two groups, one on the CPU and one on the GPU."""

    def __init__(self, name: str, shapes: list[tuple[int, ...]], dtype: Any = torch.float32, **options: Any):
        start = [random(shape, k, dtype) for k, shape in enumerate(shapes)]
        self.here = [torch.nn.Parameter(one.clone()) for one in start]
        self.there = [torch.nn.Parameter(to_gpu(one)) for one in start]
        self.optimizers = [
            getattr(adapted, name)([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.25}], lr=0.5, **options)
            for ps in (self.here, self.there)
        ]

    def set_gradients(self, seed: int, none: tuple[int, ...] = ()) -> None:
        """New ones, in the memory of the former where there were some."""
        for k, (here, there) in enumerate(zip(self.here, self.there, strict=True)):
            if k in none:
                here.grad = there.grad = None
                continue
            values = random(tuple(here.shape), 100 * seed + k, here.dtype)
            here.grad = values
            if there.grad is None:
                there.grad = to_gpu(values)
            else:
                there.grad.copy_(values)

    def step(self, seed: int, none: tuple[int, ...] = ()) -> None:
        self.set_gradients(seed, none)
        for optimizer in self.optimizers:
            optimizer.step()

    def capture(self) -> None:
        capture(self.optimizers[1].step)

    def replay(self, seed: int) -> None:
        """Play what was captured, beside a step on the CPU."""
        self.set_gradients(seed)
        self.optimizers[0].step()
        simulation.replay()

    def assert_same(self) -> None:
        for here, there in zip(self.here, self.there, strict=True):
            assert bits_of(here) == bits_of(there)
        here, there = (optimizer.state_dict()["state"] for optimizer in self.optimizers)
        assert here.keys() == there.keys()
        for number, state in here.items():
            assert state.keys() == there[number].keys()
            for name, value in state.items():
                assert bits_of(value) == bits_of(there[number][name]), name


SHAPES: list[tuple[int, ...]] = [(5,), (1,), (4, 3), (0,), (5000,)]


# Steps.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_the_cpu(name: str, options: dict[str, Any], dtype: Any) -> None:
    """Groups whose learning rates change, and parameters whose first gradient is late, or that have none."""
    twins = Twins(name, SHAPES, dtype, **options)
    for seed, none in enumerate([(1,), (1, 4), (), (0,), ()]):
        twins.step(seed, none)
        for optimizer in twins.optimizers:
            optimizer.param_groups[0]["lr"] *= 0.5
    twins.assert_same()


@pytest.mark.parametrize("layout", ["channels_last", "gaps"])
def test_parameters_that_do_not_lie_as_they_are_read(layout: str) -> None:
    start = random((2, 3, 4, 4), 0)

    def laid_out(tensor: Any) -> Any:
        if layout == "channels_last":
            return tensor.to(memory_format=torch.channels_last)
        return torch.stack([tensor, tensor], -1)[..., 0]

    here, there = (torch.nn.Parameter(laid_out(one)) for one in (start, to_gpu(start)))
    optimizers = [adapted.Adam([p], lr=0.5, ema=0.5) for p in (here, there)]
    for seed in (1, 2, 3):
        here.grad = random((2, 3, 4, 4), seed)
        there.grad = to_gpu(here.grad)
        for optimizer in optimizers:
            optimizer.step()
    assert not there.is_contiguous()
    assert bits_of(here) == bits_of(there)


def test_one_launch_a_step_and_nothing_else() -> None:
    twins = Twins("Adam", [(5,)] * 7)
    twins.step(0)
    simulation.take_events()
    for seed, names in ((1, ["bare"]), (2, ["bare"])):
        twins.step(seed)
        assert kernels() == names
    for optimizer in twins.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.125  # a scheduler's, which all groups share from now on
    twins.step(3)
    assert kernels() == ["write in order", "bare"]
    for optimizer in twins.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0625
    twins.step(4)
    assert kernels() == ["bare"]
    twins.assert_same()


def test_one_kernel_more_for_the_norm_which_stays_there() -> None:
    twins = Twins("SGD", [(5,), (7,)], max_norm=0.5)
    twins.step(0)
    simulation.take_events()
    twins.step(1)
    assert kernels() == ["norms", "staged"]
    here, there = (optimizer.gradient_norm for optimizer in twins.optimizers)
    assert (there.is_cuda, there.shape) == (True, ())
    assert float(there) == here
    twins.assert_same()


def test_steps_are_put_on_the_stream_of_pytorch() -> None:
    twins = Twins("Adam", [(5,)])
    twins.step(0)
    simulation.take_events()
    streams.append(7)
    try:
        twins.step(1)
    finally:
        streams.pop()
    assert simulation.take_events() == [("bare", 0, 7)]


def test_a_gradient_elsewhere_is_refused() -> None:
    """As PyTorch's would be, where devices are real, before it comes here."""
    twins = Twins("Adam", [(5,), (7,)])
    twins.step(0)
    before = [bits_of(p) for p in twins.there]
    twins.there[1].grad = random((7,), 3)
    words = (
        "Adam.step: a parameter of shape (7,) is on cuda:0 but its gradient on the CPU; pass a gradient on"
        " the parameter's device"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        twins.optimizers[1].step()
    assert [bits_of(p) for p in twins.there] == before


def test_parameters_on_both_are_two_calls() -> None:
    here, there = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(to_gpu(torch.ones(3)))
    optimizer = adapted.SGD([here, there], lr=0.5)
    here.grad, there.grad = torch.ones(3), to_gpu(torch.ones(3))
    optimizer.step()
    assert (here.tolist(), there.tolist()) == ([0.5] * 3, [0.5] * 3)
    words = "max_norm is for parameters of one rule on one device, got sgd on cpu, sgd on cuda:0"
    optimizer.max_norm = 1.0
    with pytest.raises(ValueError, match=words):
        optimizer.step()


@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam", "Lamb"])
def test_a_state_goes_to_a_gpu_and_back(name: str) -> None:
    options = {"momentum": 0.5} if name == "SGD" else {}
    twins = Twins(name, SHAPES, **options)
    twins.step(0)
    twins.step(1)
    here, there = (copy.deepcopy(optimizer.state_dict()) for optimizer in twins.optimizers)
    for optimizer, state in zip(twins.optimizers, (there, here), strict=True):
        optimizer.load_state_dict(state)
    twins.step(2)
    twins.assert_same()


# Graphs.


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "NAdam"])
def test_replays_are_counted(name: str, options: dict[str, Any]) -> None:
    twins = Twins(name, SHAPES, **options)
    twins.step(0)
    twins.step(1)
    twins.capture()
    twins.assert_same()  # a capture makes no step
    for seed in (2, 3, 4):
        twins.replay(seed)
    twins.assert_same()
    twins.assert_same()  # and they are counted once
    twins.step(5)
    twins.replay(6)
    twins.assert_same()


@pytest.mark.parametrize("way", ["copy", "no gradient", "another group", "another state"])
def test_replays_are_counted_before_counts_are_used(way: str) -> None:
    """A step that sorts its parameters anew starts from them, and so does a copy."""
    twins = Twins("Adam", SHAPES)
    twins.step(0)
    twins.capture()
    assert [float(state["step"]) for state in twins.optimizers[1].state.values()] == [1] * len(SHAPES)
    for seed in (1, 2):
        twins.replay(seed)
    if way == "no gradient":
        twins.step(3, (0, 3))
    if way == "another group":
        twins.here.append(torch.nn.Parameter(torch.ones(2)))
        twins.there.append(torch.nn.Parameter(to_gpu(torch.ones(2))))
        for ps, optimizer in zip((twins.here, twins.there), twins.optimizers, strict=True):
            optimizer.add_param_group({"params": ps[-1:], "lr": 1.0})
    if way == "another state":
        for optimizer in twins.optimizers:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if way == "copy":
        state = twins.optimizers[1].__getstate__()["state"]
        assert [float(of["step"]) for of in state.values()] == [3] * len(SHAPES)
    twins.step(4)
    twins.assert_same()


def test_what_the_host_alone_advances_is_not_captured() -> None:
    twins = Twins("NAdam", SHAPES)
    twins.step(0)
    twins.set_gradients(1)
    with pytest.raises(RuntimeError, match=r"NAdam\.step: a graph is captured, but the product of NAdam's"):
        twins.capture()
    for optimizer in twins.optimizers:
        optimizer.step()
    twins.assert_same()


def test_a_first_step_and_a_look_at_counts_are_refused_in_a_capture() -> None:
    twins = Twins("Adam", SHAPES)
    twins.set_gradients(0)
    with pytest.raises(RuntimeError, match=r"or take a step, before the capture"):
        twins.capture()
    twins.step(0)
    twins.capture()
    with pytest.raises(RuntimeError, match="asking what steps have counted would have to wait for the GPU"):
        capture(twins.optimizers[1].state_dict)
    twins.assert_same()


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_a_learning_rate_on_the_gpu_is_read_there(shape: tuple[int, ...]) -> None:
    """One that all groups share; the host never looks at it, nor do replays ask for it."""
    twins, rate = Twins("Adam", SHAPES), to_gpu(torch.full(shape, 0.5))
    for group in twins.optimizers[1].param_groups:
        group["lr"] = rate

    def set_rate(value: float) -> None:
        rate.fill_(value)
        for group in twins.optimizers[0].param_groups:
            group["lr"] = value

    set_rate(0.5)
    twins.step(0)
    simulation.take_events()
    set_rate(0.25)
    twins.step(1)
    assert kernels() == ["bare"]
    twins.capture()
    for seed, value in ((2, 0.125), (3, 0.5)):
        set_rate(value)
        twins.replay(seed)
    assert CudaTensor.looks == []
    twins.assert_same()


def test_learning_rates_on_the_gpu_that_differ_are_asked() -> None:
    twins = Twins("Adam", SHAPES)
    for group, value in zip(twins.optimizers[1].param_groups, (0.5, 0.25), strict=True):
        group["lr"] = to_gpu(torch.tensor(value))
    twins.step(0)
    assert CudaTensor.looks
    twins.step(1)
    twins.assert_same()


def test_words_of_a_refusal_name_a_parameter() -> None:
    p = torch.nn.Parameter(to_gpu(torch.ones(3)))
    p.grad = to_gpu(torch.ones(3))
    optimizer = adapted.SGD([("head.weight", p)], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e39
    with pytest.raises(ValueError, match=re.escape("lr must be finite in float32")):
        optimizer.step()
    assert p.tolist() == [0.5] * 3
