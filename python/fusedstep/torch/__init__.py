"""PyTorch's optimizers, with all parameters updated by one native call a step.

One import changes, nothing else does::

    from fusedstep.torch import AdamW  # was: from torch.optim import AdamW

The classes derive from PyTorch's own and have their arguments, defaults and checks, parameter groups, hooks,
schedulers and state. What is identical, what is better and what is not supported is in examples/torch.md.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from fusedstep.checks import real_in
from fusedstep.torch.fused import Fused
from fusedstep.torch.part import Group

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Fused",
    "Lamb",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
]


class SGD(Fused, torch.optim.SGD):
    """torch.optim.SGD.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> opt = SGD([w], lr=0.5)
    >>> w.square().sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.0, 0.0]
    """

    _slots: ClassVar[dict[str, str]] = {"momentum": "momentum_buffer"}
    _counts_in_state: ClassVar[bool] = False

    def _rule(self, group: Group) -> str:
        if group["momentum"] == 0:
            return "sgd"
        return "sgd_nesterov" if group["nesterov"] else "sgd_momentum"


class Adam(Fused, torch.optim.Adam):
    """torch.optim.Adam.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> opt = Adam([w], lr=0.5)
    >>> w.square().sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.5, 1.5]
    """

    _slots: ClassVar[dict[str, str]] = {
        "momentum": "exp_avg",
        "velocity": "exp_avg_sq",
        "velocity_hat": "max_exp_avg_sq",
    }

    def _rule(self, group: Group) -> str:
        return "adam_amsgrad" if group["amsgrad"] else "adam"


class AdamW(Adam, torch.optim.AdamW):
    """torch.optim.AdamW: Adam with decoupled weight decay.

    >>> import torch
    >>> model = torch.nn.Linear(3, 1)
    >>> opt = AdamW(model.parameters(), lr=1e-3, max_norm=1.0)
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> opt.step()
    >>> opt.gradient_norm is None
    False
    """


class RMSprop(Fused, torch.optim.RMSprop):
    """torch.optim.RMSprop; where ``centered`` the variance never falls below 0, of which PyTorch gets NaN."""

    _slots: ClassVar[dict[str, str]] = {
        "velocity": "square_avg",
        "average_gradient": "grad_avg",
        "momentum": "momentum_buffer",
    }
    _names: ClassVar[dict[str, str]] = {"rho": "alpha"}

    def _rule(self, group: Group) -> str:
        return "rmsprop" + "_centered" * bool(group["centered"]) + "_momentum" * bool(group["momentum"] > 0)


class Adagrad(Fused, torch.optim.Adagrad):
    """torch.optim.Adagrad."""

    _slots: ClassVar[dict[str, str]] = {"accumulator": "sum"}
    _initial: ClassVar[dict[str, str]] = {"sum": "initial_accumulator_value"}

    def _rule(self, group: Group) -> str:
        return "adagrad"


class Adadelta(Fused, torch.optim.Adadelta):
    """torch.optim.Adadelta."""

    _slots: ClassVar[dict[str, str]] = {
        "accumulated_grad": "square_avg",
        "accumulated_delta_var": "acc_delta",
    }

    def _rule(self, group: Group) -> str:
        return "adadelta"


class Adamax(Fused, torch.optim.Adamax):
    """torch.optim.Adamax."""

    _slots: ClassVar[dict[str, str]] = {"momentum": "exp_avg", "norm": "exp_inf"}

    def _rule(self, group: Group) -> str:
        return "adamax"


class NAdam(Fused, torch.optim.NAdam):
    """torch.optim.NAdam; its ``mu_product`` is float64."""

    _slots: ClassVar[dict[str, str]] = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}

    def _rule(self, group: Group) -> str:
        return "nadam"


class RAdam(Fused, torch.optim.RAdam):
    """torch.optim.RAdam."""

    _slots: ClassVar[dict[str, str]] = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}

    def _rule(self, group: Group) -> str:
        return "radam"


class _WithBetas(torch.optim.Optimizer):
    """The arguments of the optimizers that PyTorch lacks, with its checks."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        betas: tuple[float, float],
        weight_decay: float,
        maximize: bool,
        **more: float,
    ) -> None:
        who = type(self).__name__
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(
                f"{who}: lr must be a number or a tensor of one element, got one of shape {tuple(lr.shape)}"
            )
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"{who}: betas must be two numbers in [0, 1), got {betas!r}")
        real_in(lr.item() if isinstance(lr, Tensor) else lr, f"{who}: lr", "[0, inf)")
        defaults = {
            "lr": lr,
            "betas": tuple(real_in(beta, f"{who}: betas", "[0, 1)") for beta in betas),
            "weight_decay": real_in(weight_decay, f"{who}: weight_decay", "[0, inf)"),
            "decoupled_weight_decay": True,
            "maximize": maximize,
            **{name: real_in(value, f"{who}: {name}", "(0, inf)") for name, value in more.items()},
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a state that another library's class of this name has written
            group.setdefault("decoupled_weight_decay", True)
            group.setdefault("maximize", False)


class _Lion(_WithBetas):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, weight_decay, maximize)


class _Lamb(_WithBetas):
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, weight_decay, maximize, eps=eps)


class Lion(Fused, _Lion):
    """Lion (see :class:`fusedstep.Lion`), which PyTorch lacks, with decoupled weight decay.

    Args:
        params, lr, betas, weight_decay, maximize: as of torch.optim.AdamW.
    """

    _slots: ClassVar[dict[str, str]] = {"momentum": "exp_avg"}

    def _rule(self, group: Group) -> str:
        return "lion"


class Lamb(Fused, _Lamb):
    """Lamb (see :class:`fusedstep.Lamb`), which PyTorch lacks, with decoupled weight decay.

    Args:
        params, lr, betas, eps, weight_decay, maximize: as of torch.optim.AdamW.
    """

    _slots: ClassVar[dict[str, str]] = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}

    def _rule(self, group: Group) -> str:
        return "lamb"
