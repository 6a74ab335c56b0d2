"""The base of all optimizers: arguments, state and the step; no arithmetic."""

import copy
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np  # noqa: F401  (for the examples)
import numpy.typing as npt

from fusedstep import _native
from fusedstep.device_arrays import as_array_beside
from fusedstep.optimizers import checkpoint
from fusedstep.optimizers.adjustments import Adjustments, Change
from fusedstep.optimizers.hyperparameters import Hyperparameter
from fusedstep.optimizers.learning_rate import AskedLearningRate
from fusedstep.optimizers.minimize import value_and_gradients
from fusedstep.optimizers.options import WithOptions
from fusedstep.optimizers.state import DynamicScale, PlanState, at_rest
from fusedstep.structure import flatten, in_order_of, pair_up

if TYPE_CHECKING:
    from typing_extensions import Self

Array = npt.NDArray[Any]

# What nearly all calls have. To ask whether it is a Mapping takes longer than a short step.
UNNAMED = {list, tuple, type(None)}


class Optimizer(WithOptions):
    """What all optimizers share.

    Variables are NumPy arrays of float32, float64, float16 or bfloat16 (of ml_dtypes), C-contiguous
    and writeable; a step updates them in place. Gradients are arrays of any of these dtypes and of
    their variable's shape. Slots, the optimizer's own arrays, are float64 for float64 variables and
    float32 for all others, which is also what the step computes in.

    In the place of NumPy's, arrays of any library that shows its memory by DLPack or
    ``__cuda_array_interface__``: PyTorch's tensors, and, in a build with CUDA, CuPy's arrays and all others
    on GPUs. Gradients are on their variable's device. A step over arrays on one GPU is put on the stream
    that their library uses now and waits for nothing. Steps of one optimizer are to follow each other on the
    GPU: on one stream, or on streams that wait for each other. Slots are on the device, and so is what is
    counted, so that reading :attr:`iterations` may wait where ``skip_nonfinite`` or a captured graph lets the
    device decide. (So may a step there whose learning rate is a callable: it is asked with the number of
    calls. A schedule of :mod:`fusedstep.schedules` is asked for 256 calls at once.)

    A step that is captured in a CUDA graph trains on as it is replayed: counts and t advance, and a learning
    rate that is set in between, a number or an array on the GPU, counts from the next replay on, as do
    multipliers and weight decays of which there were some. Other settings, and which variables are frozen
    or have no gradient, are those of the capture; capture again to change them.

    A call that raises has changed nothing. TypeError is for the kind or dtype of an object,
    ValueError for a shape, layout, device, interval or aliasing, RuntimeError for what the machine or
    the moment lacks.

    Args:
        learning_rate: see the class. A real number, an array without dimensions, or a callable that gets
            the number of calls so far; it is read at every step, and can be set between steps.
        weight_decay: decoupled weight decay, ``p = p - p * (weight_decay * learning_rate)`` before the
            rule, in [0, inf); None or 0 for none.
        l2: the weight of an L2 penalty, ``g = g + l2 * p`` before the rule and the decay; None or 0 for
            none. PyTorch calls it weight_decay.
        maximize: ascend: ``g = -g`` before the penalty.
        clipnorm: each gradient is scaled down to this Euclidean norm where it is larger, in (0, inf).
        global_clipnorm: all gradients together are, by one factor. :attr:`gradient_norm` tells the norm.
        clipvalue: every element of the gradients is clipped to [-clipvalue, clipvalue]. One of the three
            clip options at most. Norms are sums of squares in float64 in a fixed order, which do not
            overflow, but of float64 beyond 1e154.
        use_ema: keep an average of every variable, ``average = m*average + (1 - m)*p`` at every call with
            m = ``ema_momentum``, from the first update's result on, also at calls that only accumulate;
            :meth:`finalize_variable_values` puts it into the variables.
        ema_momentum: m, in [0, 1].
        ema_overwrite_frequency: put the averages into the variables at every so-many-th update, which is
            after each of the calls that make it; None for never.
        loss_scale_factor: what the loss was multiplied by before the gradients were computed; they are
            divided by it, before they are clipped. None for nothing.
        gradient_accumulation_steps: K calls make one update with the mean of their gradients; None for 1.
            One that is missing in a call counts as zeros, but in the K-th: then the variable has no update,
            and what was summed for it is dropped, as in Keras. Pass zeros there to have it.
        skip_nonfinite: a call with a gradient that is not finite somewhere changes nothing and counts as
            no call; :attr:`skipped` and :attr:`skipped_calls` tell.
        lazy: update only the rows that sparse gradients have (see :meth:`apply`).
        name: the optimizer's name, the class's in lower case if empty.
    """

    def _begin(self) -> None:
        self._plans: list[_native.Plan] = []
        self._plan: _native.Plan | None = None  # the one built or stepped last
        self._carried: list[PlanState] = []  # state that waits for its variables to be built
        self._adjustments = Adjustments()
        self._dynamic_scale: DynamicScale | None = None  # of a LossScaleOptimizer around this one

    # What a class declares, besides its hyperparameters.

    def _rule(self) -> str:
        """Return the name of the rule, in csrc/rules, that these hyperparameters ask for."""
        raise NotImplementedError(
            f"{type(self).__name__} has no rule: the base class does not step;"
            " use fusedstep.Adam or another, or derive from fusedstep.CustomOptimizer"
        )

    def _initial(self) -> dict[str, float]:
        """Return what the slots start with, where it is not zero."""
        return {}

    def _custom_rule(self) -> _native.CustomRule | None:
        """Return what takes the place of the rule, where that is written in Python."""
        return None

    # Builds.

    def build(self, variables: Iterable[Any] | Mapping[str, Any]) -> None:
        """Make the slots for a set of variables, with counts of its own.

        The first :meth:`apply` does this where it was not done. Build again to let one optimizer serve
        another model.

        Args:
            variables: a list of arrays, or a (nested) dict, whose keys name them.

        Raises:
            TypeError: a variable is no array, or of another dtype than the four.
            ValueError: a variable is not contiguous, read-only, shares memory with another one, or was
                built already.

        >>> from fusedstep import Adam
        >>> w, b = np.zeros((2, 3)), np.zeros(3)
        >>> opt = Adam()
        >>> opt.build({"dense": {"kernel": w, "bias": b}})
        >>> sorted(opt.slots(w))
        ['momentum', 'velocity']
        """
        names, arrays = self._names_and_arrays(variables, f"{type(self).__name__}.build: variables")
        if not arrays:
            return
        carried = self._carried[0] if self._carried else None
        plan = _native.Plan(
            type(self).__name__,
            self._rule(),
            self._accumulates() or (carried is not None and carried.has("gradient_accumulator")),
            self.use_ema or (carried is not None and carried.has("average")),
            list(arrays),
            names,
            self._initial(),
            self._plans,
            self._custom_rule(),
        )
        self._check_rounded(plan)
        before = self._adjustments
        if carried is not None:
            carried.restore(plan, type(self).__name__)
            changes = carried.changes_in_order_of(plan)
            self._adjustments = before.and_of(plan, changes, carried.adjustments_made)
        try:
            self._configure(plan)
        except BaseException:
            self._adjustments = before
            raise
        if self._dynamic_scale is not None:
            self._dynamic_scale.write(plan)
        self._carried = self._carried[1:]
        self._plans.append(plan)
        self._plan = plan

    def forget(self, variables: Iterable[Any] | Mapping[str, Any]) -> None:
        """Drop the build that these variables belong to, with its slots and counts.

        Raises:
            ValueError: there is no such build, or not all of them belong to it.
            RuntimeError: these variables are in the middle of a step.
        """
        who = f"{type(self).__name__}.forget"
        _, arrays = self._names_and_arrays(variables, f"{who}: variables")
        owners = (plan for plan in self._plans if arrays and all(map(plan.owns, arrays)))
        plan = next(owners, None)
        if plan is None:
            raise ValueError(f"{who}: these {len(arrays)} variables are not those of one build")
        _native.at_rest([plan], lambda: self._drop(plan))
        self._adjustments = self._adjustments.without([plan])

    def _names_and_arrays(self, given: Any, what: str) -> tuple[list[str], Sequence[Any]]:
        """Return arrays that were given as a list or as a (nested) dict; without names in a list."""
        if isinstance(given, Mapping):
            leaves = flatten(given, what.rpartition(": ")[0])
            return list(leaves), list(leaves.values())
        return [], _native.items_of(given, what)

    def _drop(self, plan: _native.Plan) -> None:
        self._plans = [other for other in self._plans if other is not plan]
        if self._plan is plan:
            self._plan = self._plans[-1] if self._plans else None

    # Settings of single variables.

    def adjust(
        self,
        variables: Any,
        *,
        learning_rate_multiplier: float | None = None,
        weight_decay: float | None = None,
        frozen: bool | None = None,
    ) -> None:
        """Change the settings of some variables, from the next step on. Steps remain one native call.

        Args:
            variables: an array, a name, or a list of them; built already or not. A name is that of a
                variable, or of all below it: "dense" means "dense/kernel" and "dense/bias".
            learning_rate_multiplier: what their learning rate is multiplied by, in (-inf, inf).
            weight_decay: in the place of the optimizer's, in [0, inf).
            frozen: whether steps leave them alone, whatever their gradients, as without one: averages go on.
                The count t of updates is the build's, and goes on, too.

        What is None stays as it was. These settings are the program's: copies and pickles have them, a
        :meth:`state_dict` has not.

        Raises:
            ValueError, TypeError: a setting is out of its interval or of another kind, or there are builds
                and none has such a variable.

        >>> from fusedstep import SGD
        >>> w, b = np.ones(2), np.ones(2)
        >>> opt = SGD(learning_rate=0.5)
        >>> opt.build({"dense": {"kernel": w, "bias": b}})
        >>> opt.adjust("dense/bias", learning_rate_multiplier=0.5)
        >>> opt.apply([np.ones(2), np.ones(2)])
        1
        >>> w, b
        (array([0.5, 0.5]), array([0.75, 0.75]))
        """
        who = f"{type(self).__name__}.adjust"
        change = Change.checked(learning_rate_multiplier, weight_decay, frozen, who)
        self._adjust_to(self._adjustments.and_also(variables, change, who, self._plans))

    def _adjust_to(self, adjustments: Adjustments) -> None:
        before, self._adjustments = self._adjustments, adjustments
        try:
            self._changed()
        except BaseException:
            self._adjustments = before
            self._changed()
            raise

    def exclude_from_weight_decay(
        self,
        var_list: Iterable[Any] | None = None,
        var_names: Iterable[str | re.Pattern[str]] | re.Pattern[str] | None = None,
    ) -> None:
        """Leave variables out of the weight decay.

        Args:
            var_list: arrays.
            var_names: regular expressions, or one, to be found somewhere in the variables' names. (Those
                that were built as a list have none.) One that fits no variable yet may fit a later build.

        Raises:
            ValueError: a name is no regular expression.
            TypeError: ``var_list`` has something else than arrays.
        """
        who = f"{type(self).__name__}.exclude_from_weight_decay"
        chosen = [] if var_list is None else list(_native.items_of(var_list, f"{who}: var_list"))
        for given in (var_list, *chosen):
            if isinstance(given, str):
                raise TypeError(f"{who}: var_list must be arrays, got {given!r}; pass var_names=[{given!r}]")
        for pattern in [var_names] if isinstance(var_names, (str, re.Pattern)) else var_names or []:
            try:
                chosen.append(re.compile(pattern))
            except re.error as error:
                raise ValueError(
                    f"{who}: {pattern!r} is no regular expression ({error}); re.escape(name) makes one"
                ) from None
        self._adjust_to(self._adjustments.and_also(chosen, Change(weight_decay=0.0), who))

    def finalize_variable_values(self, var_list: Iterable[Any] | Mapping[str, Any] | None = None) -> None:
        """Put the averages into the variables, where ``use_ema`` keeps some.

        Args:
            var_list: variables of the builds that are meant; all that were built if left out.

        Raises:
            ValueError: one of them was never built, or has other memory than when it was.
        """
        who, plans = f"{type(self).__name__}.finalize_variable_values", self._plans
        if var_list is not None:
            _, arrays = self._names_and_arrays(var_list, f"{who}: var_list")
            for position, array in enumerate(arrays):
                if not any(plan.owns(array) for plan in self._plans):
                    raise ValueError(
                        f"{who}: var_list[{position}] was never built; there is no average of it"
                    )
            plans = [plan for plan in plans if any(plan.owns(array) for array in arrays)]

        def finish_all() -> None:
            for plan in plans:
                plan.check_unchanged(f"{who}: ")
            for plan in plans:
                plan.finish_averages()

        _native.at_rest(plans, finish_all)

    # Steps.

    def apply(
        self,
        grads: Any = None,
        variables: Any = None,
        *,
        replicas: Iterable[Any] | None = None,
        mean: bool = False,
    ) -> int:
        """Take one step: update every variable that has a gradient, in place.

        Args:
            grads: a list of gradients, None for a variable that has none (it is left alone: no update,
                no decay, no change of its slots but of averages, and of sums over calls where these end);
                or a (nested) dict of them. Never written to.
                A gradient may be sparse, a tuple (indices, values): some rows of the variable, along its
                first axis, integer indices in any order and as many rows of values; duplicates are
                summed in the order given. Without ``lazy`` the step is that with zeros in all other
                rows, to the same bits. With it other rows, their slots and averages are left alone,
                decay is for the touched rows, norms are those with zeros elsewhere, and the time is in
                proportion to the touched rows.
                Of a variable on a GPU, indices (int32 or int64) and values are there, too. The step does not
                wait to look at the indices: where one lies outside of the variable, its row is left out, and
                not refused as on the CPU.
            variables: as many arrays, or a dict with the same keys. If left out, all of the build that
                was made or stepped last.
            replicas: several lists (or dicts) of gradients in the place of ``grads``: they are summed
                in their order before anything else happens.
            mean: whether replicas are averaged instead.

        Returns:
            The number of calls so far, for these variables. (On a GPU with ``skip_nonfinite`` it may
            count calls that were left out: to know, the host would have to wait.)

        Raises:
            TypeError: an object is no array, or of another dtype than the four.
            ValueError: shapes differ, all gradients are None, an array was never built, memory is shared,
                or the learning rate is not finite.
            RuntimeError: an array is on a GPU that this build or machine has no use for, or these
                variables are in the middle of another step.

        >>> from fusedstep import SGD
        >>> w = np.ones(3, dtype=np.float32)
        >>> opt = SGD(learning_rate=0.5)
        >>> opt.apply([np.array([0, 1, 2], dtype=np.float32)], [w])
        1
        >>> w
        array([1. , 0.5, 0. ], dtype=float32)
        """
        if replicas is None and not mean and type(grads) in UNNAMED and type(variables) in UNNAMED:
            plan = self._plan
            if plan is not None and (variables is None or len(self._plans) == 1):
                return plan.step(grads, variables, self._learning_rate_for(plan))
        return self._apply_any(grads, variables, replicas, mean)

    def _apply_any(self, grads: Any, variables: Any, replicas: Iterable[Any] | None, mean: bool) -> int:
        """Take a step whose arrays have names, or which is one of replicas, or whose build is to be found."""
        who, plan, more = f"{type(self).__name__}.apply", self._plan, None
        if plan is None and variables is None:
            raise ValueError(f"{who}: no variables were built; pass them, or build(variables) first")
        if replicas is None:
            if mean:
                raise ValueError(
                    f"{who}: mean=True is for replicas, and there are none; pass replicas=[grads]"
                )
            arrays, first = self._in_order(variables, grads, who, "grads")
        else:
            arrays, (first, *more) = self._replicas_in_order(variables, grads, list(replicas), who)
        if plan is None:
            return self._build_and_step(variables, arrays, first, more, mean)
        if arrays is not None and len(self._plans) > 1:
            arrays = _native.items_of(arrays, f"{who}: variables")
            for one in self._plans:
                if arrays and one.owns(arrays[0]):
                    plan = one
                    break
        try:
            calls = plan.step(first, arrays, self._learning_rate_for(plan), more, mean)
        except ValueError:
            for position, array in enumerate(arrays if len(self._plans) > 1 and arrays else []):
                if not plan.owns(array) and any(other.owns(array) for other in self._plans):
                    raise ValueError(
                        f"{who}: variables[{position}] belongs to another build than variables[0];"
                        " each build takes its steps in calls of its own"
                    ) from None
            raise
        self._plan = plan
        return calls

    def _in_order(self, variables: Any, grads: Any, who: str, name: str) -> tuple[Any, Any]:
        """Return the variables, None where none were given, and their gradients, without names."""
        named = type(grads) not in UNNAMED and isinstance(grads, Mapping)
        if type(variables) in UNNAMED or not isinstance(variables, Mapping):
            if not named:
                return variables, grads
            if variables is None and self._plan is not None:
                return None, in_order_of(self._plan.names, grads, who)
        elif named:
            return pair_up(variables, grads, who)
        raise TypeError(
            f"{who}: {name} is a {type(grads).__name__} and variables a {type(variables).__name__};"
            " both must be dicts or both lists"
        )

    def _replicas_in_order(
        self, variables: Any, grads: Any, replicas: list[Any], who: str
    ) -> tuple[Any, list[Any]]:
        """Return the variables, None where none were given, and each replica's gradients, without names."""
        if grads is not None or not replicas:
            raise ValueError(
                f"{who}: replicas has {len(replicas)} lists of gradients"
                + (" and grads is given, too; put all into replicas" if replicas else "; pass one at least")
            )
        if len({isinstance(one, Mapping) for one in replicas}) > 1:
            kinds = ", ".join(type(one).__name__ for one in replicas)
            raise TypeError(f"{who}: replicas are {kinds}; all must be dicts, or all lists")
        if not isinstance(variables, (Mapping, type(None))):
            variables = _native.items_of(variables, f"{who}: variables")
        ordered = [
            self._in_order(variables, one, who, f"replicas[{number}]") for number, one in enumerate(replicas)
        ]
        return ordered[0][0], [gradients for _, gradients in ordered]

    def _build_and_step(
        self, variables: Any, arrays: Any, first: Any, more: list[Any] | None, mean: bool
    ) -> int:
        """Take the first step, and build its variables; where it cannot be taken they are not built."""
        who = f"{type(self).__name__}.apply"
        first = _native.items_of(first, f"{who}: grads")
        arrays = _native.items_of(arrays, f"{who}: variables")
        if not arrays and first:
            raise ValueError(
                f"{who}: grads has length {len(first)}, variables 0;"
                " pass one gradient for each variable, None where there is none"
            )
        if not arrays:
            return 0
        carried, adjustments = self._carried, self._adjustments
        self.build(variables if isinstance(variables, Mapping) else arrays)
        plan = self._plan
        assert plan is not None
        before = plan.calls + plan.skips
        try:
            return plan.step(first, arrays, self._learning_rate_for(plan), more, mean)
        except BaseException:
            if plan.calls + plan.skips == before:  # an interrupt can come after the step
                self._drop(plan)
                self._carried, self._adjustments = carried, adjustments
            raise

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> int:
        """Take one step from (gradient, variable) pairs, as ``zip(grads, variables)`` gives.

        Args:
            grads_and_vars: any iterable of pairs; it is read once.

        Returns, raises: as :meth:`apply`. Besides, an iterator that was read before, such as a zip, is
        refused, where an empty list is a step of no variables.
        """
        who = f"{type(self).__name__}.apply_gradients"
        grads, variables = _native.unzip(grads_and_vars, who)
        if not grads and isinstance(grads_and_vars, Iterator):
            raise ValueError(
                f"{who}: the {type(grads_and_vars).__name__} has no pairs; an iterator can be read only once,"
                " make another"
            )
        return self.apply(grads, variables)

    def minimize(self, loss: Callable[..., Any], var_list: Any = None) -> Any:
        """Take one step down a loss.

        Args:
            loss: a callable without arguments that returns (value, gradients), the gradients as
                :meth:`apply` takes them; or a function of the variables, ``loss(*var_list)``, of a dict of
                them if ``var_list`` is one. The package autograd then finds the gradients, for which loss
                must be written with ``autograd.numpy`` in the place of ``numpy``. Variables of 16 bits come
                in float32.
            var_list: the variables, a list or a dict; if left out, all of the build that was made or
                stepped last. Or a callable that returns them, called after a loss without arguments,
                which may make them.

        Returns:
            The loss, before the step.

        Raises:
            TypeError: ``loss()`` returned something else than (value, gradients).
            RuntimeError: autograd is needed and not installed.
            Otherwise as :meth:`apply`; what ``loss`` raises passes through, and nothing was changed.

        >>> from fusedstep import SGD
        >>> v1, v2 = np.array([2.0]), np.array([5.0])
        >>> opt = SGD(learning_rate=0.1)
        >>> def loss():
        ...     return (3 * v1**2 + 2 * v2**2).item(), [6 * v1, 4 * v2]
        >>> opt.minimize(loss, [v1, v2])
        62.0
        >>> v1.round(4), v2.round(4)
        (array([0.8]), array([3.]))
        """

        def variables() -> Any:
            return var_list() if callable(var_list) else var_list

        def built() -> Any:
            return self._plan and [self._plan.variable(index) for index in range(len(self._plan))]

        who = f"{type(self).__name__}.minimize"
        value, grads, given = value_and_gradients(loss, variables, built, who)
        self.apply(grads, given)
        return value

    def _learning_rate_for(self, plan: _native.Plan) -> Any:
        """Return what a step takes: a number, or an array on the variables' device."""
        rate = self._values["learning_rate"]
        if isinstance(rate, float):
            return self._learning_rate_at(0)  # whatever the calls, of which a device might have to be asked
        if _native.is_on_device(rate.source):
            return rate.source
        if plan.is_capturing():
            raise ValueError(
                f"{type(self).__name__}.apply: learning_rate is a schedule or a callable, which a graph"
                " cannot ask when it is replayed; set a number, and set it anew between replays"
            )
        if rate.is_schedule and plan.device_counts:
            if rate.has_changed():
                self._forget_rates()
            if not plan.rates_left:
                self._look_ahead(plan)
            return None
        return self._learning_rate_at(plan.calls)

    def _look_ahead(self, plan: _native.Plan) -> None:
        """Tell the device the schedule's rates, so that the next steps need not wait to know their number."""
        calls = plan.calls
        rates = [self._learning_rate_at(calls)]
        plan.check_learning_rate(rates[0])
        with suppress(ValueError):  # of steps that may never come; else their turn comes again
            for ahead in range(1, _native.most_rates):
                rate = self._learning_rate_at(calls + ahead)
                plan.check_learning_rate(rate)
                rates.append(rate)
        plan.look_ahead(rates)

    def _forget_rates(self) -> None:
        for plan in self._plans:
            plan.forget_rates()

    # State.

    @property
    def iterations(self) -> int:
        """The number of updates so far, of the variables that were built or stepped last."""
        if self._plan is None:
            return self._carried[-1].updates if self._carried else 0
        return self._plan.updates

    @property
    def gradient_norm(self) -> Any:
        """The Euclidean norm of all gradients of the last step together, before they were clipped.

        A float. Where the variables are on a GPU, an array without dimensions there: the last step's, until
        the next one. None where it was not needed: without ``clipnorm``, ``global_clipnorm`` and
        ``skip_nonfinite``.
        """
        if self._plan is None:
            return None
        return as_array_beside(self._plan.norm, self._plan.variable(0))

    @property
    def skipped(self) -> bool:
        """Whether the last call changed nothing, for a gradient that was not finite."""
        return self._plan is not None and self._plan.skipped

    @property
    def skipped_calls(self) -> int:
        """How many calls changed nothing, for gradients that were not finite."""
        if self._plan is None:
            return self._carried[-1].skips if self._carried else 0
        return self._plan.skips

    @property
    def variables(self) -> list[Array]:
        """The optimizer's own arrays: every slot of every variable, in the order they were built."""
        return [
            as_array_beside(plan.slot(index, name), plan.variable(index))
            for plan in self._plans
            for index in range(len(plan))
            for name in plan.slot_names
        ]

    def slots(self, variable: Any) -> dict[str, Array]:
        """Return a variable's slots by name, in the order of the docstring: the live arrays, not copies.

        Raises:
            KeyError: the variable was never built.
            TypeError: it is a name.
        """
        if isinstance(variable, str):
            raise TypeError(f"{type(self).__name__}.slots: must be an array that was built, got {variable!r}")
        for plan in self._plans:
            if plan.owns(variable):
                index = plan.index_of(variable)
                return {
                    name: as_array_beside(plan.slot(index, name), plan.variable(index))
                    for name in plan.slot_names
                }
        raise KeyError(f"{type(self).__name__}.slots: this array was never built; build(variables) first")

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data: a copy, which later steps do not change.

        Returns:
            ``class_name`` and ``config``, as of :func:`fusedstep.serialize`, without a learning rate that
            is a plain callable; ``rule``, the name of the arithmetic; ``version``, fusedstep's; ``builds``,
            one dict for each build, with ``calls``, ``updates``, ``skips`` and ``carried`` (what Nadam
            carries from update to update), ``names`` (none, where variables came as a list),
            ``variables`` (shape and dtype of each), and ``slots``, arrays by "name of the variable/slot",
            as in "dense/kernel/momentum". Variables without names are "0", "1" and so on.

        >>> from fusedstep import SGD
        >>> w = np.zeros(2)
        >>> opt = SGD(learning_rate=0.5, momentum=0.9)
        >>> opt.apply({"w": np.ones(2)}, {"w": w})
        1
        >>> opt.state_dict()["builds"][0]["slots"]
        {'w/momentum': array([-0.5, -0.5])}
        """
        return checkpoint.state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state: counts, slots and the learning rate. Steps go on to the same bits.

        Builds are matched in order; in each, variables by name where both have names, else in order. What
        is not built yet waits, and is bound at the next builds.

        The learning rate is taken where both are numbers, because training may have changed it. Schedules,
        callables and arrays, and all other hyperparameters, stay the optimizer's own; a warning names those
        that differ. To have all of them from the state, make the optimizer of it,
        ``fusedstep.get(state)``, which has no state yet, and load that into it.

        Args:
            state: what :meth:`state_dict` returned. It is copied.

        Raises:
            TypeError: it is no dict.
            ValueError: it is no such state, or that of another class or of variables with other names,
                shapes, dtypes or slots; the differences are listed. Nothing was changed.
        """
        checkpoint.restore(self, state, f"{type(self).__name__}.load_state_dict")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the state to a safetensors file. Variables are yours to save.

        The file is written under another name beside the path, and takes its place when it is whole and on
        the disk: whatever happens, the path is the file that was there or the new one. A process that is
        killed can leave a file behind whose name is the path's with a number and .tmp.

        Args:
            path: where; a file there is replaced.

        Raises:
            OSError: it cannot be written.
            RuntimeError: the package safetensors is missing.
        """
        checkpoint.write(path, self.state_dict(), f"{type(self).__name__}.save")

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over the state that :meth:`save` wrote, as :meth:`load_state_dict` does.

        Args:
            path: the file.

        Raises:
            OSError: it cannot be read.
            RuntimeError: the package safetensors is missing.
            ValueError: the file is damaged or another library's, or see :meth:`load_state_dict`.
        """
        who = f"{type(self).__name__}.load"
        checkpoint.restore(self, checkpoint.read(path, who), who)

    # Copies and pickles have all attributes, a subclass's own too, with counts and slots in the place of
    # builds; they are bound again at the next ones, by name or in order.

    def __copy__(self) -> "Self":
        twin = type(self).__new__(type(self))
        twin.__setstate__(self._attributes() | {"_carried": self._states()})
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self._attributes(), memo) | {"_carried": self._states()})
        return twin

    def _attributes(self) -> dict[str, Any]:
        """Return what a copy has in common with this one, without what is of builds."""
        return vars(self) | {
            "_values": self._as_given(),
            "_plans": [],
            "_plan": None,
            "_carried": [],
            "_adjustments": self._adjustments.without(self._plans),
            "_dynamic_scale": None,
        }

    def _states(self) -> list[PlanState]:
        copied = at_rest(self._plans, type(self).__name__, lambda: list(map(PlanState.of, self._plans)))
        adjustments = self._adjustments
        states = [
            replace(state, changes=adjustments.of(plan), adjustments_made=adjustments.made)
            for state, plan in zip(copied, self._plans, strict=True)
        ]
        return states + self._carried

    def __getstate__(self) -> dict[str, Any]:
        attributes = self._attributes()
        if callable(attributes["_values"]["learning_rate"]):
            try:
                pickle.dumps(attributes["_values"]["learning_rate"])
            except Exception as error:
                raise TypeError(
                    f"{type(self).__name__}: learning_rate cannot be pickled ({error});"
                    " use a function of a module, or set a number before"
                ) from error
        return attributes | {"_carried": self._states()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        values = state["_values"]
        rate = type(self).learning_rate.check(values["learning_rate"], type(self).__name__)
        vars(self).update(state | {"_values": values | {"learning_rate": rate}})

    def _calls(self) -> int:
        if self._plan is None:
            return self._carried[-1].calls if self._carried else 0
        return self._plan.calls

    def _set_learning_rate(self, rate: float | AskedLearningRate) -> None:
        self._forget_rates()
        given = rate if isinstance(rate, float) else rate.source
        if isinstance(rate, float) or _native.is_on_device(given):
            for plan in self._plans:
                plan.set_learning_rate(given)
        elif any(plan.is_captured for plan in self._plans):
            warnings.warn(
                f"{type(self).__name__}: replays of captured steps keep the learning rate that they have, as"
                " a graph asks nothing of the host; set a number to change it",
                stacklevel=3,
            )

    def _set(self, name: str, value: Any) -> None:
        if name == "gradient_accumulation_steps":
            calls = [plan.calls for plan in self._plans] + [state.calls for state in self._carried]
            for text in checkpoint.cycles_cut(self._values[name], value, calls):
                raise ValueError(f"{type(self).__name__}: {text}; change it after such a call")
        super()._set(name, value)

    def _changed(self) -> None:
        for plan in self._plans:
            self._check_rounded(plan)
        for plan in self._plans:
            self._configure(plan)

    def _configure(self, plan: _native.Plan) -> None:
        rule = self._rule()
        _, names = _native.rules()[rule]
        numbers = {}
        for name in names:
            parameter = self._hyperparameters.get(name)
            assert isinstance(parameter, Hyperparameter), (
                f"the rule '{rule}' asks for {name}, which is not declared"
            )
            numbers[name] = parameter.number(self._values[name])
        options, decay = self._options(), self.weight_decay or 0.0
        if self._dynamic_scale is not None:
            options.loss_scale_factor = self._dynamic_scale.scale
            options.loss_scale_growth_steps = self._dynamic_scale.growth_steps
            options.skip_nonfinite = True
        plan.configure(
            rule,
            numbers,
            options,
            _native.VariableSettings(1.0, decay, False),
            self._adjustments.resolve(plan, decay),
        )

    def _check_rounded(self, plan: _native.Plan) -> None:
        """Raise where a hyperparameter does not survive rounding to the compute type."""
        if all(plan.dtype(index) == "float64" for index in range(len(plan))):
            return
        for name, parameter in self._hyperparameters.items():
            if isinstance(parameter, Hyperparameter):
                parameter.check_in_float32(self._values[name], type(self).__name__)
