"""What all optimizers have: steps over parts, state and averages; and when parts are made anew."""

import contextlib
import inspect
import math
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fusedstep import _native
from fusedstep.checks import real_in
from fusedstep.torch.part import Group, MovedError, Part, is_on_gpu


class Fused(torch.optim.Optimizer):
    """What all optimizers of this module share; use one of them.

    ``step`` makes one native call for all parameters of a device, whatever their groups' numbers, and more
    only where groups ask for other rules (``amsgrad``, ``nesterov``, ``maximize``, momentum or none). The
    tensors in ``state`` are float64 for float64 parameters and float32 for all others, and live: steps
    change them in place, until one finds other parameters, groups or memory, and puts others there.

    Args:
        max_norm: scale all gradients of a step down together, by one factor inside the step, where their
            Euclidean norm is larger, in (0, inf); ``p.grad`` stays as it is. None for no clipping.
            :attr:`gradient_norm` tells the norm.
        ema: keep an average of every parameter, ``average = ema*average + (1 - ema)*p`` after each step, in
            [0, 1]; it starts as the parameter after its first update. It is ``state[p]["ema"]``, and
            :meth:`averaged` puts it into the parameters. None for no average.

    ``max_norm`` and ``ema`` are attributes too, and may be changed between steps.

    ``foreach``, ``fused`` and ``capturable`` choose between implementations of PyTorch and change nothing
    here; ``differentiable=True`` is refused.

    Raises:
        ValueError, TypeError: what PyTorch's class raises for its arguments; a parameter or gradient is of a
            dtype other than float32, float64, float16 and bfloat16, sparse, or without memory of its own.
    """

    _slots: ClassVar[dict[str, str]] = {}  # PyTorch's names, by the rule's
    _names: ClassVar[dict[str, str]] = {}  # those of hyperparameters, where they differ
    _counts_in_state: ClassVar[bool] = True  # whether PyTorch's state has "step"
    _initial: ClassVar[dict[str, str]] = {}  # where the defaults have the first value of what is in the state

    # No values here: Lightning's wrapper, derived from our class, asks the optimizer for what it lacks.
    _seen: "_Seen | None"
    max_norm: float | None
    ema: float | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show PyTorch's signature, with the arguments that it lacks, unless __init__ is one's own."""
        super().__init_subclass__(**kwargs)
        shown = None  # Python's own way; without it, another would be inherited
        if cls.__init__ is Fused.__init__:
            own = [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float | None)
                for name in ("max_norm", "ema")
            ]
            _, *theirs = inspect.signature(super().__init__).parameters.values()
            shown = inspect.Signature([*theirs, *own])
        cls.__signature__ = shown  # type: ignore[attr-defined]

    def __init__(
        self, *args: Any, max_norm: float | None = None, ema: float | None = None, **kwargs: Any
    ) -> None:
        self._drop_parts()
        super().__init__(*args, **kwargs)
        self._step_supports_amp_scaling = False  # a GradScaler divides the gradients itself
        self.max_norm, self.ema = max_norm, ema
        self._check_options()

    def _check_options(self) -> None:
        """Check what PyTorch does not, or not where a group or an attribute is changed later."""
        who = type(self).__name__
        if self.max_norm is not None:
            self.max_norm = real_in(self.max_norm, f"{who}: max_norm", "(0, inf)")
        if self.ema is not None:
            self.ema = real_in(self.ema, f"{who}: ema", "[0, 1]")
        if any(group.get("differentiable") for group in self.param_groups):
            raise ValueError(
                f"{who}: differentiable is True, but steps are not recorded by autograd; leave it out, set it"
                " to False in the param_groups where a loaded state has brought it, or use torch.optim"
            )

    def _rule(self, group: Group) -> str:
        """Return the name of the rule, in csrc/rules, that a parameter group asks for."""
        raise NotImplementedError(f"{type(self).__name__} has no rule; use fusedstep.torch.Adam or another")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient, in place.

        Args:
            closure: evaluates the model and computes the gradients.

        Returns:
            What the closure returned.
        """
        if torch.compiler.is_compiling():  # what is around the step; it is compiled itself already
            return torch.compiler.disable(Fused._step)(self, closure)
        return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = self._current_parts()
        if len(parts) > 1:
            for part in parts:  # before the first one changes anything
                part.refuse_gradients()
        for k, part in enumerate(parts):
            try:
                part.step()
            except MovedError:
                self._step_moved(parts[:k])
                break
        if self.ema is not None:
            self._average_idle_parts()
        if self._seen is not None:
            self._seen.count = len(self.state)
        return loss

    def _average_idle_parts(self) -> None:
        idle = [part for part in self._parts if part.idle]
        if len(idle) < len(self._parts):  # without any gradient, a step changes nothing
            for part in idle:
                part.average()

    def _step_moved(self, made: list[Part]) -> None:
        """Step with parts made anew, but for parameters that were updated before others were found moved."""
        updated = {id(p) for part in made for p in part.params}
        for part in self._make_parts():
            if not updated.issuperset(map(id, part.params)):
                part.step()

    @property
    def gradient_norm(self) -> float | Tensor | None:
        """The Euclidean norm of all gradients of the last step, before ``max_norm`` clipped them.

        None where there were none, and without ``max_norm``. Of parameters on a GPU, a tensor there: the last
        step's, until the next one.
        """
        norm = self._parts[0].plan.norm if self._parts and not self._parts[0].idle else None
        return torch.from_dlpack(norm) if isinstance(norm, _native.DeviceArray) else norm

    @contextlib.contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[None]:
        """Have the averages that ``ema`` keeps in the parameters, until the end of the ``with`` block.

        Raises:
            RuntimeError: this optimizer keeps none, or has made no update yet.
        """
        kept = self.state.items() if self.ema is not None else ()
        averages = {p: state["ema"] for p, state in kept if "ema" in state}
        if not averages:
            why = (
                "ema is None; pass ema=0.999"
                if self.ema is None
                else "there was no update; take a step first"
            )
            raise RuntimeError(f"{type(self).__name__}.averaged: there are no averages, for {why}")
        before = {p: p.detach().clone() for p in averages}
        for p, average in averages.items():
            p.copy_(average)
        try:
            yield
        finally:
            for p, values in before.items():
                p.copy_(values)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as PyTorch's class of the same name would."""
        self._count_replays()
        if self._parts and not all(part.is_in(self.state) for part in self._parts):
            self._drop_parts()  # the next step starts from what is saved here
        state: dict[str, Any] = super().state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state: of this class, or of PyTorch's of the same name.

        It is copied as it is, where PyTorch would round it to the dtype of the parameters.
        """
        given: list[dict[str, Any]] = []  # as the other hooks leave it

        def copy_exactly(optimizer: Fused) -> None:
            numbers = [number for group in given[0]["param_groups"] for number in group["params"]]
            params = [p for group in optimizer.param_groups for p in group["params"]]
            for number, p in zip(numbers, params, strict=True):
                for name, value in given[0]["state"].get(number, {}).items():
                    if isinstance(value, Tensor):
                        loaded = optimizer.state[p]
                        loaded[name] = value.to(loaded[name].device, copy=True)

        hooks = [
            self.register_load_state_dict_pre_hook(lambda _, state: given.append(state)),
            self.register_load_state_dict_post_hook(copy_exactly, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _count_replays(self) -> None:
        for part in self._parts:
            part.count_replays()

    def __getstate__(self) -> dict[str, Any]:
        self._count_replays()
        return {**super().__getstate__(), "max_norm": self.max_norm, "ema": self.ema}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._drop_parts()
        super().__setstate__(state)

    def _drop_parts(self) -> None:
        """Have the next step make them anew; what they and the former state have of memory is freed now."""
        self._seen = None

    @property
    def _parts(self) -> list[Part]:
        """Those of the last step; none where the next one makes them anew."""
        return [] if self._seen is None else self._seen.parts

    def _current_parts(self) -> list[Part]:
        """Return the parts, made anew where groups, rules, state or parameters with gradients are others."""
        for group in self.param_groups:
            if not is_on_gpu(group["lr"]) and not math.isfinite(group["lr"]):
                raise ValueError(f"{type(self).__name__}.step: lr must be finite, got {float(group['lr'])!r}")
        if self._seen is None or not self._seen.is_all_of(self):
            return self._make_parts()
        return self._parts

    def _make_parts(self) -> list[Part]:
        """Sort the parameters that have a gradient, or had one, by what one native call can do."""
        self._check_options()
        self._count_replays()
        for name in ("max_norm", "ema"):
            if any(name in group for group in self.param_groups):
                warnings.warn(
                    f"{type(self).__name__}: '{name}' in a parameter group has no effect here; pass it to the"
                    " constructor, for all groups",
                    stacklevel=2,
                )
        members: dict[Any, list[tuple[Tensor, Group, str]]] = {}
        waiting = []
        for group in self.param_groups:
            rule, names = self._rule(group), group.get("param_names") or []
            if len(names) != len(group["params"]):  # a list that was edited; they are for messages alone
                names = [""] * len(group["params"])
            for p, name in zip(group["params"], names, strict=True):
                if p.grad is None and not self.state.get(p):
                    waiting.append(p)
                else:
                    members.setdefault((p.device, rule, bool(group["maximize"])), []).append((p, group, name))
        if self.max_norm is not None and len(members) > 1:
            found = ", ".join(f"{rule} on {device}" for device, rule, _ in members)
            raise ValueError(
                f"{type(self).__name__}: max_norm is for parameters of one rule on one device, got {found};"
                " leave it out and call torch.nn.utils.clip_grad_norm_ before the step"
            )
        with torch.inference_mode(False), torch.no_grad():  # of that mode, it could not be written after it
            parts = [Part(self, rule, maximize, found) for (_, rule, maximize), found in members.items()]
        self._seen = _Seen(self, parts, waiting)
        return parts


class _Seen:
    """What parts were made of: the very objects, as an id may be another's by now."""

    def __init__(self, optimizer: Fused, parts: list[Part], waiting: list[Tensor]) -> None:
        self.parts = parts
        self.waiting = waiting  # for a first gradient
        self.settings = self.settings_of(optimizer)
        self.groups = list(optimizer.param_groups)
        self.members = [group["params"][:] for group in self.groups]
        self.single = [  # or may be, once its module sees an input
            (g, k)
            for g, members in enumerate(self.members)
            for k, p in enumerate(members)
            if is_lazy(p) or p.numel() == 1
        ]
        self.state = optimizer.state
        self.count = len(self.state)  # after the last step

    @staticmethod
    def settings_of(optimizer: Fused) -> list[Any]:
        of_groups = [
            (optimizer._rule(group), bool(group["maximize"]), group.get("differentiable"))
            for group in optimizer.param_groups
        ]
        return [optimizer.max_norm, optimizer.ema, *of_groups]

    def is_all_of(self, optimizer: Fused) -> bool:
        """Whether the optimizer has nothing else, and none of those that wait have a gradient."""
        groups = optimizer.param_groups
        if (
            any(part.lost for part in self.parts)
            or self.settings != self.settings_of(optimizer)
            or not all(map(operator.is_, self.groups, groups))
            or self.state is not optimizer.state
            or self.count != len(self.state)
            # Nothing is lost while somebody keeps it: a loop's variable keeps the last tensor, maybe the only
            # one, and who swaps states keeps all.
            or not all(part.is_in(self.state, 1) for part in self.parts)
            or any(p.grad is not None for p in self.waiting)
        ):
            return False
        # Lists look at identity first, in C. What is not the same is asked for equality, which a tensor has
        # no answer to unless it is of one element.
        try:
            if self.members != [group["params"] for group in groups]:
                return False
        except (RuntimeError, ValueError):  # the latter of lazy ones
            return False
        return all(self.members[g][k] is groups[g]["params"][k] for g, k in self.single)
