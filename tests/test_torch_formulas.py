"""fusedstep.torch: the numbers, step by step, against PyTorch's classes and those on NumPy arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import fusedstep  # noqa: E402
import fusedstep.torch as adapted  # noqa: E402

# What PyTorch tests its optimizers with on a CPU (torch/testing/_internal/common_optimizers.py).
CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "Adadelta": [
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"weight_decay": 0.1, "maximize": True},
        {"rho": 0.95, "weight_decay": 0.9},
    ],
    "Adagrad": [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"lr": 0.1},
        {"initial_accumulator_value": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.1},
        {"lr": torch.tensor(0.001)},
    ],
    "Adam": [
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "amsgrad": True},
    ],
    "AdamW": [
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "amsgrad": True},
    ],
    "Adamax": [
        {},
        {"lr": 0.1},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"weight_decay": 0.1, "maximize": True},
    ],
    "NAdam": [
        {},
        {"lr": 1e-3},
        {"momentum_decay": 6e-3},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "momentum_decay": 6e-3},
        {"weight_decay": 0.1, "momentum_decay": 6e-3, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "maximize": True},
    ],
    "RAdam": [
        {},
        {"lr": 2e-3},
        {"eps": 1e-6},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
    ],
    "RMSprop": [
        {},
        {"lr": 1e-3},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"weight_decay": 0.1, "centered": True},
        {"maximize": True, "weight_decay": 0.1},
        {"weight_decay": 0.1, "centered": True, "momentum": 0.1},
        {"maximize": True, "weight_decay": 0.1, "centered": True, "momentum": 0.1},
    ],
    "SGD": [
        {},
        {"lr": 1e-2},
        {"lr": torch.tensor(0.001)},
        {"weight_decay": 0.5},
        {"momentum": 0.9},
        {"weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
}
CASES = [(name, arguments) for name, several in CONFIGURATIONS.items() for arguments in several]
every_case = pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda value: str(value))

# The same class on NumPy arrays, with PyTorch's defaults.
ON_NUMPY: dict[str, Callable[[], fusedstep.Optimizer]] = {
    "SGD": lambda: fusedstep.SGD(1e-3, form="torch"),
    "Adam": lambda: fusedstep.Adam(1e-3, epsilon=1e-8),
    "AdamW": lambda: fusedstep.AdamW(1e-3, epsilon=1e-8, weight_decay=0.01),
    "RMSprop": lambda: fusedstep.RMSprop(1e-2, rho=0.99, epsilon=1e-8, form="torch"),
    "Adagrad": lambda: fusedstep.Adagrad(1e-2, epsilon=1e-10, initial_accumulator_value=0.0, form="torch"),
    "Adadelta": lambda: fusedstep.Adadelta(1.0, rho=0.9, epsilon=1e-6),
    "Adamax": lambda: fusedstep.Adamax(2e-3, epsilon=1e-8, form="torch"),
    "NAdam": lambda: fusedstep.Nadam(2e-3, epsilon=1e-8, momentum_decay=4e-3),
    "RAdam": lambda: fusedstep.RAdam(1e-3, epsilon=1e-8),
    "Lion": lambda: fusedstep.Lion(1e-4),
    "Lamb": lambda: fusedstep.Lamb(1e-3, epsilon=1e-6),
}


def parameters(dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(3, 4), (5,), (), (2, 3, 2)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: list[Any], step: int, missing: bool = True) -> None:
    """Gradients of one step; the second parameter has its first one late, the third not every time."""
    generator = torch.Generator().manual_seed(step + 1)
    for index, p in enumerate(params):
        gradient = torch.randn(p.shape, generator=generator).to(p.dtype)
        late = missing and ((index == 1 and step < 3) or (index == 2 and step % 3 == 1))
        p.grad = None if late else gradient


def assert_same_state(ours: Any, theirs: Any, both: list[tuple[Any, Any]], tolerance: float) -> None:
    for p, q in both:
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            our_value = ours.state[p][key].to(value.dtype)
            torch.testing.assert_close(our_value, value, rtol=tolerance, atol=tolerance)


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
def test_as_pytorch_step_by_step(name: str, arguments: dict[str, Any], dtype: Any, tolerance: float) -> None:
    """Its single-tensor path. In float64 PyTorch's mu_product is float32: NAdam differs by that."""
    if name == "NAdam":
        tolerance = max(tolerance, 2e-6)
    ours, theirs = parameters(dtype), parameters(dtype)
    our_optimizer = getattr(adapted, name)(ours, **arguments)
    their_optimizer = getattr(torch.optim, name)(theirs, foreach=False, **arguments)
    for step in range(8):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        our_optimizer.step()
        their_optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)
    both = list(zip(ours, theirs, strict=True))
    assert_same_state(our_optimizer, their_optimizer, both, 10 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ON_NUMPY)
def test_bits_of_the_class_on_numpy_arrays(name: str, dtype: Any) -> None:
    params = parameters(dtype)
    optimizer = getattr(adapted, name)(params)
    twin = ON_NUMPY[name]()

    def as_array(tensor: Any) -> Any:
        if dtype == torch.bfloat16:
            import ml_dtypes

            return tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.detach().numpy()

    arrays = [as_array(p).copy() for p in params]
    for step in range(5):
        set_gradients(params, step, missing=False)
        optimizer.step()
        twin.apply([as_array(p.grad) for p in params], arrays)
        assert [as_array(p).tobytes() for p in params] == [array.tobytes() for array in arrays]
    for p, array in zip(params, arrays, strict=True):
        for slot, value in twin.slots(array).items():
            assert optimizer.state[p][optimizer._slots[slot]].numpy().tobytes() == value.tobytes()


