"""Dynamic loss scaling around an optimizer."""

import copy
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, SupportsIndex

from fusedstep import _native
from fusedstep.checks import integer_in, real_in
from fusedstep.device_arrays import times
from fusedstep.optimizers import checkpoint
from fusedstep.optimizers.learning_rate import takes_an_argument
from fusedstep.optimizers.optimizer import Optimizer
from fusedstep.optimizers.options import COUNTS, SCALES
from fusedstep.optimizers.state import DynamicScale
from fusedstep.serialization import deserialize

if TYPE_CHECKING:
    from typing_extensions import Self


class LossScaleOptimizer(Optimizer):
    """Dynamic loss scaling around another optimizer, for gradients that are computed in 16 bits.

    Small gradients are lost in float16. So the loss is multiplied by a scale before its gradients are
    computed, and the step divides them by it::

        loss = opt.scale_loss(loss)
        opt.apply(gradients of this loss, variables)

    A call with gradients that are not finite (the scale was too large) is left out whole, as with
    ``skip_nonfinite``, and the scale is halved. After ``dynamic_growth_steps`` finite calls in a row it is
    doubled. Both happen in the inner optimizer's one pass, with its ``skip_nonfinite``. Clipping sees
    gradients that are divided already.

    Of variables on one GPU, scale and counts are there: neither :meth:`scale_loss` of a loss on the GPU nor
    :meth:`apply` waits for it, and steps in a captured graph adapt the scale as they are replayed. To read
    :attr:`dynamic_scale` waits, and so do steps of an optimizer that serves several models.

    State and settings are the inner optimizer's: its hyperparameters, as ``learning_rate``, can be read and
    set here too.

    Args:
        inner_optimizer: the optimizer that steps; from now on through this one only.
        initial_scale: the first scale, in [2^-126, 2^126].
        dynamic_growth_steps: finite calls in a row until the scale is doubled, at least 1.

    Raises:
        TypeError: the inner optimizer is none, or a number is of another kind.
        ValueError: the inner optimizer has a ``loss_scale_factor`` of its own (the gradients would be
            divided twice), or a number is out of its interval.

    >>> import numpy as np
    >>> from fusedstep import SGD
    >>> opt, w = LossScaleOptimizer(SGD(learning_rate=0.5), initial_scale=1024.0), np.ones(2)
    >>> opt.scale_loss(0.25)
    256.0
    >>> opt.apply([np.array([1024.0, 2048.0])], [w])
    1
    >>> w
    array([0.5, 0. ])
    >>> opt.apply([np.array([np.inf, 2048.0])], [w])
    1
    >>> w, opt.skipped, opt.dynamic_scale
    (array([0.5, 0. ]), True, 512.0)
    """

    def __init__(
        self,
        inner_optimizer: Optimizer,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: SupportsIndex = 2000,
    ) -> None:
        who = type(self).__name__
        if not isinstance(inner_optimizer, Optimizer):
            raise TypeError(
                f"{who}: inner_optimizer must be an optimizer, got {inner_optimizer!r};"
                " fusedstep.get makes one"
            )
        around = inner_optimizer._dynamic_scale
        own = inner_optimizer.loss_scale_factor if around is None else around.scale
        if own is not None:
            raise ValueError(
                f"{who}: inner_optimizer has loss_scale_factor={own!r} of its own, but must have None, or"
                " gradients would be divided twice; leave it out"
            )
        self._inner = inner_optimizer
        self._initial_scale = real_in(initial_scale, f"{who}: initial_scale", SCALES)
        growth_steps = integer_in(dynamic_growth_steps, f"{who}: dynamic_growth_steps", COUNTS)
        self._start(DynamicScale(self._initial_scale, growth_steps))

    def _start(self, scale: DynamicScale) -> None:
        self._inner._dynamic_scale = self._scale = scale
        self._inner.skip_nonfinite = True
        for plan in self._inner._plans:  # from before
            scale.write(plan)

    def _known(self) -> DynamicScale:
        """Return scale and count as they are now, which may have to wait for a GPU."""
        if self._inner._plan is not None:
            self._scale.read(self._inner._plan)
        return self._scale

    def __getattr__(self, name: str) -> Any:
        """What is not of this class is the inner optimizer's: builds, values, other hyperparameters."""
        if name == "_inner":  # of an object that is being made
            raise AttributeError(name)
        return getattr(self._inner, name)

    if not TYPE_CHECKING:  # type checkers know only what is declared

        def __setattr__(self, name: str, value: Any) -> None:
            if name.startswith("_") or hasattr(type(self), name):
                super().__setattr__(name, value)
            else:
                setattr(self._inner, name, value)

    def _set(self, name: str, value: Any) -> None:
        if name in ("loss_scale_factor", "skip_nonfinite"):
            raise ValueError(
                f"{type(self).__name__}: {name} follows the dynamic scale and cannot be set;"
                " set dynamic_scale, or use the inner optimizer alone"
            )
        self._inner._set(name, value)

    @property
    def inner_optimizer(self) -> Optimizer:
        """The optimizer that steps."""
        return self._inner

    @property
    def initial_scale(self) -> float:
        """The first scale."""
        return self._initial_scale

    @property
    def dynamic_growth_steps(self) -> int:
        """How many finite calls in a row double the scale."""
        return self._scale.growth_steps

    @property
    def dynamic_scale(self) -> float:
        """What losses are multiplied by now, and the next call's gradients divided by. It can be set."""
        return self._known().scale

    @dynamic_scale.setter
    def dynamic_scale(self, value: float) -> None:
        self._change(
            real_in(value, f"{type(self).__name__}: dynamic_scale", SCALES), self._known().finite_calls
        )

    # The scale, under the name that it has in other optimizers. To set it is refused.
    loss_scale_factor: Any = property(
        lambda self: self.dynamic_scale, lambda self, value: self._set("loss_scale_factor", value)
    )

    def _change(self, scale: float, finite_calls: int) -> None:
        self._scale.scale, self._scale.finite_calls = scale, finite_calls
        for plan in self._inner._plans:
            self._scale.write(plan)

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times the scale; compute the gradients of this.

        Args:
            loss: a number or an array. float16 ends at 65504: scale in float32.
        """
        plan = self._inner._plan
        live = None if plan is None else plan.loss_scale_on_device
        if live is None or not _native.is_on_device(loss):
            return loss * self.dynamic_scale
        return times(loss, live)

    # Builds and steps.

    def build(self, variables: Iterable[Any] | Mapping[str, Any]) -> None:
        """Make the slots for a set of variables: see :meth:`Optimizer.build`."""
        self._known()  # which the new build goes on from
        self._inner.build(variables)

    def forget(self, variables: Iterable[Any] | Mapping[str, Any]) -> None:
        """Drop a build: see :meth:`Optimizer.forget`."""
        self._known()
        self._inner.forget(variables)

    def adjust(
        self,
        variables: Any,
        *,
        learning_rate_multiplier: float | None = None,
        weight_decay: float | None = None,
        frozen: bool | None = None,
    ) -> None:
        """Change the settings of some variables: see :meth:`Optimizer.adjust`."""
        self._inner.adjust(
            variables,
            learning_rate_multiplier=learning_rate_multiplier,
            weight_decay=weight_decay,
            frozen=frozen,
        )

    def exclude_from_weight_decay(
        self,
        var_list: Iterable[Any] | None = None,
        var_names: Iterable[str | re.Pattern[str]] | re.Pattern[str] | None = None,
    ) -> None:
        """Leave variables out of the weight decay: see :meth:`Optimizer.exclude_from_weight_decay`."""
        self._inner.exclude_from_weight_decay(var_list, var_names)

    def apply(
        self,
        grads: Any = None,
        variables: Any = None,
        *,
        replicas: Iterable[Any] | None = None,
        mean: bool = False,
    ) -> int:
        """Take one step with gradients of a scaled loss, then adapt the scale: see :meth:`Optimizer.apply`.

        Returns:
            The number of calls so far, without those that were left out.
        """
        builds = len(self._inner._plans)
        if builds > 1 and any(plan.is_capturing() for plan in self._inner._plans):
            raise ValueError(
                f"{type(self).__name__}.apply: there are {builds} builds with one scale, for which the host"
                " would have to wait, but a graph is captured; use an optimizer for each"
            )
        calls = self._inner.apply(grads, variables, replicas=replicas, mean=mean)
        if builds > 1:
            known = self._known()
            for plan in self._inner._plans:
                if plan is not self._inner._plan:
                    known.write(plan)
        return calls

    def minimize(self, loss: Callable[..., Any], var_list: Any = None) -> Any:
        """Take one step down a loss of the variables, which autograd scales: see :meth:`Optimizer.minimize`.

        Raises:
            TypeError: the loss takes no variables: the gradients that it would return are not of the scaled
                loss.
        """
        who = f"{type(self).__name__}.minimize"
        if not (callable(loss) and takes_an_argument(loss)):
            raise TypeError(
                f"{who}: loss must take the variables, for autograd, got {loss!r}; where you have gradients,"
                " compute them of scale_loss(loss) and pass them to apply"
            )
        scale = self.dynamic_scale
        scaled = super().minimize(lambda *variables: loss(*variables) * scale, var_list)
        return scaled / scale

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state, with ``dynamic_scale`` and ``finite_calls``, as plain data.

        ``class_name`` and ``config`` are this optimizer's: ``fusedstep.get(state)`` makes an equal one.
        """
        state, known = self._inner.state_dict(), self._known()
        return state | {
            "class_name": type(self).__name__,
            "config": self._config_around(state["class_name"], state["config"]),
            "dynamic_scale": known.scale,
            "finite_calls": known.finite_calls,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, scale and all: see :meth:`Optimizer.load_state_dict`.

        ``initial_scale`` and ``dynamic_growth_steps`` stay the optimizer's own.
        """
        who = f"{type(self).__name__}.load_state_dict"
        inner, scale, finite_calls = self._parts(state, who)
        checkpoint.restore(self._inner, inner, who)
        self._change(scale, finite_calls)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the state, scale and all, to a safetensors file: see :meth:`Optimizer.save`."""
        checkpoint.write(path, self.state_dict(), f"{type(self).__name__}.save")

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over the state that :meth:`save` wrote: see :meth:`Optimizer.load`."""
        who = f"{type(self).__name__}.load"
        inner, scale, finite_calls = self._parts(checkpoint.read(path, who), who)
        checkpoint.restore(self._inner, inner, who)
        self._change(scale, finite_calls)

    def _parts(self, state: Any, who: str) -> tuple[dict[str, Any], float, int]:
        """Check a state as far as it is not the inner optimizer's; return that one's and the rest."""
        if not isinstance(state, Mapping):
            raise TypeError(f"{who}: state must be a dict as of state_dict, got a {type(state).__name__}")
        own = type(self).__name__
        if state.get("class_name") != own:
            raise ValueError(
                f"{who}: the state is that of another optimizer: the class is {state.get('class_name')} in"
                f" the state, {own} here; nothing was loaded; load the state of an inner optimizer into"
                " inner_optimizer"
            )
        try:
            inner = state["config"]["inner_optimizer"]
            inner_state = {**state, "class_name": inner["class_name"], "config": dict(inner["config"])}
            scale = real_in(state["dynamic_scale"], f"{who}: dynamic_scale", SCALES)
            finite_calls = integer_in(state["finite_calls"], f"{who}: finite_calls", "[0, 2^63)")
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{who}: state must be what state_dict returned, but reading it ends with"
                f" {type(error).__name__}: {error}; its keys are {sorted(map(str, state))}"
            ) from error
        return inner_state, scale, finite_calls

    # Configuration and copies.

    def get_config(self) -> dict[str, Any]:
        """Return the arguments; ``inner_optimizer`` is the inner one's class name and configuration."""
        return self._config_around(type(self._inner).__name__, self._inner.get_config())

    def _config_around(self, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "inner_optimizer": {"class_name": class_name, "config": dict(config)},
            "initial_scale": self._initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Self":
        """Make an optimizer of what ``get_config`` returned, or of Keras' configuration, but for the name."""
        arguments = dict(config)
        if "name" not in inspect.signature(cls).parameters:  # as of a class of one's own
            arguments.pop("name", None)
        inner = arguments.get("inner_optimizer")
        if isinstance(inner, Mapping):
            arguments["inner_optimizer"] = deserialize(inner)
        return cls(**arguments)

    def clone(self) -> "Self":
        """Return an optimizer with the same arguments, and without state; its scale is the initial one."""
        return self.from_config({**self.get_config(), "inner_optimizer": self._inner.clone()})

    def __repr__(self) -> str:
        arguments = [repr(self._inner)]
        if self._initial_scale != 2.0**15:
            arguments.append(f"initial_scale={self._initial_scale!r}")
        if self.dynamic_growth_steps != 2000:
            arguments.append(f"dynamic_growth_steps={self.dynamic_growth_steps!r}")
        return f"{type(self).__name__}({', '.join(arguments)})"

    def __copy__(self) -> "Self":
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__() | {"_inner": copy.copy(self._inner)})
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_scale": replace(self._known())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start(self._scale)
