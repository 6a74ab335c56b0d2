"""The base of optimizers whose rule is a method in Python."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep import _native
from fusedstep.checks import real
from fusedstep.optimizers.optimizer import Optimizer

Array = npt.NDArray[Any]

NO_RULE = "{} has no rule: define update(self, variable, gradient, slots, learning_rate, t)"
SLOTS_OF_THE_BASE = ("gradient_accumulator", "average")


class CustomOptimizer(Optimizer):
    """The base of your own optimizers: a subclass declares what it has, and one method is the rule.

    Hyperparameters are declared with :func:`hyperparameter`, slots with ``slot_names``, and :meth:`update`
    changes one variable. All else is as for every optimizer: arguments and their checks, clipping, decay,
    averages, accumulation, sparse gradients, replicas, 16-bit variables, settings of single variables,
    schedules, copies and checkpoints. They are computed natively, around the method, to the same bits.
    :func:`fusedstep.register` makes the class known where configurations are read.

    A step calls the method for every array that has a gradient, one after another in the calling thread, so
    it costs what NumPy costs. An exception in it passes through. Unlike after all other errors, the arrays
    before are then updated, and the one in question may be in part; the call does not count.

    Of variables on a GPU, of whatever library, the method gets CuPy's arrays, on the variables' device and
    their library's current stream. A step waits for the GPU where ``skip_nonfinite`` decides whether the
    method is called, and where a norm is over several devices. It cannot go into a CUDA graph, in which t
    and the learning rate would stay what they were.

    Args:
        learning_rate, weight_decay, name and all others: see :class:`Optimizer`.

    Slots: those of ``slot_names`` (shape of the variable, float32 or float64).

    Raises:
        NotImplementedError: the subclass has no :meth:`update`; or a gradient is sparse, ``lazy`` is True and
            there is no :meth:`update_rows`, or its variable is on a GPU.
        RuntimeError: a variable is on a GPU and CuPy cannot be imported, or a graph is captured.
        ValueError, TypeError: an argument is out of its interval or of another kind; slots cannot be named as
            ``slot_names`` names them.

    >>> import fusedstep
    >>> @fusedstep.register
    ... class Heavy(fusedstep.CustomOptimizer):
    ...     decay: float = fusedstep.hyperparameter(
    ...         default=0.9, interval="[0, 1)", meaning="weight of the former mean"
    ...     )
    ...     slot_names = ("m",)
    ...
    ...     def update(self, variable, gradient, slots, learning_rate, t):
    ...         slots["m"] = self.decay * slots["m"] + (1 - self.decay) * gradient
    ...         variable -= learning_rate * slots["m"]
    >>> w = np.ones(2, dtype=np.float16)
    >>> opt = Heavy(learning_rate=0.5, decay=0.5, global_clipnorm=5.0)
    >>> opt.apply([np.array([6, 8], dtype=np.float16)], [w])
    1
    >>> w, opt.slots(w)["m"]
    (array([0.25, 0.  ], dtype=float16), array([1.5, 2. ], dtype=float32))
    >>> fusedstep.get("heavy")
    Heavy(learning_rate=0.001)
    """

    @property
    def slot_names(self) -> Iterable[str] | Mapping[str, float]:
        """The names of the slots; or a dict from them to what they start with, in the place of 0.

        A subclass says ``slot_names = ("m", "v")``, or has a property where that depends on hyperparameters.
        """
        return ()

    def update(
        self,
        variable: Array,
        gradient: Array,
        slots: dict[str, Array],
        learning_rate: float,
        t: int,
    ) -> None:
        """Update one variable, in place. The subclass defines this.

        The arrays are of the compute type, float64 for float64 variables and float32 for all others, and of
        the variable's shape. They are valid during the call. It is not called for arrays without elements.

        Args:
            variable: decayed already. To be changed in place, as in ``variable -= x``. A 16-bit variable
                comes in float32 and is rounded once, afterwards.
            gradient: accumulated, clipped and with its penalty. Read-only; on a GPU a copy.
            slots: the arrays by name. What is assigned to a name is written to the slot.
            learning_rate: this step's, of this variable.
            t: the number of this update, from 1.
        """
        raise NotImplementedError(NO_RULE.format(type(self).__name__))

    def update_rows(
        self,
        variable: Array,
        indices: npt.NDArray[np.int64],
        values: Array,
        slots: dict[str, Array],
        learning_rate: float,
        t: int,
    ) -> None:
        """Update some rows of a variable, in place. A subclass may define this, for ``lazy``.

        It gets sparse gradients where ``lazy`` is True. Else they are for :meth:`update`, with zeros in all
        other rows.

        Args:
            variable: whole, but only the rows at the indices may be changed. Of a 16-bit variable it is a
                copy in float32, from which these rows are stored.
            indices: the rows that the gradient has; increasing, each once. Read-only.
            values: as many rows: what ``gradient`` is in :meth:`update`. Read-only.
            slots: whole, as the variable.
            learning_rate: as in :meth:`update`.
            t: as in :meth:`update`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no update_rows")

    @classmethod
    def _unknown(cls, name: str) -> str:
        return (
            f"{super()._unknown(name)}; what a class has besides is declared in its body,"
            f" {name}: float = fusedstep.hyperparameter(...), or named _{name}"
        )

    def build(self, variables: Iterable[Any] | Mapping[str, Any]) -> None:
        """Make the slots for a set of variables; see :meth:`Optimizer.build`."""
        if type(self).update is CustomOptimizer.update:
            raise NotImplementedError(NO_RULE.format(type(self).__name__))  # before anything is written
        super().build(variables)

    def _rule(self) -> str:
        return "sgd"  # one without slots, for calls that make no update

    def _custom_rule(self) -> _native.CustomRule:
        has_rows = type(self).update_rows is not CustomOptimizer.update_rows
        return _native.CustomRule(list(self._initial()), weakref.ref(self), has_rows)

    def _configure(self, plan: _native.Plan) -> None:
        names = list(self._initial())
        if names != [name for name in plan.slot_names if name not in SLOTS_OF_THE_BASE]:
            raise ValueError(
                f"{type(self).__name__}: the change needs other slots than were built ({names} instead of"
                f" {plan.slot_names}); make a new optimizer"
            )
        super()._configure(plan)

    def _initial(self) -> dict[str, float]:
        who, declared = f"{type(self).__name__}: slot_names", self.slot_names
        if isinstance(declared, str):
            raise TypeError(f"{who} is the string {declared!r}, but must be names; write ({declared!r},)")
        if not isinstance(declared, Iterable):
            raise TypeError(f"{who} is {declared!r}, but must be names; leave it out where there are none")
        names = list(declared)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"{who} must be strings, got {name!r} of type {type(name).__name__}")
            if not name or "/" in name or name in SLOTS_OF_THE_BASE or names.count(name) > 1:
                raise ValueError(
                    f"{who} must be different, not empty, without '/' and none of {SLOTS_OF_THE_BASE},"
                    f" got {names}"
                )
        if not isinstance(declared, Mapping):
            return dict.fromkeys(names, 0.0)
        return {name: real(value, f"{who}[{name!r}]") for name, value in declared.items()}
