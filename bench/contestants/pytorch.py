"""PyTorch: torch.optim with fused=True, the fastest by its documentation, with foreach=True, and as is.

And fusedstep.torch, whose classes have the same arguments, on the same tensors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.contestants.contestant import Array, Contestant, Given, import_peer
from bench.optimizers import CLIP_NORM, EMA

OURS = "fusedstep"
SETTINGS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "default": {},
    OURS: {},
}
OUR_STEPS: dict[str, dict[str, Any]] = {
    "clip": {"max_norm": CLIP_NORM},
    "clip-ema": {"max_norm": CLIP_NORM, "ema": EMA},
}
FUSED = ("adam", "adamw", "sgd", "momentum", "adagrad")


def tensor(array: Array, device: str = "cpu") -> Any:
    """Copy an array, into the memory that PyTorch gives its users: aligned to cache lines, NumPy's to 16."""
    torch = import_peer("torch")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).clone().to(device)
    return torch.tensor(array, device=device)


def parameters(given: Given, device: str = "cpu") -> list[Any]:
    """Make parameters with gradients."""
    torch = import_peer("torch")
    made = []
    for variable, gradient in zip(given.variables, given.gradients, strict=True):
        parameter = torch.nn.Parameter(tensor(variable, device))
        if isinstance(gradient, tuple):
            indices, rows = gradient
            places = torch.tensor(indices, device=device)[None]
            parameter.grad = torch.sparse_coo_tensor(
                places, tensor(rows, device), variable.shape, check_invariants=True
            ).coalesce()
        else:
            parameter.grad = tensor(gradient, device)
        made.append(parameter)
    return made


def optimizer(given: Given, params: list[Any], setting: str) -> tuple[Any, dict[str, Any]]:
    """Make the optimizer, and say in which form it is."""
    optim = import_peer("fusedstep.torch") if setting == OURS else import_peer("torch").optim
    given.refuse(optimizers=(*FUSED, "rmsprop", "adadelta", "adamax", "nadam", "radam"))
    name, h, lr = given.workload.optimizer, given.definition.arguments, given.learning_rate
    more = SETTINGS[setting] | (OUR_STEPS.get(given.workload.step, {}) if setting == OURS else {})
    if given.workload.step == "sparse":
        given.refuse(optimizers=("adam",))
        return optim.SparseAdam(params, lr, _betas(h), h["epsilon"]), {"epsilon_hat": True}
    if setting == "fused":
        given.refuse(optimizers=FUSED)
    torch_form = {"form": "torch"}
    match name:
        case "adam":
            return optim.Adam(params, lr, _betas(h), h["epsilon"], **more), {}
        case "adamw":
            decay = h["weight_decay"]
            return optim.AdamW(params, lr, _betas(h), h["epsilon"], weight_decay=decay, **more), {}
        case "sgd":
            return optim.SGD(params, lr, **more), {}
        case "momentum":
            return optim.SGD(params, lr, momentum=h["momentum"], **more), {}
        case "rmsprop":
            return optim.RMSprop(params, lr, alpha=h["rho"], eps=h["epsilon"], **more), torch_form
        case "adagrad":
            start, eps = h["initial_accumulator_value"], h["epsilon"]
            return optim.Adagrad(params, lr, initial_accumulator_value=start, eps=eps, **more), torch_form
        case "adadelta":
            return optim.Adadelta(params, lr, rho=0.95, eps=1e-7, **more), {}
        case "adamax":
            return optim.Adamax(params, lr, eps=1e-7, **more), torch_form
        case "radam":
            return optim.RAdam(params, lr, eps=1e-7, **more), {}
        case _:
            return optim.NAdam(params, lr, eps=1e-7, momentum_decay=0.004, **more), {"momentum_decay": 0.004}


def _betas(h: dict[str, Any]) -> tuple[float, float]:
    return h["beta_1"], h["beta_2"]


def step_of(given: Given, params: list[Any], opt: Any, setting: str) -> Any:
    """The optimizer's step; with clipping and averages around it where they are asked for and not in it."""
    torch = import_peer("torch")
    if not given.workload.reads_twice or setting == OURS:
        return opt.step
    averages = (
        [parameter.detach().clone() for parameter in params] if given.workload.step == "clip-ema" else []
    )

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, CLIP_NORM)
        opt.step()
        if averages:
            with torch.no_grad():
                torch._foreach_lerp_(averages, params, 1 - EMA)

    return step


def arrays_of(params: list[Any]) -> list[Array]:
    """The parameters' values; 16 bits as float32, which has them all."""
    return [
        parameter.detach().float().cpu().numpy()
        if parameter.element_size() == 2
        else parameter.detach().cpu().numpy()
        for parameter in params
    ]


def scaling_of(
    given: Given, params: list[Any], as_tensor: Callable[[Any], Any] = tensor
) -> Callable[[float], None]:
    """A function that multiplies the parameters' gradients.

    PyTorch clips gradients in place: after that they are taken from the given ones again.
    """
    given_ones = list(zip(params, given.gradients, strict=True)) if given.workload.reads_twice else []

    def scale(factor: float) -> None:
        for parameter in () if given_ones else params:
            parameter.grad.mul_(factor)
        for parameter, gradient in given_ones:
            gradient *= gradient.dtype.type(factor)
            parameter.grad.copy_(as_tensor(gradient))

    return scale


def renewing_of(params: list[Any]) -> Callable[[], None]:
    """A function that gives the parameters copies of their gradients."""

    def renew() -> None:
        for parameter in params:
            parameter.grad = parameter.grad.clone()

    return renew


def make(given: Given, setting: str) -> Contestant:
    """Step on the CPU."""
    import_peer("torch").set_num_threads(given.threads)
    given.refuse(steps=("plain", "clip", "clip-ema", *(["sparse"] if setting == "default" else [])))
    params = parameters(given)
    opt, form = optimizer(given, params, setting)
    step = step_of(given, params, opt, setting)
    scale, renew = scaling_of(given, params), renewing_of(params)
    return Contestant(step, lambda: arrays_of(params), scale, form, renew=renew)


def make_fused(given: Given) -> Contestant:
    """One kernel for an array, fused=True."""
    return make(given, "fused")


def make_foreach(given: Given) -> Contestant:
    """Lists of arrays in each operation, foreach=True."""
    return make(given, "foreach")


def make_default(given: Given) -> Contestant:
    """What one gets without asking."""
    return make(given, "default")


def make_ours(given: Given) -> Contestant:
    """fusedstep.torch."""
    return make(given, OURS)
