"""PyTorch's optimizers, with all parameters updated by one native call a step.

One import changes, nothing else does::

    from fusedstep.torch import AdamW  # was: from torch.optim import AdamW

The classes derive from PyTorch's own and have their arguments, defaults and checks, parameter groups, hooks,
schedulers and state. What is identical, what is better and what is not supported is in examples/torch.md.
"""

import contextlib
import inspect
import math
import operator
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusedstep import _native
from fusedstep.checks import real_in
from fusedstep.optimizers.nadam import decay_of_one_update

if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
    raise RuntimeError(
        f"fusedstep.torch: PyTorch is {torch.__version__}, but must be 2.10 or newer, whose tensors show"
        " their memory through DLPack's exchange API; update it, or use torch.optim"
    )

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

Group = dict[str, Any]  # one of param_groups
Numbers = tuple[
    float, float, float, list[float]
]  # learning rate, decay, L2 penalty, the rule's hyperparameters

# A rule's hyperparameters, from a parameter group.
NUMBERS: dict[str, Callable[[Group], float]] = {
    "beta_1": lambda group: group["betas"][0],
    "beta_2": lambda group: group["betas"][1],
    "epsilon": lambda group: group["eps"],
    "rho": lambda group: group["rho"] if "rho" in group else group["alpha"],
    "momentum": lambda group: group["momentum"],
    "dampening": lambda group: group["dampening"],
    "learning_rate_decay": lambda group: group["lr_decay"],
    "momentum_decay": lambda group: decay_of_one_update(float(group["momentum_decay"])),
    "epsilon_hat": lambda group: 0.0,
    "form": lambda group: 1.0,  # PyTorch's
}

# What messages of the native code call things, and what they are here.
WORDS = {
    ".apply: ": ".step: ",
    ".build: ": ".step: ",
    "learning_rate times a variable's multiplier must": "lr must",
    "got 1.0 * ": "got ",
    "forget(variables) and build again": "make a new optimizer",
    "every variable": "every parameter",
    "its variable": "its parameter",
    "its own variable": "its own parameter",
    "a variable must": "a parameter must",
    "numpy.ascontiguousarray(w)": "w.contiguous()",
    "numpy.array(w)": "w.clone()",
    "g.copy()": "p.grad.clone()",
    "cupy.asnumpy(g)": "p.grad.cpu()",
    "pass NumPy arrays, for example cupy.asnumpy(x)": "use torch.optim, or parameters on the CPU",
}


