"""Keras 3's optimizers on its torch backend, with all variables updated by one native call a step.

One name changes, nothing else does::

    from fusedstep.keras import Adam  # was: from keras.optimizers import Adam

    model.compile(optimizer=Adam(1e-3), loss="mse")

The classes derive from Keras' own and have their arguments, options, configurations and files. What is
identical, what is better and what is not supported is in examples/keras.md. Importing this where Keras has
another backend raises RuntimeError.
"""

import inspect
from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np

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

from fusedstep.torch.layouts import odd_layout, place_of
from fusedstep.torch.part import MovedError

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Fused",
    "Lamb",
    "Lion",
    "Nadam",
    "RMSprop",
]

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
        variable._value = torch.nn.Parameter(slot, requires_grad=False)
        variable._dtype = str(slot.dtype).removeprefix("torch.")
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


def different(variables: list[Any], who: str) -> set[int]:
    """Return the variables' ids, or raise where one comes twice: a step takes one gradient of each."""
    ids = set(map(id, variables))
    if len(ids) < len(variables):
        twice = next(v for i, v in enumerate(variables) if any(v is other for other in variables[:i]))
        raise ValueError(
            f"{who}: the variable '{twice.path}' comes twice; pass it once, with the sum of its gradients"
        )
    return ids


class Iterations(keras.Variable):  # type: ignore[misc]
    """Keras' count of steps, which the host knows as long as it is only added to.

    To read one on a GPU waits for all steps before, and so does Keras' own way to add a number.
    """

    # The tensor, its version and memory, and the count in it.
    _known: tuple[Any, int, int, int] = (None, 0, 0, 0)

    def count(self) -> int:
        """Return it, read where others have written it."""
        now = self.value
        tensor, version, address, count = self._known
        if now is not tensor or now._version != version or now.data_ptr() != address:
            count = int(now)
            self._known = (now, now._version, now.data_ptr(), count)
        return count

    def assign_add(self, value: Any) -> Any:
        """Add a number in place."""
        if not isinstance(value, int):
            return super().assign_add(value)
        count, now = self.count() + value, self.value
        with torch.no_grad():
            now.add_(value)
        self._known = (now, now._version, now.data_ptr(), count)
        return now


class Values(dict[str, Any]):
    """A dict that Keras does not wrap when it becomes an attribute."""


class Seat(NamedTuple):
    """One of Keras' variables over a slot: the number of that slot's variable, and what it was put over."""

    variable: Any
    number: int
    name: str
    tensor: Any
    address: int

    def is_taken(self) -> bool:
        """Whether it still has them, where share_memory() and assignments to .data take others."""
        return self.variable._value is self.tensor and self.tensor.data_ptr() == self.address


