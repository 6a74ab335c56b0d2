"""fusedstep.keras, the optimizers with Keras' manners, over variables on a GPU."""

import importlib
import os
from typing import Any

import numpy as np
import pytest

from gpu.libraries import GPU, host
from reference import same_bits

pytestmark = GPU


@pytest.fixture
def keras(torch: Any) -> Any:
    assert torch.cuda.is_available()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="Keras is not installed")


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 0.5, "use_ema": True}], ids=str)
@pytest.mark.parametrize("name", ["SGD", "Adam", "Nadam", "Lamb"])
def test_the_bits_of_the_cpu(name: str, options: dict[str, Any], keras: Any) -> None:
    """With a learning rate that changes, and a count that somebody sets."""
    cls = getattr(importlib.import_module("fusedstep.keras"), name)
    left = []
    for place in ("cpu", "gpu"):
        rng = np.random.default_rng(1)
        with keras.device(place):
            variables = [keras.Variable(rng.standard_normal(shape).astype("f")) for shape in ((5,), (70, 30))]
            optimizer = cls(0.01, **options)
            for number in range(5):
                grads = [rng.standard_normal(v.shape).astype("f") for v in variables]
                optimizer.apply([keras.ops.convert_to_tensor(g) for g in grads], variables)
                if number == 2:
                    optimizer.learning_rate = 0.125
                    optimizer.iterations.assign(10)
            left.append([host(v.value) for v in (*variables, *optimizer.variables)])
    assert all(same_bits(ours, theirs) for ours, theirs in zip(*left, strict=True))


def test_a_step_waits_for_nothing(keras: Any, torch: Any) -> None:
    cls = importlib.import_module("fusedstep.keras").Nadam
    with keras.device("gpu"):
        variables = [keras.Variable(np.ones(3000, np.float32))]
        grads, optimizer = [keras.ops.ones((3000,))], cls(0.01)
        for _ in range(2):
            optimizer.apply(grads, variables)
        torch.cuda.synchronize()
        torch.cuda._sleep(10**9)
        busy_until = torch.cuda.Event()
        busy_until.record()
        for _ in range(3):
            optimizer.apply(grads, variables)
        assert not busy_until.query()