class Fused(torch.optim.Optimizer):
    """What all optimizers of this module share; use one of them.

    ``step`` makes one native call for all parameters of a device, whatever their groups' numbers, and more
    only where groups ask for other rules (``amsgrad``, ``nesterov``, ``maximize``, momentum or none). The
    tensors in ``state`` are float64 for float64 parameters and float32 for all others, and live: steps
    change them in place.

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
    _counts_in_state: ClassVar[bool] = True  # whether PyTorch's state has "step"
    _initial: ClassVar[dict[str, str]] = {}  # where a group has the first value of what is in the state

    # Not of PyTorch's pickles: made again when it is missing.
    _parts: "list[Part] | None" = None
    _seen: "_Seen"
    max_norm: float | None = None
    ema: float | None = None

    def __init_subclass__(cls) -> None:
        """Show PyTorch's signature, with the arguments that it lacks."""
        if "__init__" in vars(cls):
            return
        own = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float | None)
            for name in ("max_norm", "ema")
        ]
        _, *theirs = inspect.signature(super().__init__).parameters.values()
        cls.__signature__ = inspect.Signature([*theirs, *own])  # type: ignore[attr-defined]

    def __init__(
        self, *args: Any, max_norm: float | None = None, ema: float | None = None, **kwargs: Any
    ) -> None:
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
                f"{who}: differentiable is True, but steps are not recorded by autograd; leave it out, or use"
                f" torch.optim.{who}"
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
        for k in range(len(parts)):
            try:
                parts[k].step()
            except _MovedError:
                parts = self._make_parts()
                parts[k].step()
        return loss

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
            RuntimeError: there are none, or none that this optimizer keeps.
        """
        kept = self.state.items() if self.ema is not None else ()
        averages = {p: state["ema"] for p, state in kept if "ema" in state}
        if not averages:
            raise RuntimeError(f"{type(self).__name__}.averaged: there are no averages; pass ema=0.999")
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
        if self._parts and not all(part.is_in(self.state) for part in self._parts):
            self._parts = None  # the next step starts from what is saved here
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

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "max_norm": self.max_norm, "ema": self.ema}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._parts = None
        super().__setstate__(state)

    def _current_parts(self) -> "list[Part]":
        """Return the parts, made anew where groups, rules, state or parameters with gradients are others."""
        for group in self.param_groups:
            if not math.isfinite(group["lr"]):
                raise ValueError(f"{type(self).__name__}.step: lr must be finite, got {float(group['lr'])!r}")
        if self._parts is None or not self._seen.is_all_of(self):
            return self._make_parts()
        return self._parts

    def _make_parts(self) -> "list[Part]":
        """Sort the parameters that have a gradient, or had one, by what one native call can do."""
        self._check_options()
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
        parts = [Part(self, rule, maximize, found) for (_, rule, maximize), found in members.items()]
        lost: list[Any] = []
        for part in parts:  # after the last one that may be refused
            part.put_into(self.state, lost)
        self._parts, self._seen = parts, _Seen(self, parts, waiting, lost)
        return parts


class _Seen:
    """What parts were made of: the very objects, as an id may be another's by now."""

    def __init__(self, optimizer: Fused, parts: "list[Part]", waiting: list[Tensor], lost: list[Any]) -> None:
        self.parts = parts
        self.waiting = waiting  # for a first gradient
        self.lost = lost  # what the parts had in the state and is nowhere now
        self.settings = self.settings_of(optimizer)
        self.groups = list(optimizer.param_groups)
        self.members = [group["params"][:] for group in self.groups]
        self.single = [
            (g, k) for g, members in enumerate(self.members) for k, p in enumerate(members) if p.numel() == 1
        ]
        self.state = optimizer.state
        self.count = len(self.state)

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
            self.lost
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
        except RuntimeError:
            return False
        return all(self.members[g][k] is groups[g]["params"][k] for g, k in self.single)


class _MovedError(Exception):
    """Parameters lie elsewhere, or in another way, than when their part was made."""