class Layout:
    """The variables of a build, which keep their order, and where their memory is."""

    def __init__(self, variables: list[Any], who: str) -> None:
        self.variables = variables
        self.index = {id(variable): i for i, variable in enumerate(variables)}
        self.ids = list(self.index)
        self.seats: list[Seat] = []
        self.watched: list[Seat] = []  # what every step looks at: those of the first variable
        self.tensors = [variable.value for variable in variables]
        self.places = list(map(place_of, self.tensors))
        paths = [variable.path for variable in variables]
        titles = [f"{who}: the variable '{path}'" for path in paths]
        odd = {i: odd_layout(tensor, titles[i]) for i, tensor in enumerate(self.tensors)}
        self.odd = {i: one for i, one in odd.items() if one is not None}
        devices = {tensor.device for tensor in self.tensors}
        # The GPU that has all of them: a step reads a learning rate there, which nobody waits for.
        self.gpu = devices.pop() if len(devices) == 1 and self.tensors[0].is_cuda else None
        unique = len(set(paths)) == len(paths)
        names = paths if unique else [f"{path}:{i}" for i, path in enumerate(paths)]
        updated = [self.odd[i].variable if i in self.odd else t for i, t in enumerate(self.tensors)]
        self.named = dict(zip(names, updated, strict=True))

    def in_order(self, gradients: Any, variables: Any) -> Any:
        """Return the gradients in the order of the build, None for a variable that has none."""
        ids = list(map(id, variables))
        if ids == self.ids:
            return gradients
        gradient_of = dict(zip(ids, gradients, strict=True))
        return list(map(gradient_of.get, self.ids))

    @torch.no_grad()
    def read_odd(self, gradients: list[Any], values: list[Any], who: str) -> tuple[list[Any], list[Any]]:
        """Return gradients and variables with those that are not contiguous as the plan takes them."""
        gradients, values = list(gradients), list(values)
        for i, odd in self.odd.items():
            if values[i] is not odd.p or place_of(odd.p) != self.places[i]:
                raise MovedError
            odd.read()
            values[i] = odd.variable
            given = gradients[i]
            if isinstance(given, np.ndarray):
                given = torch.from_numpy(given)
            if isinstance(given, torch.Tensor):  # what is none, the plan refuses
                if given.shape != odd.p.shape:
                    raise ValueError(
                        f"{who}: grads['{self.variables[i].path}'] has shape {tuple(given.shape)},"
                        f" its variable has {tuple(odd.p.shape)}"
                    )
                gradients[i] = odd.gradient(given)
        return gradients, values

    @torch.no_grad()
    def write_odd(self) -> None:
        """Put what the step made of copies into the variables."""
        for odd in self.odd.values():
            odd.write()

    def refuse_sparse(self, gradients: Any, who: str) -> None:
        """Raise where a gradient is sparse."""
        for variable, gradient in zip(self.variables, gradients, strict=False):
            layout = getattr(gradient, "layout", torch.strided)
            if layout != torch.strided:
                raise TypeError(
                    f"{who}: the gradient of '{variable.path}' has the layout {layout}, but must be dense;"
                    " pass gradient.to_dense()"
                ) from None

    def has_moved(self) -> bool:
        """Whether a variable has another tensor or other memory than when this was made."""
        now = [variable.value for variable in self.variables]
        return list(map(id, now)) != list(map(id, self.tensors)) or list(map(place_of, now)) != self.places


register = keras.saving.register_keras_serializable(package="fusedstep")


@register
class SGD(Fused, keras.optimizers.SGD):
    """keras.optimizers.SGD."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.SGD


@register
class Adam(Fused, keras.optimizers.Adam):
    """keras.optimizers.Adam.

    >>> import keras
    >>> model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=Adam(0.01, global_clipnorm=1.0), loss="mse")
    >>> history = model.fit(keras.ops.ones((8, 3)), keras.ops.zeros((8, 1)), epochs=2, verbose=0)
    >>> int(model.optimizer.iterations)
    2
    """

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Adam
    _core_arguments: ClassVar[dict[str, Any]] = {"epsilon_hat": True}


@register
class AdamW(Fused, keras.optimizers.AdamW):
    """keras.optimizers.AdamW."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.AdamW
    _core_arguments: ClassVar[dict[str, Any]] = {"epsilon_hat": True}


@register
class RMSprop(Fused, keras.optimizers.RMSprop):
    """keras.optimizers.RMSprop; where ``centered`` the variance never falls below 0."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.RMSprop


@register
class Adagrad(Fused, keras.optimizers.Adagrad):
    """keras.optimizers.Adagrad."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Adagrad


@register
class Adadelta(Fused, keras.optimizers.Adadelta):
    """keras.optimizers.Adadelta."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Adadelta


@register
class Adamax(Fused, keras.optimizers.Adamax):
    """keras.optimizers.Adamax."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Adamax


@register
class Nadam(Fused, keras.optimizers.Nadam):
    """keras.optimizers.Nadam; the product of its momenta is float64."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Nadam

    def build(self, variables: Iterable[Any]) -> None:
        """Make the slots, and the product of all momenta so far."""
        built = self.built
        super().build(variables)
        if not built:
            product = torch.ones((), dtype=torch.float64)  # where no step waits for a GPU to read it
            self._u_product._value = torch.nn.Parameter(product, requires_grad=False)
            self._u_product._dtype = "float64"

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        product = self._u_product.value.detach()
        self._core._plans[0].carried = float(product)
        super()._backend_apply_gradients(grads, trainable_variables)
        product.fill_(self._core._plans[0].carried)


@register
class Ftrl(Fused, keras.optimizers.Ftrl):
    """keras.optimizers.Ftrl."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Ftrl


@register
class Lion(Fused, keras.optimizers.Lion):
    """keras.optimizers.Lion."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Lion


@register
class Lamb(Fused, keras.optimizers.Lamb):
    """keras.optimizers.Lamb."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Lamb
