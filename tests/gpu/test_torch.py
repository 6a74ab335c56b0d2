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