class Part:
    """The parameters of one device and rule: one plan, and what PyTorch keeps for each of them."""

    def __init__(
        self, optimizer: Fused, rule: str, maximize: bool, members: list[tuple[Tensor, Group, str]]
    ) -> None:
        self.who = type(optimizer).__name__
        self.averages = optimizer.ema is not None
        self.params = [p for p, _, _ in members]
        self.groups: list[Group] = []
        for _, group, _ in members:
            if not any(group is other for other in self.groups):
                self.groups.append(group)
        positions = {id(group): k for k, group in enumerate(self.groups)}
        self.group_of = [positions[id(group)] for _, group, _ in members]
        self.rule, self.hyperparameters = rule, _native.rules()[rule][1]
        self.names = [name for _, _, name in members]
        self.odd: dict[int, Permuted | Gapped] = {}
        for i, p in enumerate(self.params):
            odd = odd_layout(p, self.who, title_of(p, self.names[i]))
            if odd is not None:
                self.odd[i] = odd
        self.places = [place_of(p) for p in self.params]
        self.single = [i for i, p in enumerate(self.params) if p.numel() == 1]

        variables: list[Any] = list(self.params)
        for i, odd in self.odd.items():
            variables[i] = odd.variable
        try:
            self.plan = _native.Plan(self.who, rule, False, self.averages, variables, [], {}, [])
        except (TypeError, ValueError) as error:
            raise self.in_words_of_torch(error) from None
        options = _native.Options()
        options.maximize = maximize
        options.global_clipnorm = optimizer.max_norm
        options.ema_momentum = optimizer.ema
        self.plan.configure(
            rule,
            dict.fromkeys(self.hyperparameters, 0.0),
            options,
            _native.VariableSettings(1.0, 0.0, False),
            {},
        )
        self.updates: npt.NDArray[np.float32] = np.zeros(len(self.params), np.float32)  # PyTorch's "step"
        self.carried: npt.NDArray[np.float64] = np.ones(len(self.params))  # NAdam's "mu_product"
        self.without_average: list[int] = []  # until their first update
        self.idle = False  # whether no parameter had a gradient in the last step
        self.live = [self._read_state(optimizer, i) for i in range(len(self.params))]
        self.in_state: list[dict[str, weakref.ref[Tensor]]] = []
        self.counted: Any = None  # updates and carried after the last step
        self.absent: list[int] | None = None  # which had no gradient in the last step
        self.numbers: list[Numbers] = []
        self.classes: list[tuple[int, int]] = []  # group and updates behind, of each set of coefficients
        self.members_of: list[Any] = []  # and which parameters with a gradient it has

    def _read_state(self, optimizer: Fused, index: int) -> dict[str, Tensor]:
        """Return what one parameter has in the state, live, with the values that are there now."""
        live = {
            optimizer._slots.get(slot, "ema"): self._tensor_of_slot(index, slot)
            for slot in self.plan.slot_names
        }
        updates = torch.from_numpy(self.updates)[index]
        if optimizer._counts_in_state:
            live["step"] = updates
        if self.rule == "nadam":
            live["mu_product"] = torch.from_numpy(self.carried)[index]
        state = optimizer.state.get(self.params[index]) or {}
        if self.averages and state.get("ema") is None:
            self.without_average.append(index)
        for name, tensor in live.items():
            value = state.get(name)
            if value is not None:
                self._copy_state(index, name, tensor, torch.as_tensor(value))
                if not optimizer._counts_in_state and name != "ema":
                    updates.fill_(1)  # all that counts there is whether it is the first
            elif name in optimizer._initial:
                tensor.fill_(self.groups[self.group_of[index]][optimizer._initial[name]])
        return live

    def _copy_state(self, index: int, name: str, tensor: Tensor, value: Tensor) -> None:
        if value.shape != tensor.shape:
            title = title_of(self.params[index], self.names[index])
            raise ValueError(
                f"{self.who}.step: state '{name}' of {title} has shape {tuple(value.shape)}, but must have"
                f" {tuple(tensor.shape)}; load the state of the same parameter, or delete it"
            )
        tensor.copy_(value)

    def put_into(self, state: Any, lost: list[Any]) -> None:
        """Put the live tensors into the state; a reference to what is there no more goes to ``lost``."""
        for p, live in zip(self.params, self.live, strict=True):
            if live:
                state.setdefault(p, {}).update(live)
        self.in_state = [
            {name: weakref.ref(tensor, lost.append) for name, tensor in live.items()} for live in self.live
        ]
        self.live = []  # the state alone has them

    def is_in(self, state: Any, most: int | None = None) -> bool:
        """Whether all live tensors are in the state, of all parameters or so many."""
        return all(
            tensor() is (state.get(p) or {}).get(name)
            for p, tensors in zip(self.params[:most], self.in_state[:most], strict=True)
            for name, tensor in tensors.items()
        )

    def _tensor_of_slot(self, index: int, slot: str) -> Tensor:
        tensor = torch.from_dlpack(self.plan.slot(index, slot))
        odd = self.odd.get(index)
        return tensor if odd is None else odd.as_parameter(tensor)

    def step(self) -> None:
        """Make the native call, unless no parameter has a gradient."""
        grads, absent = _native.attributes_of(self.params, "grad")
        self.idle = len(absent) == len(grads)
        if self.idle:
            return
        for i, odd in self.odd.items():
            if grads[i] is not None:
                if place_of(self.params[i]) != self.places[i]:
                    raise _MovedError
                odd.read()
                grads[i] = odd.gradient(grads[i])
        for i in self.single:  # of more elements, those that are to be negated have gaps, and are copied
            if grads[i] is not None and grads[i].is_neg():
                grads[i] = grads[i].resolve_neg()
        self._choose_coefficients(absent)
        try:
            self.plan.step(grads, None, 1.0)
        except (TypeError, ValueError) as error:
            if self.places != [place_of(p) for p in self.params]:
                raise _MovedError from error
            self.refuse_gradients()
            raise self.in_words_of_torch(error) from None
        for i, odd in self.odd.items():
            if grads[i] is not None:
                odd.write()
        if absent:
            for members in self.members_of:
                self.updates[members] += 1
            increment_version([p for p, grad in zip(self.params, grads, strict=True) if grad is not None])
        else:
            self.updates += 1
            increment_version(self.params)
        if self.rule == "nadam":
            for k, members in enumerate(self.members_of):
                self.carried[members] = self.plan.carried_of(k)
        if self.without_average:
            self._start_averages(absent)
        self.counted = self._counts()

    def _start_averages(self, absent: list[int]) -> None:
        """Start the averages of those that had their first update, with the parameter."""
        for i in set(self.without_average).difference(absent):
            self._tensor_of_slot(i, "average").copy_(self.params[i])
        self.without_average = [i for i in self.without_average if i in absent]

    def _counts(self) -> tuple[bytes, bytes]:
        return self.updates.tobytes(), self.carried.tobytes()

    def _choose_coefficients(self, absent: list[int]) -> None:
        """Tell the plan what each parameter is updated with, where that changed."""
        numbers = [self._numbers(group) for group in self.groups]
        if absent == self.absent and self._counts() == self.counted:
            if numbers != self.numbers:
                carried = [self.plan.carried_of(k) for k in range(len(self.classes))]
                self.plan.set_groups(self._sets(numbers, carried), None)
                self.numbers = numbers
            return
        # (Not 0 where there are averages: all of them would start there.)
        self.plan.updates = self.plan.calls = max(int(self.updates.max()), int(self.averages))
        behind = (self.plan.updates - self.updates).astype(np.int64).tolist()
        keys = list(zip(self.group_of, behind, self.carried.tolist(), strict=True))
        position = {key: k for k, key in enumerate(dict.fromkeys(keys))}
        self.classes = [(group, late) for group, late, _ in position]
        of = [position[key] for key in keys]
        self.plan.set_groups(self._sets(numbers, [carried for _, _, carried in position]), of)
        given = np.ones(len(of), bool)
        given[absent] = False
        self.members_of = [np.flatnonzero((np.array(of) == k) & given) for k in range(len(position))]
        self.absent, self.numbers = absent, numbers

    def _sets(self, numbers: list[Numbers], carried: list[float]) -> list[_native.Group]:
        return [
            _native.Group(*numbers[group], late, product)
            for (group, late), product in zip(self.classes, carried, strict=True)
        ]

    def _numbers(self, group: Group) -> Numbers:
        """Return learning rate, decoupled decay, L2 penalty and the rule's hyperparameters."""
        decay = float(group["weight_decay"])
        decoupled = group.get("decoupled_weight_decay", False)
        return (
            float(group["lr"]),
            decay if decoupled else 0.0,
            0.0 if decoupled else decay,
            [float(NUMBERS[name](group)) for name in self.hyperparameters],
        )

    def in_words_of_torch(self, error: Exception) -> Exception:
        """Return the same error about parameters, where the native code says variables."""
        message = re.sub(r"(grads|variables)\[(\d+)\]", self._title_in_message, str(error))
        for theirs, ours in WORDS.items():
            message = message.replace(theirs, ours)
        return type(error)(message)

    def _title_in_message(self, found: re.Match[str]) -> str:
        index = int(found[2])
        title = title_of(self.params[index], self.names[index])
        return f"the gradient of {title}" if found[1] == "grads" else title

    def refuse_gradients(self) -> None:
        """Raise where a gradient is sparse, or has no memory."""
        for p, name in zip(self.params, self.names, strict=True):
            if p.grad is None:
                continue
            what = f"{self.who}.step: the gradient of {title_of(p, name)}"
            if p.grad.layout != torch.strided:
                raise TypeError(
                    f"{what} has the layout {p.grad.layout}, but must be dense; pass sparse=False to its"
                    " layer"
                ) from None
            if p.grad.data_ptr() == 0 and p.grad.numel() > 0:
                raise TypeError(
                    f"{what} has no memory of its own ({type(p.grad).__name__}), but must have; set p.grad to"
                    " p.grad.clone(), or of a DTensor to p.grad.to_local()"
                ) from None


