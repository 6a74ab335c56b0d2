"""Parameters of one device and rule: how their groups, gradients and state come to one plan and back."""

import re
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusedstep import _native
from fusedstep.optimizers.nadam import decay_of_one_update
from fusedstep.torch.layouts import Gapped, Permuted, odd_layout, place_of, refuse_shape

if TYPE_CHECKING:
    from fusedstep.torch.fused import Fused

Group = dict[str, Any]  # one of param_groups
# Of a group: multiplier of the step's learning rate, decay, L2 penalty, the rule's hyperparameters.
Numbers = tuple[float, float, float, list[float]]
Seat = tuple["weakref.ref[Tensor]", int]  # a live tensor in the state, and the address of its memory

# A rule's hyperparameters, from a parameter group.
NUMBERS: dict[str, Callable[[Group], float]] = {
    "beta_1": lambda group: group["betas"][0],
    "beta_2": lambda group: group["betas"][1],
    "epsilon": lambda group: group["eps"],
    "rho": lambda group: group["rho"],
    "alpha": lambda group: group["alpha"],
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
    "learning_rate times a variable's multiplier": "lr",
    "learning_rate times weight_decay": "lr times weight_decay",
    "learning_rate must": "lr must",
    "got 1.0 * ": "got ",
    "forget(variables) and build again": "make a new optimizer",
    "every variable": "every parameter",
    "its variable": "its parameter",
    "its own variable": "its own parameter",
    "the variable's device": "the parameter's device",
    "a variable must": "a parameter must",
    "numpy.ascontiguousarray(w)": "w.contiguous()",
    "numpy.array(w)": "w.clone()",
    "g.copy()": "p.grad.clone()",
    "cupy.asnumpy(g)": "p.grad.cpu()",
    "pass NumPy arrays, for example cupy.asnumpy(x)": "use torch.optim, or parameters on the CPU",
}


def is_on_gpu(rate: Any) -> bool:
    """Whether a learning rate is a tensor that nobody can look at without waiting."""
    return isinstance(rate, Tensor) and rate.is_cuda


class MovedError(Exception):
    """Parameters lie elsewhere, or in another way, than when their part was made."""


