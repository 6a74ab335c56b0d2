"""fusedstep.torch, the optimizers with PyTorch's manners, over parameters on a GPU."""

import importlib
from typing import Any

import numpy as np
import pytest

from gpu.libraries import GPU, host
from reference import same_bits

pytestmark = GPU

NAMES = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Lion", "Lamb"]


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0, "ema": 0.9}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_the_cpu(name: str, options: dict[str, Any], torch: Any) -> None:
    """Parameters and state, in groups with learning rates of their own, which change."""
    cls = getattr(importlib.import_module("fusedstep.torch"), name)
    rng = np.random.default_rng(1)

    def tensors() -> list[Any]:
        shapes = [(5,), (4097,), (30, 20), (1,)]
        return [torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]

    start = tensors()
    places = ("cpu", "cuda")
    parameters = {place: [torch.nn.Parameter(one.clone().to(place)) for one in start] for place in places}
    optimizers = {}
    for place, ps in parameters.items():
        optimizers[place] = cls([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.001}], lr=0.01, **options)
    for _ in range(4):
        grads = tensors()
        for place in places:
            for one, grad in zip(parameters[place], grads, strict=True):
                one.grad = grad.to(place, copy=True)
            optimizers[place].step()
            for group in optimizers[place].param_groups:
                group["lr"] *= 0.5
    for here, there in zip(parameters["cpu"], parameters["cuda"], strict=True):
        assert same_bits(host(here), host(there))
        state, of_gpu = optimizers["cpu"].state[here], optimizers["cuda"].state[there]
        assert state.keys() == of_gpu.keys()
        for key, value in state.items():
            if torch.is_tensor(value):
                assert same_bits(host(value), host(of_gpu[key])), key


@pytest.mark.parametrize("name", [name for name in NAMES if name != "NAdam"])
def test_a_captured_step_is_counted_as_it_is_replayed(name: str, torch: Any) -> None:
    """Its learning rate is a tensor on the GPU, which changes between replays."""
    cls, rng = getattr(importlib.import_module("fusedstep.torch"), name), np.random.default_rng(2)
    start = [rng.standard_normal(size).astype(np.float32) for size in (5, 4097)]
    rate = torch.full((), 0.5, device="cuda")
    parameters, optimizers = {}, {}
    for place, lr in (("cpu", 0.5), ("cuda", rate)):
        parameters[place] = [torch.nn.Parameter(torch.from_numpy(one).to(place, copy=True)) for one in start]
        optimizers[place] = cls(parameters[place], lr=lr, ema=0.5)

    def new_gradients() -> None:
        for one, other in zip(*parameters.values(), strict=True):
            values = torch.from_numpy(rng.standard_normal(one.shape).astype(np.float32))
            for p in (one, other):
                p.grad = torch.empty_like(p) if p.grad is None else p.grad
                p.grad.copy_(values)

    for _ in range(2):
        new_gradients()
        for optimizer in optimizers.values():
            optimizer.step()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        optimizers["cuda"].step()
    for lr in (0.5, 0.25, 0.125):
        optimizers["cpu"].param_groups[0]["lr"] = lr
        rate.fill_(lr)
        new_gradients()
        graph.replay()
        optimizers["cpu"].step()
    for one, other in zip(*parameters.values(), strict=True):
        assert same_bits(host(one), host(other))
    states = [optimizer.state_dict()["state"] for optimizer in optimizers.values()]
    for number, state in states[0].items():
        assert state.keys() == states[1][number].keys()
        for key, value in state.items():
            assert same_bits(host(value), host(states[1][number][key])), key


def test_a_grad_scaler_leaves_out_what_overflows(torch: Any) -> None:
    cls = importlib.import_module("fusedstep.torch").SGD
    w = torch.nn.Parameter(torch.zeros(3000, device="cuda"))
    optimizer, scaler = cls([w], lr=1.0), torch.amp.GradScaler("cuda", init_scale=1024.0)
    for factor in (1.0, float("inf"), 2.0):
        optimizer.zero_grad()
        scaler.scale((w * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert (host(w) == -3).all()
    assert scaler.get_scale() == 512.0