class Permuted:
    """A parameter without gaps whose axes lie in another order, as in channels_last: updated as it lies."""

    def __init__(self, p: Tensor) -> None:
        self.p = p
        self.variable = in_memory_order(p.detach())

    def read(self) -> None:
        """Do nothing: the step reads the parameter."""

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient in the order of the parameter's memory."""
        if grad.layout != torch.strided:
            return grad
        if grad.stride() != self.p.stride():
            grad = torch.empty_like(self.p, dtype=grad.dtype).copy_(grad)
        return in_memory_order(grad)

    def write(self) -> None:
        """Do nothing: the step wrote the parameter."""

    def as_parameter(self, slot: Tensor) -> Tensor:
        """Return the slot with the parameter's shape and strides."""
        return slot.as_strided(self.p.shape, self.p.stride())


class Gapped:
    """A parameter with gaps, as a slice of another tensor is, or the negative bit: updated through a copy."""

    def __init__(self, p: Tensor) -> None:
        self.p = p
        self.variable = p.detach().clone(memory_format=torch.contiguous_format)

    def read(self) -> None:
        """Copy the parameter."""
        self.variable.copy_(self.p)

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient."""
        return grad

    def write(self) -> None:
        """Copy the result back."""
        self.p.copy_(self.variable)

    def as_parameter(self, slot: Tensor) -> Tensor:
        """Return the slot."""
        return slot


def title_of(p: Tensor, name: str) -> str:
    """Return what messages call a parameter."""
    return f"parameter '{name}'" if name else f"a parameter of shape {tuple(p.shape)}"


def odd_layout(p: Tensor, who: str, title: str) -> Permuted | Gapped | None:
    """Return how a parameter is updated that does not lie as it is read, None for one that does."""
    what = f"{who}.step: {title}"
    if p.is_complex():
        raise TypeError(
            f"{what} has dtype {p.dtype}, but must be real; make it of torch.view_as_real, or use"
            f" torch.optim.{who}"
        )
    if not has_memory(p):
        raise TypeError(
            f"{what} has no memory of its own ({type(p).__name__} on {p.device}), but must have; pass the"
            f" tensor that has its elements, of a DTensor p.to_local(), or use torch.optim.{who}"
        )
    if any(size > 1 and stride == 0 for size, stride in zip(p.shape, p.stride(), strict=True)):
        raise ValueError(
            f"{what} has elements that share memory (strides {p.stride()}), but each must have its own; make"
            " it of x.clone()"
        )
    if p.is_neg():  # its memory has what is to be negated
        return Gapped(p)
    if p.is_contiguous():
        return None
    return Permuted(p) if torch.empty_like(p).stride() == p.stride() else Gapped(p)


def has_memory(p: Tensor) -> bool:
    """Whether a tensor has memory of its own, as DTensors, FakeTensors and those on "meta" have not."""
    try:
        storage = p.untyped_storage()
        return bool(p.numel() == 0 or (storage.device.type != "meta" and storage.data_ptr() != 0))
    except RuntimeError:  # it has not even a place for one
        return False


def place_of(p: Tensor) -> tuple[Any, ...]:
    """Return where and how a tensor lies in memory."""
    return p.data_ptr(), p.shape, p.stride(), p.dtype


def in_memory_order(tensor: Tensor) -> Tensor:
    """Return a tensor without gaps as one row of all that it has."""
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


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