class Part:
    """The parameters of one device and rule: one plan, and what PyTorch keeps for each of them."""

    def __init__(
        self, optimizer: "Fused", rule: str, maximize: bool, members: list[tuple[Tensor, Group, str]]
    ) -> None:
        self.who = type(optimizer).__name__
        self.ema = optimizer.ema
        self.params = [p for p, _, _ in members]
        self.groups: list[Group] = []
        for _, group, _ in members:
            if not any(group is other for other in self.groups):
                self.groups.append(group)
        positions = {id(group): k for k, group in enumerate(self.groups)}
        self.group_of = [positions[id(group)] for _, group, _ in members]
        self.rule, self.hyperparameters = rule, _native.rules()[rule][1]
        # By the class alone: a group may have other programs' keys too, as SAM's "rho".
        self.numbers_of = [NUMBERS[optimizer._names.get(name, name)] for name in self.hyperparameters]
        self.may_decouple = "decoupled_weight_decay" in optimizer.defaults
        self.names = [name for _, _, name in members]
        self.odd: dict[int, Permuted | Gapped] = {}
        for i, p in enumerate(self.params):
            odd = odd_layout(p, f"{self.who}.step: {title_of(p, self.names[i])}")
            if odd is not None:
                self.odd[i] = odd
        self.on_gpu = self.params[0].is_cuda
        self.places = [place_of(p) for p in self.params]
        self.single = [i for i, p in enumerate(self.params) if p.numel() == 1]

        variables: list[Any] = list(self.params)
        for i, odd in self.odd.items():
            variables[i] = odd.variable
        try:
            self.plan = _native.Plan(self.who, rule, False, self.ema is not None, variables, [], {}, [])
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
        self.unstarted: dict[int, dict[str, Tensor]] = {}  # what waits for a first update
        self.idle = False  # whether no parameter had a gradient in the last step
        self.known = 0  # updates of the plan that are in the counts; replays of graphs make more
        self.state: Any = optimizer.state
        # Not in the state before a step was accepted: a refused one has changed nothing.
        self.live = [self._read_state(optimizer, i) for i in range(len(self.params))]
        self.in_state: list[dict[str, Seat]] = []
        self.lost: list[Any] = []  # references to what was put into the state and is nowhere now
        self.counted: Any = None  # updates and carried after the last step
        self.absent: list[int] | None = None  # which had no gradient in the last step
        self.numbers: list[Numbers] = []
        self.classes: list[tuple[int, int]] = []  # group and updates behind, of each set of coefficients
        self.members_of: list[Any] = []  # and which parameters with a gradient it has

    def _read_state(self, optimizer: "Fused", index: int) -> dict[str, Tensor]:
        """Return what one parameter has in the state, live, with the values that are there now."""
        state = optimizer.state.get(self.params[index]) or {}
        live = {
            optimizer._slots.get(slot, "ema"): self._tensor_of_slot(index, slot)
            for slot in self.plan.slot_names
        }
        # An average starts with the first update; where there are no counts, a momentum tells of one.
        unstarted = [
            name
            for name in live
            if state.get(name) is None and (name == "ema" or not optimizer._counts_in_state)
        ]
        if unstarted:
            self.unstarted[index] = {name: live.pop(name) for name in unstarted}
        # (One element each: pickles have the whole of a storage, for every tensor in it.)
        updates = torch.from_numpy(self.updates[index : index + 1])[0]
        if optimizer._counts_in_state:
            live["step"] = updates
        if self.rule == "nadam":
            live["mu_product"] = torch.from_numpy(self.carried[index : index + 1])[0]
        for name, tensor in live.items():
            value = state.get(name)
            if value is not None:
                # (Not on the default device, whither as_tensor takes even tensors.)
                given = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
                self._copy_state(index, name, tensor, given)
                if not optimizer._counts_in_state and name != "ema":
                    updates.fill_(1)  # all that counts there is whether it is the first
            elif name in optimizer._initial:
                tensor.fill_(optimizer.defaults[optimizer._initial[name]])
        return live

    def _copy_state(self, index: int, name: str, tensor: Tensor, value: Tensor) -> None:
        if name in ("step", "mu_product") and value.numel() == 1:
            value = value.reshape(())  # of shape (1,) of older PyTorchs, fused or capturable
        if value.shape != tensor.shape:
            title = title_of(self.params[index], self.names[index])
            raise ValueError(
                f"{self.who}.step: state '{name}' of {title} has shape {tuple(value.shape)}, but must have"
                f" {tuple(tensor.shape)}; load the state of the same parameter, or delete it"
            )
        tensor.copy_(value)

    def _put_into_state(self) -> None:
        """Put the live tensors into the state, which alone has them then."""
        self.in_state = [{} for _ in self.params]
        for i, live in enumerate(self.live):
            self._put(i, live)
        self.live = []

    def _put(self, index: int, live: dict[str, Tensor]) -> None:
        if live:
            self.state.setdefault(self.params[index], {}).update(live)
        for name, tensor in live.items():
            self.in_state[index][name] = weakref.ref(tensor, self.lost.append), tensor.data_ptr()

    def is_in(self, state: Any, most: int | None = None) -> bool:
        """Whether all live tensors are in the state, of all parameters or so many.

        Their memory counts too: share_memory_(), which torch.multiprocessing calls, and an assignment to
        .data put another under the same tensor.
        """
        if self.live:
            return False
        for p, seats in zip(self.params[:most], self.in_state[:most], strict=True):
            found = state.get(p) or {}
            for name, (tensor, address) in seats.items():
                kept = tensor()
                if kept is None or kept.data_ptr() != address or kept is not found.get(name):
                    return False
        return True

    def _tensor_of_slot(self, index: int, slot: str) -> Tensor:
        tensor = torch.from_dlpack(self.plan.slot(index, slot))
        odd = self.odd.get(index)
        return tensor if odd is None else odd.as_parameter(tensor)

    def step(self) -> None:
        """Make the native call, unless no parameter has a gradient."""
        grads, absent = _native.attributes_of(self.params, "grad")
        self.idle = len(absent) == len(grads)
        if self.idle:
            if self.live:
                self._put_into_state()
            return
        capturing = self._is_capturing()
        for i, odd in self.odd.items():
            if grads[i] is None and self.ema is None:
                continue
            if place_of(self.params[i]) != self.places[i]:
                raise MovedError
            odd.read()
            if grads[i] is not None:
                if grads[i].shape != odd.p.shape:  # where p.data was replaced and p.grad was not
                    refuse_shape(grads[i], odd.p, self._title_of_gradient(i), "parameter")
                grads[i] = odd.gradient(grads[i])
        # Of more elements, what autograd leaves to be negated has gaps, and is copied; to ask all that have
        # none would take a fifth of a step.
        for i in self.single:
            if grads[i] is not None and grads[i].is_neg():
                grads[i] = grads[i].resolve_neg()
        rate = self._choose_coefficients(absent)
        try:
            self.plan.step(grads, None, rate)
        except (TypeError, ValueError) as error:
            if self.places != [place_of(p) for p in self.params]:
                raise MovedError from error
            self.refuse_gradients()
            raise self.in_words_of_torch(error) from None
        for i, odd in self.odd.items():
            if grads[i] is not None:
                odd.write()
        if capturing:  # it is made as the graph is replayed
            return
        self._count(1)
        updated = self.params
        if absent:
            updated = [p for p, grad in zip(self.params, grads, strict=True) if grad is not None]
        increment_version(updated)
        if self.rule == "nadam":
            for k, members in enumerate(self.members_of):
                self.carried[members] = self.plan.carried_of(k)
        if self.live:
            self._put_into_state()
        if self.unstarted:
            self._start(absent)
        self.counted = self._counts()

    def _is_capturing(self) -> bool:
        """Whether a graph is captured, in which a step is no call that is made, but part of each replay."""
        capturing = self.on_gpu and self.plan.is_capturing()
        if capturing and self.rule == "nadam":
            raise RuntimeError(
                f"{self.who}.step: a graph is captured, but the product of NAdam's momenta is on the host,"
                " where replays would not advance it; step outside of the capture, or use another class"
            )
        return capturing

    def _count(self, made: int) -> None:
        """Count updates of the parameters that have gradients."""
        if self.absent:
            for members in self.members_of:
                self.updates[members] += made
        else:
            self.updates += made
        self.known += made

    def count_replays(self) -> None:
        """Count what replays of captured steps have made, for which it waits."""
        if self.plan.is_captured and self.plan.updates != self.known:
            self._count(self.plan.updates - self.known)
            self.counted = self._counts()

    def _title_of_gradient(self, index: int) -> str:
        return f"{self.who}.step: the gradient of {title_of(self.params[index], self.names[index])}"

    def average(self) -> None:
        """Move the averages in a step that found gradients in other parts alone; else the call does it."""
        for p in self.params:
            average = (self.state.get(p) or {}).get("ema")
            if average is not None and self.ema is not None:
                average.mul_(self.ema).add_(p.to(average.dtype) * (1 - self.ema))

    def _start(self, absent: list[int]) -> None:
        """Put into the state what starts with a first update: an average starts as the parameter."""
        for i in set(self.unstarted).difference(absent):
            started = self.unstarted.pop(i)
            if "ema" in started:
                started["ema"].copy_(self.params[i])
            self._put(i, started)

    def _counts(self) -> tuple[bytes, bytes]:
        return self.updates.tobytes(), self.carried.tobytes()

    def _choose_coefficients(self, absent: list[int]) -> float | Tensor:
        """Tell the plan what each parameter is updated with, where that changed; return the learning rate."""
        rate, numbers = self._rate_and_numbers()
        if absent == self.absent and self._counts() == self.counted:
            if numbers != self.numbers:
                carried = [self.plan.carried_of(k) for k in range(len(self.classes))]
                self.plan.set_groups(self._sets(numbers, carried), None)
                self.numbers = numbers
            return rate
        self.count_replays()
        self._check_counts()
        # (Not 0 where there are averages: all of them would start there.)
        self.known = max(int(self.updates.max()), int(self.ema is not None))
        self.plan.updates = self.plan.calls = self.known
        behind = (self.known - self.updates).astype(np.int64).tolist()
        keys = list(zip(self.group_of, behind, self.carried.tolist(), strict=True))
        position = {key: k for k, key in enumerate(dict.fromkeys(keys))}
        self.classes = [(group, late) for group, late, _ in position]
        of = [position[key] for key in keys]
        self.plan.set_groups(self._sets(numbers, [carried for _, _, carried in position]), of)
        given = np.ones(len(of), bool)
        given[absent] = False
        self.members_of = [np.flatnonzero((np.array(of) == k) & given) for k in range(len(position))]
        self.absent, self.numbers = absent, numbers
        return rate

    def _check_counts(self) -> None:
        """Refuse what is no number of updates, as in a state that was edited, or was float16 once."""
        counts = self.updates
        wrong = ~((counts >= 0) & (counts < 2**53) & (counts == np.floor(counts)))
        if wrong.any():
            index = int(np.argmax(wrong))
            raise ValueError(
                f"{self.who}.step: state 'step' of {title_of(self.params[index], self.names[index])} is"
                f" {float(counts[index])!r}, but must be the number of updates; set it, or delete the state"
            )

    def _sets(self, numbers: list[Numbers], carried: list[float]) -> list[_native.Group]:
        for *_, hyperparameters in numbers:  # which may have been set by hand
            for name, value in zip(self.hyperparameters, hyperparameters, strict=True):
                if name.startswith("beta_") and not 0 <= value < 1:
                    raise ValueError(
                        f"{self.who}.step: the betas of a group must be in [0, 1), got {value!r}"
                    )
        return [
            _native.Group(*numbers[group], late, product)
            for (group, late), product in zip(self.classes, carried, strict=True)
        ]

    def _rate_and_numbers(self) -> tuple[float | Tensor, list[Numbers]]:
        """Return a step's learning rate, and what each group has.

        Where all have the same learning rate, it is the step's: schedulers may change it in every step, and
        what groups have is written to a GPU. One tensor that all share is read on its GPU.
        """
        first = self.groups[0]["lr"]
        is_shared = is_on_gpu(first) and all(group["lr"] is first for group in self.groups)
        if is_shared and first.device == self.params[0].device:
            return first.detach().reshape(()), [self._numbers(group, 1.0) for group in self.groups]
        rates = [float(group["lr"]) for group in self.groups]
        if all(rate == rates[0] for rate in rates):
            return rates[0], [self._numbers(group, 1.0) for group in self.groups]
        return 1.0, [self._numbers(*of) for of in zip(self.groups, rates, strict=True)]

    def _numbers(self, group: Group, multiplier: float) -> Numbers:
        decay = float(group["weight_decay"])
        decoupled = self.may_decouple and group["decoupled_weight_decay"]
        return (
            multiplier,
            decay if decoupled else 0.0,
            0.0 if decoupled else decay,
            [float(number_of(group)) for number_of in self.numbers_of],
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
        grads, _ = _native.attributes_of(self.params, "grad")
        for i, grad in enumerate(grads):
            if grad is None or (grad.layout is torch.strided and (grad.data_ptr() != 0 or grad.numel() == 0)):
                continue
            what = self._title_of_gradient(i)
            if grad.layout is not torch.strided:
                raise TypeError(
                    f"{what} has the layout {grad.layout}, but must be dense; pass sparse=False to its layer"
                ) from None
            raise TypeError(
                f"{what} has no memory of its own ({type(grad).__name__}), but must have; set p.grad to"
                " p.grad.clone(), or of a DTensor to p.grad.to_local()"
            ) from None


def title_of(p: Tensor, name: str) -> str:
    """Return what messages call a parameter."""
    return f"parameter '{name}'" if name else f"a parameter of shape {tuple(p.shape)}"