def test_a_late_parameter_takes_its_steps_as_if_alone() -> None:
    """To the bits: its own counts are all that a parameter's coefficients depend on."""
    for name in ("Adam", "NAdam", "Adagrad", "SGD"):
        arguments = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
        together, alone = parameters(), parameters()
        optimizer = getattr(adapted, name)(together, **arguments)
        single = getattr(adapted, name)([alone[1]], **arguments)
        for step in range(9):
            set_gradients(together, step)
            if step in (5, 6):
                together[1].grad = None
            optimizer.step()
            assert len(optimizer._parts) == 1
            if together[1].grad is not None:
                alone[1].grad = together[1].grad
                single.step()
        assert torch.equal(together[1], alone[1])


def strided_parameter(p: Any) -> Any:
    with torch.no_grad():
        memory = torch.zeros(*p.shape[:-1], 2 * p.shape[-1], dtype=p.dtype)
        memory[..., ::2] = p
    return torch.nn.Parameter(memory[..., ::2])


# Layouts of parameter and gradient. PyTorch's fused step on a CPU mixes up elements of some of them.
LAYOUTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "transposed gradient": (lambda p: p, lambda g: g.transpose(0, 1).contiguous().transpose(0, 1)),
    "channels-last gradient": (lambda p: p, lambda g: g.contiguous(memory_format=torch.channels_last)),
    "sliced gradient": (lambda p: p, lambda g: torch.stack([g, -g], dim=-1)[..., 0]),
    "expanded gradient": (lambda p: p, lambda g: g[:1].expand(g.shape)),
    "strided parameter": (strided_parameter, lambda g: g),
    "strided parameter and gradient": (strided_parameter, strided_parameter),
    "strided and transposed parameter": (
        lambda p: torch.nn.Parameter(strided_parameter(p.transpose(0, 1)).detach().transpose(0, 1)),
        lambda g: g,
    ),
    "transposed parameter": (
        lambda p: torch.nn.Parameter(p.detach().transpose(0, 1).contiguous().transpose(0, 1)),
        lambda g: g,
    ),
    "channels-last parameter and gradient": (
        lambda p: torch.nn.Parameter(p.detach().contiguous(memory_format=torch.channels_last)),
        lambda g: g.contiguous(memory_format=torch.channels_last),
    ),
    "channels-last parameter, sliced gradient": (
        lambda p: torch.nn.Parameter(p.detach().contiguous(memory_format=torch.channels_last)),
        lambda g: torch.stack([g, -g], dim=-1)[..., 0],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
def test_layouts(name: str, layout: str) -> None:
    """The elements that a plain parameter and gradient have, to the bits; state in the parameter's layout."""
    of_parameter, of_gradient = LAYOUTS[layout]
    arguments = {"momentum": 0.9} if name == "SGD" else {}
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Parameter(torch.randn((2, 3, 4, 5), generator=generator))
    odd = of_parameter(torch.nn.Parameter(plain.detach().clone()))
    strides = odd.stride()
    optimizers = [getattr(adapted, name)([p], **arguments) for p in (plain, odd)]
    for _ in range(3):
        gradient = of_gradient(torch.randn(plain.shape, generator=generator)).detach()
        plain.grad, odd.grad = gradient.clone(memory_format=torch.contiguous_format), gradient
        for optimizer in optimizers:
            optimizer.step()
    assert odd.stride() == strides
    assert torch.equal(plain, odd)
    for key, value in optimizers[0].state[plain].items():
        assert torch.equal(value, optimizers[1].state[odd][key])


def test_the_sign_of_a_gradient_that_autograd_left_to_its_reader() -> None:
    """One element of a conjugate's imaginary part: contiguous, with PyTorch's negative bit."""
    q, plain = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor(2.0))
    (torch.complex(torch.zeros(()), q).conj() * (1 + 2j)).real.backward()
    assert q.grad.is_neg()
    plain.grad = q.grad.clone()
    for p in (q, plain):
        adapted.SGD([p], lr=0.5).step()
    assert torch.equal(q, plain)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)], ids=str)
def test_the_sign_of_a_parameter_with_the_negative_bit(shape: tuple[int, ...]) -> None:
    """Of more elements than one it has gaps, and its gradient too."""
    plain = torch.nn.Parameter(torch.randn(shape))
    odd = torch.nn.Parameter(torch.complex(torch.zeros(shape), -plain.detach()).conj().imag)
    assert odd.is_neg()
    gradient = torch.complex(torch.zeros(shape), torch.randn(shape)).conj().imag
    optimizers = [adapted.Adam([p]) for p in (plain, odd)]
    for p, optimizer in zip((plain, odd), optimizers, strict=True):
        p.grad = gradient
        optimizer.step()
        optimizer.step()
    assert torch.equal(plain, odd)
    assert torch.equal(optimizers[0].state[plain]["exp_avg"], optimizers[1].state[odd]["exp_avg"])


def test_small_updates_of_16_bit_parameters_are_not_lost() -> None:
    """Slots are float32 there; PyTorch's second moments, in bfloat16, stop moving."""
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = adapted.Adam([p], betas=(0.9, 0.999))
    for _ in range(400):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    second = optimizer.state[p]["exp_avg_sq"]
    assert second.dtype == torch.float32
    assert np.allclose(second.numpy(), 0.25 * (1 - 0.999**400), rtol=1e-4)
