"""Ftrl."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class Ftrl(Optimizer):
    """FTRL-Proximal: for sparse linear models; weights that l1 outweighs are exactly 0.

    ::

        h = g + 2*l2_shrinkage*p
        s = n^(-power)
        n = n + g*g
        z = z + h - (n^(-power) - s)/lr * p
        p = (clip(z, -l1, l1) - z) / (n^(-power)/lr + 2*l2 + beta/lr)

    where the names are short for those below. A variable is a function of its slots, which begin without
    it. So the first step keeps only a part of it, and nothing where the gradient is 0.

    With the default power, -0.5, results have the same bits on every machine. Any other one needs the
    mathematical library's pow, and may differ from machine to machine by what a difference of one unit in
    the last place of each power makes.

    Args:
        learning_rate: step size, other than 0: the rule divides by it.
        learning_rate_power: how the step size falls with the sum of squares, in (-inf, 0].
        initial_accumulator_value: what n starts with, in [0, inf); read when variables are built.
        l1_regularization_strength: in [0, inf).
        l2_regularization_strength: in [0, inf); it pulls the variable to 0 at every step.
        l2_shrinkage_regularization_strength: in [0, inf); an L2 penalty that does not enter n.
        beta: in [0, inf); the paper's, added to the root of n in the step size.
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``accumulator``, which is n, and ``linear``, which is z (shape of the variable, float32 or
    float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; the learning rate of
            a step is 0; for the other errors of steps see :meth:`apply`.

    Reference: McMahan et al. 2013, "Ad click prediction: a view from the trenches".

    >>> import numpy as np
    >>> w = np.array([0.0, 0.0])
    >>> opt = Ftrl(learning_rate=0.1, initial_accumulator_value=0.0, l1_regularization_strength=1.0)
    >>> opt.apply([np.array([0.5, -4.0])], [w])
    1
    >>> w.round(4)
    array([0.   , 0.075])
    """

    learning_rate_power: float = hyperparameter(
        default=-0.5, interval="(-inf, 0]", meaning="how the step size falls with the sum of squares"
    )
    initial_accumulator_value: float = hyperparameter(
        default=0.1, interval="[0, inf)", meaning="what the sum of squares starts with"
    )
    l1_regularization_strength: float = hyperparameter(
        default=0.0, interval="[0, inf)", meaning="how strong a weight must be not to be 0"
    )
    l2_regularization_strength: float = hyperparameter(
        default=0.0, interval="[0, inf)", meaning="how strongly weights are pulled to 0"
    )
    l2_shrinkage_regularization_strength: float = hyperparameter(
        default=0.0,
        interval="[0, inf)",
        meaning="weight of an L2 penalty that the sum of squares does not see",
    )
    beta: float = hyperparameter(
        default=0.0, interval="[0, inf)", meaning="what is added to the root of the sum of squares"
    )

    def _rule(self) -> str:
        power = "_power" * (self.learning_rate_power != -0.5)
        return "ftrl" + power + "_shrinkage" * (self.l2_shrinkage_regularization_strength != 0)

    def _initial(self) -> dict[str, float]:
        return {"accumulator": self.initial_accumulator_value}
