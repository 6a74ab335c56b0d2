"""fusedstep.thinc, thinc's optimizer over CuPy's arrays."""

import importlib
from typing import Any

import numpy as np
import pytest

from gpu.libraries import GPU, Array, host
from reference import same_bits

pytestmark = GPU

SHAPES: dict[str, tuple[int, ...]] = {"W": (70, 30), "b": (5,), "E": (2000, 3)}


@pytest.fixture
def adapted() -> Any:
    pytest.importorskip("thinc", reason="thinc is not installed")
    return importlib.import_module("fusedstep.thinc")


def put(cupy: Any, array: Array, device: int = 0) -> Any:
    with cupy.cuda.Device(device):
        there = cupy.empty(array.shape, array.dtype)
        there.set(array)
    return there


@pytest.fixture(params=[0, 1])
def device(request: pytest.FixtureRequest, cupy: Any) -> int:
    """The GPU that has the arrays; the current one is the first."""
    number: int = request.param
    if cupy.cuda.runtime.getDeviceCount() <= number:
        pytest.skip("needs two GPUs")
    return number


@pytest.mark.parametrize(
    "options",
    [
        {"grad_clip": 0.0},
        {"grad_clip": 0.5, "use_averages": True, "L2": 0.01},
        {"L2": 0.01, "L2_is_weight_decay": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["SGD", "Adam", "RAdam"])
def test_the_bits_of_the_cpu(
    name: str, options: dict[str, Any], cupy: Any, adapted: Any, device: int
) -> None:
    """Also of a parameter that gets another array, and where the state was read between updates."""
    cls = getattr(adapted, name)
    here, there = ({"optimizer": cls(learn_rate=0.01, **options)} for _ in range(2))
    rng = np.random.default_rng(1)
    for key, shape in SHAPES.items():
        here[key] = rng.standard_normal(shape).astype(np.float32)
        there[key] = put(cupy, here[key], device)
    for number in range(5):
        for k, (key, shape) in enumerate(SHAPES.items()):
            gradient = rng.standard_normal(shape).astype(np.float32)
            on_gpu = put(cupy, gradient, device)
            here[key], _ = here["optimizer"]((k, key), here[key], gradient, lr_scale=0.5)
            there[key], cleared = there["optimizer"]((k, key), there[key], on_gpu, lr_scale=0.5)
            assert cleared is on_gpu
            assert not host(on_gpu).any()
        if number == 2:
            there["W"] = put(cupy, host(there["W"]), device)
            there["optimizer"].step_schedules()
            here["optimizer"].step_schedules()
    for k, key in enumerate(SHAPES):
        assert same_bits(here[key], host(there[key])), key
        for attribute in ("mom1", "mom2", "averages"):
            ours, theirs = (getattr(one["optimizer"], attribute) for one in (here, there))
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert ours.keys() == theirs.keys()
                if (k, key) in ours:
                    assert isinstance(theirs[k, key], cupy.ndarray)
                    assert same_bits(ours[k, key], host(theirs[k, key])), (attribute, key)


def test_a_gradient_on_the_cpu_is_refused(cupy: Any, adapted: Any) -> None:
    optimizer, weights = adapted.Adam(0.01), put(cupy, np.ones(4, np.float32))
    with pytest.raises(ValueError, match="is on cuda:0 but its gradient on the CPU"):
        optimizer((0, "W"), weights, np.ones(4, np.float32))
    assert (host(weights) == 1).all()


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_weights_and_gradients_with_strides(name: str, cupy: Any, adapted: Any, device: int) -> None:
    """Adam returns a copy of such weights, as thinc's; SGD updates them. Gradients are cleared in place."""
    rng = np.random.default_rng(2)
    start, gradients = rng.standard_normal((4, 3), np.float32), rng.standard_normal((3, 4, 3), np.float32)
    left = []
    for on_gpu in (False, True):
        weights = put(cupy, start, device).T if on_gpu else start.copy().T
        optimizer = getattr(adapted, name)(0.5, use_averages=False)
        for values in gradients:
            gradient = put(cupy, values, device).T if on_gpu else values.copy().T
            weights, _ = optimizer((0, "W"), weights, gradient)
            assert not host(gradient.T).any()
        left.append(host(weights if weights.flags.c_contiguous else weights.T))
    assert same_bits(*left)
