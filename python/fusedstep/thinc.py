"""thinc's optimizer, for spaCy and for models of thinc: each parameter's update is one native call.

In the ``config.cfg`` of a spaCy pipeline one name changes::

    [training.optimizer]
    @optimizers = "fusedstep.Adam.v1"  # was: "Adam.v1"

What is identical, what is better and what is not supported is in examples/thinc.md.
"""

from typing import Any

import thinc.api
import thinc.optimizers
from thinc.optimizers import ADAM_DEFAULTS, SGD_DEFAULTS

from fusedstep import _native
from fusedstep.device_arrays import on_device_of

__all__ = ["SGD", "Adam", "Optimizer", "RAdam"]

Key = tuple[int, str]
Setting = Any  # a number, or a schedule of any kind that thinc takes
Settings = tuple[float, ...]  # b1, b2, eps, L2, grad_clip, and two that are flags
NUMBERS = 5

# From thinc 9 on an optimizer's attributes are schedules, which are asked at each step.
HAS_SCHEDULES = not hasattr(thinc.optimizers, "FloatOrSeq")

LARGEST_MOMENTUM = 0.9999  # of the averages, as in thinc


class Optimizer(thinc.api.Optimizer):  # type: ignore[misc]
    """thinc's Optimizer, with its arguments, schedules, averages and attributes.

    ``optimizer(key, weights, gradient)`` updates the weights in place, clipped, decayed and averaged, in
    one native call, and sets the gradient to zero. With ``use_radam`` it is RAdam; else, with ``beta1`` and
    ``beta2`` above 0, Adam, or plain gradient descent. Each key has a count of its own.

    Args:
        learn_rate, L2, beta1, beta2, eps, grad_clip, use_averages, use_radam, L2_is_weight_decay: as in
            thinc; all but the last three can be schedules.

    >>> import numpy as np
    >>> optimizer = Optimizer(0.5, beta1=0.0, beta2=0.0, grad_clip=0.0, use_averages=False)
    >>> weights, gradient = np.ones(2, np.float32), np.ones(2, np.float32)
    >>> optimizer((0, "W"), weights, gradient)
    (array([0.5, 0.5], dtype=float32), array([0., 0.], dtype=float32))
    """

    __slots__ = ("_updaters",)  # and no __dict__: an attribute that thinc does not know is an error

    def __init__(self, learn_rate: Setting, **arguments: Any) -> None:
        super().__init__(learn_rate, **arguments)
        self._updaters = Updaters()

    def __call__(self, key: Key, weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        """Update the weights in place, and set the gradient to zero.

        Args:
            key: who the parameter is.
            weights: float32, of NumPy or CuPy. Where they are not C-contiguous, Adam and RAdam update and
                return a copy, as thinc's do.
            gradient: of the same shape.
            lr_scale: what the learning rate is multiplied by.

        Returns:
            Both.
        """
        if len(gradient) < 1:
            return weights, gradient
        learn_rate = self.learn_rate
        settings = (
            self.b1,
            self.b2,
            self.eps,
            self.L2,
            self.grad_clip,
            self.L2_is_weight_decay,
            self.use_radam,
        )
        if HAS_SCHEDULES:
            about = {"key": key, "last_score": self.last_score}
            learn_rate = learn_rate(self.step, **about)
            numbers = (schedule(self.step, **about) for schedule in settings[:NUMBERS])
            settings = (*numbers, *settings[NUMBERS:])
        given = weights
        updater = known = self._updaters.get(key)
        count, averages = self.nr_update.get(key, 0), self.averages
        if (
            updater is None
            or not (updater.weights is weights or updater.is_of(weights))
            or updater.count != count
            or updater.mom1 is not self.mom1.get(key)
            or updater.mom2 is not self.mom2.get(key)
            or updater.average is not (averages is not None and averages.get(key))
        ):
            with on_device_of(weights):
                if not weights.flags.c_contiguous:
                    weights = weights.copy()
                updater = Updater(self, key, weights, settings)
        if settings != updater.settings:
            if updater.rule != rule_of(settings):  # which may have other slots
                with on_device_of(weights):
                    updater = Updater(self, key, weights, settings)
            updater.configure(settings)
        rate = float(learn_rate) * float(lr_scale)
        # thinc decays after the update: (p - rate*u)*(1 - d) is p*(1 - d) - rate*(1 - d)*u, up to d*d.
        updater.step(gradient, rate - rate * rate * updater.decay)
        if updater is not known:
            self._updaters[key] = updater
            updater.show(self, key)
        self.nr_update[key] = updater.count = count + 1
        if weights is not given and updater.rule == "sgd":  # which thinc takes in place, whatever the layout
            with on_device_of(weights):
                given[...] = weights
            return given, gradient
        return weights, gradient


class Updaters(dict[Key, "Updater"]):
    """Those of one optimizer. A copy of it makes its own, of the state in its attributes."""

    def __init__(self) -> None:
        super().__init__()
        # Threads that one parameter's update has woken are awake for the next one's: all learn together.
        self.pace = _native.Pace()

    def __reduce__(self) -> tuple[Any, ...]:
        return Updaters, ()


class Updater:
    """What updates one parameter, as long as its state is what the optimizer's attributes say."""

    def __init__(self, optimizer: Optimizer, key: Key, weights: Any, settings: Settings) -> None:
        self.who, self.weights, self.rule = type(optimizer).__name__, weights, rule_of(settings)
        self.averages = optimizer.averages is not None
        self.plan = _native.Plan(
            self.who,
            self.rule,
            False,
            self.averages,
            [weights],
            [name_of(key)],
            {},
            [],
            pace=optimizer._updaters.pace,
        )
        self.count = self.plan.calls = self.plan.updates = optimizer.nr_update.get(key, 0)
        self.slots = {slot: self._array(slot) for slot in self.plan.slot_names}
        for slot, array in self.slots.items():
            known = kept_by(optimizer)[slot].get(key)
            array[...] = 0 if known is None or known.size != array.size else known.reshape(array.shape)
        self.settings: Settings = ()

    def is_of(self, weights: Any) -> bool:
        """Whether another array is the weights: over their memory, and not transposed or reshaped."""
        alike = weights.shape == self.weights.shape and weights.flags.c_contiguous
        return alike and self.plan.owns(weights)

    def show(self, optimizer: Optimizer, key: Key) -> None:
        """Make the slots the optimizer's, once there was a step: one that is refused changes nothing."""
        kept = kept_by(optimizer)
        for slot, array in self.slots.items():
            # thinc's means have one axis; its averages have those of the weights.
            kept[slot][key] = array if slot == "average" else array.reshape(-1)
        # What the optimizer's attributes have now: whoever writes others means them.
        self.mom1, self.mom2 = optimizer.mom1.get(key), optimizer.mom2.get(key)
        self.average = self.averages and optimizer.averages.get(key)

    def _array(self, slot: str) -> Any:
        """Return a slot as an array of the weights' library."""
        found = self.plan.slot(0, slot)
        xp = thinc.api.get_array_module(self.weights)
        return found if isinstance(self.weights, type(found)) else xp.from_dlpack(found)

    def configure(self, settings: Settings) -> None:
        """Have the next updates computed with these settings."""
        b1, b2, eps, l2, grad_clip, l2_is_weight_decay, _ = settings
        options = _native.Options()
        options.clipnorm = grad_clip or None
        options.ema_momentum = LARGEST_MOMENTUM if self.averages else None
        options.ema_warms_up = True
        options.clears_gradients = True
        decay, penalty = (float(l2), 0.0) if l2_is_weight_decay else (0.0, float(l2))
        self.plan.configure(
            self.rule,
            {"beta_1": b1, "beta_2": b2, "epsilon": eps, "epsilon_hat": 1.0},
            options,
            _native.VariableSettings(1.0, decay, False),
            {},
        )
        self.decay, self.penalty, self.settings = decay, penalty, settings

    def step(self, gradient: Any, rate: float) -> None:
        """Make the native call."""
        if not self.penalty or getattr(gradient, "shape", None) != self.weights.shape:  # which it refuses
            self.plan.step((gradient,), None, rate)
            return
        with on_device_of(gradient):
            before = gradient.copy()
            gradient += self.penalty * self.weights  # before it is clipped
            try:
                self.plan.step((gradient,), None, rate)
            except BaseException:
                gradient[...] = before
                raise


def kept_by(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's attributes by the names of what they keep."""
    return {"momentum": optimizer.mom1, "velocity": optimizer.mom2, "average": optimizer.averages}


def name_of(key: Any) -> str:
    """Return what errors call a parameter: thinc takes keys of any kind."""
    return str(key[-1] if isinstance(key, tuple) else key)


def rule_of(settings: Settings) -> str:
    """Return the rule that thinc takes with these settings."""
    b1, b2, *_, use_radam = settings
    if not (b1 < 1 and b2 < 1):
        raise ValueError(
            f"Adam: beta1 is {b1} and beta2 is {b2}, but both must be below 1; set others, or"
            " schedules that stay below it"
        )
    if use_radam:
        return "radam"
    if b2 > 0 >= b1:
        raise NotImplementedError(
            f"Adam: beta1 is {b1} and beta2 is {b2}, which thinc does not implement; set both above 0, or"
            " beta2 to 0, for plain gradient descent"
        )
    return "adam" if b2 > 0 else "sgd"


def Adam(  # noqa: N802 - thinc's name
    learn_rate: Setting = ADAM_DEFAULTS["learn_rate"],
    *,
    L2: Setting = ADAM_DEFAULTS["L2"],
    beta1: Setting = ADAM_DEFAULTS["beta1"],
    beta2: Setting = ADAM_DEFAULTS["beta2"],
    eps: Setting = ADAM_DEFAULTS["eps"],
    grad_clip: Setting = ADAM_DEFAULTS["grad_clip"],
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
) -> Optimizer:
    """Return an optimizer, with thinc's arguments and defaults; "fusedstep.Adam.v1" in a config."""
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
    )


def RAdam(  # noqa: N802 - thinc's name
    learn_rate: Setting = ADAM_DEFAULTS["learn_rate"],
    *,
    beta1: Setting = ADAM_DEFAULTS["beta1"],
    beta2: Setting = ADAM_DEFAULTS["beta2"],
    eps: Setting = ADAM_DEFAULTS["eps"],
    L2: Setting = ADAM_DEFAULTS["L2"],
    L2_is_weight_decay: bool = True,
    grad_clip: Setting = ADAM_DEFAULTS["grad_clip"],
    use_averages: bool = True,
) -> Optimizer:
    """Return an optimizer, with thinc's arguments and defaults; "fusedstep.RAdam.v1" in a config."""
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
        use_radam=True,
    )


def SGD(  # noqa: N802 - thinc's name
    learn_rate: Setting,
    *,
    L2: Setting = SGD_DEFAULTS["L2"],
    grad_clip: Setting = SGD_DEFAULTS["grad_clip"],
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
) -> Optimizer:
    """Return an optimizer, with thinc's arguments and defaults; "fusedstep.SGD.v1" in a config."""
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=0.0,
        beta2=0.0,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
    )
