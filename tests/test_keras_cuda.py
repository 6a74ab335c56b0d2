"""fusedstep.keras over variables on a simulated GPU: bits, launches, and what is not waited for."""

import os
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
keras = pytest.importorskip("keras", reason="Keras is not installed")
if keras.backend.backend() != "torch":
    pytest.skip("Keras has another backend", allow_module_level=True)

import fusedstep.keras as adapted  # noqa: E402
from fusedstep._native import simulation  # noqa: E402
from simulated import kernels  # noqa: E402
from simulated_torch import CudaTensor, cuda, to_gpu  # noqa: E402, F401

pytestmark = pytest.mark.usefixtures("cuda")

NAMES = [name for name in adapted.__all__ if name != "Fused"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"global_clipnorm": 0.5, "use_ema": True},
    {"clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 2},
    {"weight_decay": 0.1, "gradient_accumulation_steps": 2},
]
SHAPES = [(5,), (70, 30), (0, 3)]


def variable(values: Any, on_gpu: bool) -> Any:
    made = keras.Variable(values)
    if on_gpu:
        made._value = torch.nn.Parameter(to_gpu(made.value))
    return made


def bits_of(tensor: Any) -> bytes:
    return bytes(np.asarray(tensor.detach().as_subclass(torch.Tensor)).tobytes())


class Run:
    """An optimizer over variables on the CPU, or on the GPU."""

    def __init__(self, name: str, on_gpu: bool, **options: Any) -> None:
        self.rng, self.on_gpu = np.random.default_rng(1), on_gpu
        self.variables = [variable(self.rng.standard_normal(shape).astype("f"), on_gpu) for shape in SHAPES]
        self.optimizer = getattr(adapted, name)(0.01, **options)
        self.gradients = [torch.zeros(shape) for shape in SHAPES]
        if on_gpu:
            self.gradients = list(map(to_gpu, self.gradients))

    def step(self) -> None:
        for gradient in self.gradients:
            gradient.copy_(torch.from_numpy(self.rng.standard_normal(tuple(gradient.shape))))
        self.optimizer.apply(self.gradients, self.variables)

    def bits(self) -> list[bytes]:
        return [bits_of(one.value) for one in (*self.variables, *self.optimizer.variables)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_the_cpu(name: str, options: dict[str, Any]) -> None:
    """With a learning rate that changes, and a count that somebody sets."""
    left = []
    for on_gpu in (False, True):
        run = Run(name, on_gpu, **options)
        for number in range(5):
            run.step()
            if number == 2:
                run.optimizer.learning_rate = 0.125
                run.optimizer._iterations.assign(10)
        left.append(run.bits())
    assert left[0] == left[1]


@pytest.mark.parametrize("name", ["Adam", "Nadam"])
def test_one_launch_a_step_and_nothing_else(name: str) -> None:
    """Nobody waits for the learning rate, which Keras has in a variable, nor for the count of steps."""
    runs = [Run(name, on_gpu) for on_gpu in (False, True)]
    rate, count = runs[1].optimizer._learning_rate, runs[1].optimizer._iterations
    rate._value = torch.nn.Parameter(to_gpu(rate.value), requires_grad=False)
    count._value = torch.nn.Parameter(count.value.as_subclass(CudaTensor), requires_grad=False)
    for number in range(4):
        if number == 3:
            for run in runs:
                run.optimizer.learning_rate = 0.125
        simulation.take_events()
        if number > 0:
            CudaTensor.looks.clear()
        for run in runs:
            run.step()
        if number > 0:
            assert kernels() == ["bare"]
            assert CudaTensor.looks == []
    assert runs[0].bits() == runs[1].bits()


def test_a_scale_of_the_loss_is_applied_there() -> None:
    """Keras decides on the host what becomes of a step; it asks the gradients, not the optimizer."""
    left = []
    for on_gpu in (False, True):
        run = Run("SGD", on_gpu)
        run.optimizer = keras.optimizers.LossScaleOptimizer(run.optimizer, initial_scale=4.0)
        for _ in range(3):
            run.step()
        left.append([bits_of(one.value) for one in run.variables])
    assert left[0] == left[1]
