"""Lamb."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class Lamb(Optimizer):
    """Lamb: Adam's update, as large for each variable as the variable is, times the learning rate.

    At update t, from 1::

        m = beta_1*m + (1 - beta_1)*g
        v = beta_2*v + (1 - beta_2)*g*g
        u = m / (1 - beta_1^t) / (sqrt(v) / sqrt(1 - beta_2^t) + epsilon)
        p = p - lr * ratio * u

    with ratio = norm(p) / norm(u), where both norms are above 0, else 1: Euclidean norms over all elements
    of a variable, summed in float64 in an order that depends on nothing. Weight decay comes before. A step
    reads variables and slots twice. What one array is and what two are matters, to this rule alone.

    Args:
        learning_rate: step size, in proportion to the variable.
        beta_1: decay rate of the mean gradient, in [0, 1).
        beta_2: decay rate of the mean squared gradient, in [0, 1).
        epsilon: keeps the denominator from 0, in (0, inf).
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``momentum`` and ``velocity`` (shape of the variable, float32 or float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    Reference: You et al. 2020, "Large batch optimization for deep learning: training BERT in 76 minutes",
    arXiv:1904.00962.

    >>> import numpy as np
    >>> w = np.array([3.0, -4.0])
    >>> opt = Lamb(learning_rate=0.1)
    >>> opt.apply_gradients(zip([w.copy()], [w]))
    1
    >>> w.round(4)
    array([ 2.6464, -3.6464])
    """

    beta_1: float = hyperparameter(default=0.9, interval="[0, 1)", meaning="decay rate of the mean gradient")
    beta_2: float = hyperparameter(default=0.999, interval="[0, 1)", meaning="decay rate of the mean square")
    epsilon: float = hyperparameter(default=1e-7, interval="(0, inf)", meaning="keeps the denominator from 0")

    def _rule(self) -> str:
        return "lamb"
