"""Lion."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class Lion(Optimizer):
    """Lion: steps of one size, along the sign of a mean gradient.

    ::

        p = p - lr * sign(beta_1*m + (1 - beta_1)*g)
        m = beta_2*m + (1 - beta_2)*g

    The sign of 0 is 0.

    Args:
        learning_rate: step size; of all elements, so smaller than Adam's.
        beta_1: weight of the momentum in a step, in [0, 1).
        beta_2: decay rate of the momentum, in [0, 1).
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``momentum`` (shape of the variable, float32 or float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    Reference: Chen et al. 2023, "Symbolic discovery of optimization algorithms", arXiv:2302.06675.

    >>> import numpy as np
    >>> w = np.array([1.0, -2.0, 0.0])
    >>> opt = Lion(learning_rate=0.1)
    >>> opt.apply_gradients(zip([w.copy()], [w]))
    1
    >>> w.round(4)
    array([ 0.9, -1.9,  0. ])
    """

    beta_1: float = hyperparameter(default=0.9, interval="[0, 1)", meaning="weight of the momentum in a step")
    beta_2: float = hyperparameter(default=0.99, interval="[0, 1)", meaning="decay rate of the momentum")

    def _rule(self) -> str:
        return "lion"
