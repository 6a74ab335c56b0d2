"""What all optimizers have: steps over one plan, slots as Keras' variables, a sibling for each model."""

import inspect
from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar

import keras

import fusedstep
from fusedstep import _native
from fusedstep.optimizers.adjustments import Adjustments, Change
from fusedstep.optimizers.state import SCALARS

if keras.backend.backend() != "torch":
    raise RuntimeError(
        f"fusedstep.keras: Keras' backend is {keras.backend.backend()}, but must be torch, whose variables"
        " are updated in place (jax's are immutable, tensorflow's belong to its graphs); set"
        " KERAS_BACKEND=torch, or use keras.optimizers"
    )

import torch
from keras.src.backend.common.stateless_scope import in_stateless_scope
from torch.autograd.graph import increment_version

from fusedstep.keras.iterations import Iterations
from fusedstep.keras.layout import Layout, Seat, different, put_over
from fusedstep.torch.part import MovedError

# Arguments that Keras acts upon, around the step.
KERAS_OWN = ("learning_rate", "name", "loss_scale_factor")
# Arguments that are off where they are 0, too.
OFF_AT_0 = (
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
)


class Fused(keras.optimizers.Optimizer):
    """What all optimizers of this module share; use one of them.

    They take the arguments of Keras' class of the same name, with its defaults and formulas. ``variables``
    are those of Keras' class in its order, so files of either can be loaded into the other; but slots are
    float32 for all variables that are not float64, and live in the memory that steps write. One instance
    can serve several models, with counts of their own.

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind.
    """

    _core_class: ClassVar[type[fusedstep.Optimizer]]
    _core_arguments: ClassVar[dict[str, Any]] = {}  # that choose Keras' formula

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the signature of Keras' class, and refuse what steps would not call.

        Raises:
            TypeError: the class has an ``update_step`` of its own.
        """
        super().__init_subclass__(**kwargs)
        if any("update_step" in vars(one) for one in cls.__mro__[: cls.__mro__.index(Fused)]):
            raise TypeError(
                f"{cls.__name__}: update_step is overridden, but a step is one native call, which calls no"
                " other; override apply, which has the gradients, or derive from a class of keras.optimizers"
            )
        shown = None  # Python's own way; without it, another would be inherited
        if cls.__init__ is Fused.__init__:
            _, *theirs = inspect.signature(super().__init__).parameters.values()
            shown = inspect.Signature(theirs)
        cls.__signature__ = shown  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._iterations.__class__ = Iterations
        self._names = tuple(
            name
            for name in self._core_class._hyperparameters
            if name not in KERAS_OWN and name not in self._core_arguments and hasattr(self, name)
        )
        self._core = self._make_core()
        self._siblings: tuple[Fused, ...] = ()

    def _make_core(self) -> fusedstep.Optimizer:
        self._seen = self._core_values()
        return self._core_class(0.0, **self._seen, **self._core_arguments)

    def _core_values(self) -> "Values":
        """Return the arguments that the step depends on."""
        values = Values((name, getattr(self, name)) for name in self._names)
        values.update((name, None) for name in OFF_AT_0 if not values[name])
        if not values["use_ema"]:
            values["ema_overwrite_frequency"] = None
        return values

    def build(self, variables: Iterable[Any]) -> None:
        """Make the slots for the variables of a model.

        Raises:
            TypeError: a variable is of a dtype other than float32, float64, float16 and bfloat16.
            ValueError: a variable comes twice, or two share memory.
            NotImplementedError: it is called in a keras.StatelessScope.
        """
        if self.built:
            return
        self._refuse_scope("build")
        variables = list(variables)
        different(variables, f"{type(self).__name__}.build")
        updated = [v for v in variables if not self._overwrite_variable_with_gradient(v)]
        self._overwrites = len(updated) < len(variables)
        self._bind(Layout(updated, f"{type(self).__name__}.build"))
        super().build(variables)

    def _bind(self, layout: "Layout") -> None:
        """Have steps write the memory that the variables have now."""
        core = self._make_core()
        core.build(layout.named)
        self._core, self._layout = core, layout
        self._exclude()

    def _exclude(self) -> None:
        """Have steps decay the variables that Keras would."""
        excluded = [
            updated
            for variable, updated in zip(self._layout.variables, self._layout.named.values(), strict=True)
            if not self._use_weight_decay(variable)
        ]
        who, off = f"{type(self).__name__}.exclude_from_weight_decay", Change(weight_decay=0.0)
        self._core._adjust_to(Adjustments().and_also(excluded, off, who))

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Leave these variables out of the weight decay, and no others, from the next step on."""
        var_list = list(var_list or ())
        super().exclude_from_weight_decay(var_list, var_names)
        if self.built:
            self._exclude()
        for one in self._siblings:
            one.exclude_from_weight_decay(var_list, var_names)

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> Any:
        """Return a slot as one of Keras' variables, over the memory that steps write."""
        variable = super().add_variable_from_reference(reference_variable, name, initializer)
        index = self._layout.index.get(id(reference_variable))
        # Else it is overwritten by its gradients, whose maximum Keras keeps, or a subclass has its own use.
        if index is not None and name in self._core._plans[0].slot_names:
            self._show_slot(variable, index, name or "")
        return variable

    def _show_slot(self, variable: Any, index: int, name: str) -> Any:
        """Put one of Keras' variables over a slot, and return the slot."""
        slot = torch.from_dlpack(self._core._plans[0].slot(index, name))
        odd = self._layout.odd.get(index)
        slot = slot if odd is None else odd.as_parameter(slot)
        put_over(variable, slot)
        seat = Seat(variable, index, name, variable._value, slot.data_ptr())
        self._layout.seats.append(seat)
        if index == 0:
            self._layout.watched.append(seat)
        return slot

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Take one step: update every variable that has a gradient, in place.

        Args:
            grads: a list of gradients, None for a variable that has none.
            trainable_variables: as many variables; those that were built if left out. Variables of another
                model than before get counts and slots of their own.

        Raises:
            NotImplementedError: it is called in a keras.StatelessScope.
        """
        if torch.compiler.is_compiling():  # what is around the step; it is compiled itself already
            torch.compiler.disable(Fused._apply)(self, grads, trainable_variables)
        else:
            self._apply(grads, trainable_variables)

    def _apply(self, grads: Any, trainable_variables: Any) -> None:
        self._refuse_scope("apply")
        one = self
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            one = self._one_for(trainable_variables)
        super(Fused, one).apply(grads, trainable_variables)

    # What Keras asks every variable before a step, asked at once.

    def _check_variables_are_known(self, variables: Any) -> None:
        ids = different(variables, f"{type(self).__name__}.apply")
        if not self._trainable_variables_indices.keys() >= ids:
            super()._check_variables_are_known(variables)

    def _overwrite_variables_directly_with_gradients(self, grads: Any, vars: Any) -> Any:
        if not self._overwrites:
            return grads, vars
        return super()._overwrite_variables_directly_with_gradients(grads, vars)

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        plan = self._core._plans[0]
        plan.calls = self._iterations.count()  # which decides whether other settings are taken
        values = self._core_values()
        if values != self._seen:
            self._seen = Values()  # where one is refused, those before it are to be set anew
            # What is turned off comes first: there is one way to clip at most.
            for name, value in sorted(values.items(), key=lambda item: item[1] is not None):
                setattr(self._core, name, value)
            self._seen = values
        gradients = self._layout.in_order(grads, trainable_variables)
        rate = self._rate()
        plan.updates = plan.calls // (self.gradient_accumulation_steps or 1)
        try:
            self._step(gradients, rate)
        except (MovedError, TypeError, ValueError) as error:
            self._layout.refuse_sparse(gradients, f"{type(self).__name__}.apply")
            if not isinstance(error, MovedError) and not self._layout.has_moved():
                raise
            self._move()
            self._step(gradients, rate)
        every = self.gradient_accumulation_steps
        if self._overwrites and every and (self._iterations.count() + 1) % every == 0:
            self._clear_other_accumulators()

    @torch.no_grad()
    def _clear_other_accumulators(self) -> None:
        """Begin anew with the variables that gradients overwrite, also those that have none at an update."""
        for variable, accumulated in zip(self._trainable_variables, self._accumulated_gradients, strict=True):
            if id(variable) not in self._layout.index:
                accumulated.value.zero_()

    def _rate(self) -> Any:
        """Return the learning rate: a number, or a tensor on the GPU of all variables."""
        rate = self._get_current_learning_rate()
        if isinstance(rate, keras.Variable):
            rate = rate.value
        if isinstance(rate, torch.Tensor) and rate.device == self._layout.gpu:
            return rate
        return float(rate)

    def _step(self, gradients: list[Any], rate: Any) -> None:
        """Make the native call."""
        layout = self._layout
        if not all(map(Seat.is_taken, layout.watched)):
            raise MovedError
        values, _ = _native.attributes_of(layout.variables, "_value")
        if layout.odd:
            gradients, values = layout.read_odd(gradients, values, f"{type(self).__name__}.apply")
        self._core._plans[0].step(gradients, values, rate)
        if layout.odd:
            layout.write_odd()
        increment_version(values)

    @torch.no_grad()
    def _move(self) -> None:
        """Go on over the memory that the variables have now, with the slots and counts so far."""
        plan, before, who = self._core._plans[0], self._layout, f"{type(self).__name__}.apply"
        layout = Layout(before.variables, who)
        for variable, was, now in zip(before.variables, before.places, layout.places, strict=True):
            if now.shape != was.shape:
                raise ValueError(
                    f"{who}: the variable '{variable.path}' has shape {tuple(now.shape)}, but had"
                    f" {tuple(was.shape)} when the optimizer was built; make a new optimizer"
                )
        for seat in before.seats:
            shape, needed = tuple(seat.variable.value.shape), tuple(layout.places[seat.number].shape)
            if shape != needed:
                raise ValueError(
                    f"{who}: the slot '{seat.variable.path}' has shape {shape}, but had {needed} when the"
                    " optimizer was built; assign values of that shape, or make a new optimizer"
                )
        self._bind(layout)
        moved = self._core._plans[0]
        for name in SCALARS:
            setattr(moved, name, getattr(plan, name))
        for seat in before.seats:
            if seat.name in moved.slot_names:  # what is on now
                values = seat.variable.value
                self._show_slot(seat.variable, seat.number, seat.name).copy_(values)

    def save_own_variables(self, store: Any) -> None:
        """Put all variables into a store."""
        if self.built:  # the next step starts from what is saved here
            self._layout.watched += [seat for seat in self._layout.seats if not seat.is_taken()]
        super().save_own_variables(store)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Put the averages into the variables, where ``use_ema`` keeps some.

        Raises:
            ValueError: there are none of these variables.
        """
        var_list = list(var_list)
        one = self._one_that_knows(var_list)
        if self.use_ema and var_list and one is None:
            raise ValueError(
                f"{type(self).__name__}.finalize_variable_values: there is no average of the variable"
                f" '{var_list[0].path}', of which no step was taken; pass those that were trained, and copy"
                " them from there"
            )
        super(Fused, one or self).finalize_variable_values(var_list)

    def stateless_apply(self, optimizer_variables: Any, grads: Any, trainable_variables: Any) -> Any:
        """Refuse: steps are taken in place."""
        raise NotImplementedError(
            f"{type(self).__name__}.stateless_apply: steps update variables in place; call apply, or use"
            f" keras.optimizers.{type(self).__name__}"
        )

    def _refuse_scope(self, verb: str) -> None:
        """Raise where Keras keeps updates out of variables, as MultiOptimizer.stateless_apply does."""
        if in_stateless_scope():
            raise NotImplementedError(
                f"{type(self).__name__}.{verb}: called in a keras.StatelessScope, but slots are made and"
                " variables updated in place; call it outside of the scope, or use"
                f" keras.optimizers.{type(self).__name__}"
            )

    def _one_for(self, variables: list[Any]) -> "Fused":
        """Return who keeps the counts and slots of these variables: this one, or one like it."""
        if not self.built or not variables:
            return self
        return self._one_that_knows(variables) or self._make_sibling()

    def _one_that_knows(self, variables: list[Any]) -> "Fused | None":
        """Return who keeps the counts and slots of these variables, with the settings of this one.

        Where only some are known, whoever knows them refuses the others.
        """
        ones = [(one, one._trainable_variables_indices.keys()) for one in (self, *self._siblings)]
        of_first = (one for one, known in ones if variables and id(variables[0]) in known)
        of_some = (one for one, known in ones if not known.isdisjoint(map(id, variables)))
        one = next(chain(of_first, of_some), None)
        if one is not None and one is not self:
            one._follow(self)
        return one

    def _make_sibling(self) -> "Fused":
        # The rate is shared; not all that Keras takes has a configuration. Other threads may be reading it.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _learning_rate=0.0)
        one: Fused = type(self).from_config(twin.get_config())
        for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
            if hasattr(self, name):
                setattr(one, name, getattr(self, name))
        one._follow(self)
        self._siblings = (*self._siblings, one)
        return one

    def _follow(self, first: "Fused") -> None:
        """Take over the settings of the instance that the user has."""
        for name in ("_learning_rate", "loss_scale_factor", *self._names):
            value = getattr(first, name)
            if getattr(self, name) is not value:
                setattr(self, name, value)


class Values(dict[str, Any]):
    """A dict that Keras does not wrap when it becomes an attribute."""
