"""Dynamic loss scaling on simulated GPUs: the CPU's bits and scale, adapted there, without waiting."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import random_array
from fusedstep import SGD, Adam, Lamb, LossScaleOptimizer, Optimizer, device_arrays
from fusedstep._native import simulation
from simulated import capture, kernels, put

Array = npt.NDArray[Any]

COURSE = "++-+++--++++"  # which calls are finite
INNER = [
    Adam(0.01),
    SGD(0.01, momentum=0.9, gradient_accumulation_steps=2),
    Lamb(0.01, global_clipnorm=0.5, use_ema=True),
]


def gradients(rng: np.random.Generator, sizes: list[int], mark: str) -> list[Array]:
    found = [random_array(rng, size, np.float16) for size in sizes]
    if mark == "-":
        found[-1][-1] = np.inf
    return found


def walk(opt: LossScaleOptimizer, sizes: list[int], place: Callable[[list[Array]], list[Any]]) -> list[Any]:
    """The variables at the end, the slots and what was counted, and the scale after each call."""
    rng = np.random.default_rng(0)
    variables, scales = place([random_array(rng, size, np.float32) for size in sizes]), []
    for mark in COURSE:
        opt.apply(place(gradients(rng, sizes, mark)), variables)
        scales.append(opt.dynamic_scale)
    slots = [slot.copy().tobytes() for variable in variables for slot in opt.slots(variable).values()]
    return [*(v.copy().tobytes() for v in variables), slots, opt.iterations, opt.skipped_calls, scales]


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("devices", [[0, 0, 0], [0, 1, 0], [None, 0, None]], ids=["one", "two", "and CPU"])
def test_the_course_is_that_of_the_cpu(inner: Optimizer, devices: list[int | None], gpus: None) -> None:
    def spread(arrays: list[Array]) -> list[Any]:
        return [
            array.copy() if device is None else simulation.array_on(device, array)
            for array, device in zip(arrays, devices, strict=True)
        ]

    sizes = [5, 5000, 4097]
    here = walk(LossScaleOptimizer(inner.clone(), 8.0, 3), sizes, lambda arrays: arrays)
    assert here[-1] == [8, 8, 4, 4, 4, 8, 4, 2, 2, 2, 4, 4]
    assert walk(LossScaleOptimizer(inner.clone(), 8.0, 3), sizes, spread) == here


def test_nothing_waits(gpus: None) -> None:
    rng = np.random.default_rng(1)
    opt = LossScaleOptimizer(Adam(0.01), 8.0, 2)
    (w,) = put([np.zeros(100, np.float32)])
    opt.build([w])
    for mark in COURSE:
        given = put(gradients(rng, [100], mark))
        simulation.take_events()
        opt.apply(given, [w])
        assert kernels() == ["norms", "staged"]
    assert opt.dynamic_scale == 16
    assert kernels() == ["read"]
    assert (opt.dynamic_scale, opt.skipped_calls, opt.iterations) == (16, 3, 9)
    assert kernels() == [], "what is known is not asked again"


def test_a_graph_adapts_the_scale_as_it_is_replayed(gpus: None) -> None:
    opt = LossScaleOptimizer(SGD(1.0), 8.0, 2)
    w, gradient = put([np.zeros(3), np.ones(3)])
    opt.build([w])
    capture(lambda: opt.apply([gradient], [w]))
    found = []
    for mark in "++-++":
        gradient.assign(np.full(3, np.inf if mark == "-" else opt.dynamic_scale))
        simulation.replay()
        found.append(opt.dynamic_scale)
    assert found == [8, 16, 8, 8, 16]
    assert w.copy().tolist() == [-4, -4, -4]
    opt.dynamic_scale = 2.0
    simulation.replay()  # of gradients that were scaled by 8
    assert w.copy().tolist() == [-8, -8, -8]


class Loss:
    """A loss on a GPU, of a library that has nothing but the product with a number."""

    def __init__(self, value: float, device: int = 0) -> None:
        self.array = simulation.array_on(device, np.array(value, np.float32))
        self.__cuda_array_interface__ = self.array.__cuda_array_interface__

    def __mul__(self, number: float) -> float:
        return float(self.array.copy()) * number


def test_a_loss_is_scaled_by_what_the_device_knows(gpus: None) -> None:
    opt = LossScaleOptimizer(SGD(1.0), 8.0, 1)
    (w,) = put([np.zeros(3)])
    assert opt.scale_loss(Loss(2.0)) == 16, "before there is a build"
    opt.apply(put([np.ones(3)]), [w])
    assert opt.scale_loss(Loss(2.0)) == 32
    assert opt.scale_loss(2.0) == 32
    assert opt.scale_loss(np.float32(2.0)) == 32


def test_one_scale_for_several_models(gpus: None) -> None:
    opt = LossScaleOptimizer(SGD(1.0), 8.0, 2)
    first, second = put([np.zeros(3), np.zeros(4)])
    third = np.zeros(5)
    for variables in ([first], [second], [third]):
        opt.build(variables)
    found = []
    for variable, value in ((first, 8.0), (second, np.inf), (third, 4.0), (first, 4.0), (first, 8.0)):
        gradient = np.full(variable.shape, value)
        opt.apply([gradient if variable is third else put([gradient])[0]], [variable])
        found.append(opt.dynamic_scale)
    assert found == [8, 4, 4, 8, 8]
    assert [v.copy().tolist() for v in (first, second, third)] == [[-3.0] * 3, [0.0] * 4, [-1.0] * 5]
    opt.forget([third])
    assert opt.dynamic_scale == 8


def test_a_graph_has_one_model(gpus: None) -> None:
    opt = LossScaleOptimizer(SGD(1.0), 8.0, 2)
    first, second, gradient = put([np.zeros(3), np.zeros(3), np.ones(3)])
    opt.build([first])
    opt.build([second])
    with pytest.raises(ValueError, match="there are 2 builds with one scale, for which the host"):
        capture(lambda: opt.apply([gradient], [second]))
    assert (opt.iterations, opt.dynamic_scale) == (0, 8)


def test_the_product_has_the_dtype_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of float64 beside it would make it float64."""
    number = np.array(8.0)
    monkeypatch.setattr(device_arrays, "as_array_beside", lambda memory, array: number)
    scaled = device_arrays.times(np.array(2, np.float32), None)  # type: ignore[arg-type]
    assert (scaled, scaled.dtype) == (16, np.float32)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    number = torch.tensor(8.0, dtype=torch.float64)
    scaled = device_arrays.times(torch.tensor(2.0), None)  # type: ignore[arg-type]
    assert (scaled.item(), scaled.dtype) == (16, torch.float32)
