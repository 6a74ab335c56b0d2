"""The package's own classes over PyTorch's tensors on a simulated GPU."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from conftest import random_array  # noqa: E402
from fusedstep import SGD, Adam, Lamb, LossScaleOptimizer, Nadam, Optimizer  # noqa: E402
from fusedstep._native import simulation  # noqa: E402
from reference import Array, Reference, same_bits  # noqa: E402
from simulated import capture, kernels  # noqa: E402
from simulated_torch import CudaTensor, cuda, to_gpu  # noqa: E402, F401

pytestmark = pytest.mark.usefixtures("cuda")

SHAPES: list[tuple[int, ...]] = [(5,), (70, 3), (4097,), (1,), (0, 2)]
OPTIMIZERS = [
    Adam(0.01),
    SGD(0.1, momentum=0.9, nesterov=True),
    Lamb(0.01, weight_decay=0.1),
    Adam(0.01, global_clipnorm=1.0, use_ema=True),
    Nadam(0.01, skip_nonfinite=True),
    Adam(0.01, gradient_accumulation_steps=2),
]


def put(values: Any) -> Any:
    return to_gpu(torch.from_numpy(np.array(values)))


def host(tensor: Any) -> Array:
    assert isinstance(tensor, CudaTensor)
    return np.asarray(tensor.detach().as_subclass(torch.Tensor))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_the_bits_of_the_reference(optimizer: Optimizer) -> None:
    """With a gradient that is strided, and one of some rows; slots are tensors, and no value is looked at."""
    rng, optimizer = np.random.default_rng(0), type(optimizer).from_config(optimizer.get_config())
    start = [random_array(rng, shape, np.float32) for shape in SHAPES]
    reference, variables = Reference(optimizer, start), list(map(put, start))
    for number in range(4):
        grads: list[Any] = [random_array(rng, shape, np.float32) for shape in SHAPES]
        there = list(map(put, grads))
        if number == 1:
            there[1] = put(grads[1].T).T
            assert not there[1].is_contiguous()
        if number == 2:
            grads[1] = np.array([3, 0, 3, 69]), random_array(rng, (4, 3), np.float32)
            indices, rows = grads[1]
            there[1] = torch.from_numpy(indices).as_subclass(CudaTensor), put(rows)
        optimizer.apply(there, variables)
        reference.apply(grads)
    assert CudaTensor.looks == []
    for index, (variable, expected) in enumerate(zip(variables, reference.variables, strict=True)):
        assert same_bits(host(variable), expected)
        for name, slot in optimizer.slots(variable).items():
            assert same_bits(host(slot), reference.slots[index][name]), name
    if optimizer.global_clipnorm:
        assert host(optimizer.gradient_norm).shape == ()


def test_a_learning_rate_in_a_tensor() -> None:
    rate, w, g = put(np.float32(0.5)), put(np.zeros(3)), put(np.ones(3))
    optimizer = SGD(rate)
    optimizer.apply([g], [w])
    rate.fill_(0.25)
    simulation.take_events()
    optimizer.apply([g], [w])
    assert kernels() == ["bare"]
    capture(lambda: optimizer.apply([g], [w]))
    rate.fill_(2.0)
    simulation.replay()
    assert CudaTensor.looks == []
    assert host(w).tolist() == [-2.75] * 3


def test_a_loss_is_scaled_there() -> None:
    optimizer, w, loss = LossScaleOptimizer(SGD(1.0), 8.0), put(np.zeros(3, "f")), put(np.float32(3.0))
    optimizer.build([w])
    scaled = optimizer.scale_loss(loss)
    for gradient in (8.0, np.inf):
        optimizer.apply([put(np.full(3, gradient, "f"))], [w])
    assert CudaTensor.looks == []
    assert host(w).tolist() == [-1.0] * 3
    assert (host(scaled), host(optimizer.scale_loss(loss))) == (24.0, 12.0)
