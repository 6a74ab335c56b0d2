"""RAdam."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class RAdam(Optimizer):
    """RAdam: Adam that warms up by itself, with plain steps while its mean square knows too few gradients.

    At update t, from 1::

        m = beta_1*m + (1 - beta_1)*g
        v = beta_2*v + (1 - beta_2)*g*g
        p = p - a*m / (sqrt(v) + epsilon)  where n > 5, else  p - a*m

        n = N - 2*t*beta_2^t / (1 - beta_2^t),  N = 2/(1 - beta_2) - 1
        a = lr / (1 - beta_1^t), where n > 5 times
            sqrt(1 - beta_2^t) * sqrt((n - 4)*(n - 2)*N / ((N - 4)*(N - 2)*n))

    n is the number of gradients that the mean square is of. With the default beta_2 it is above 5 from the
    sixth update on; with one of 0.66 or less it never is. That is PyTorch's RAdam.

    Args:
        learning_rate: step size.
        beta_1: decay rate of the mean gradient, in [0, 1).
        beta_2: decay rate of the mean squared gradient, in [0, 1).
        epsilon: keeps the denominator from 0, in (0, inf).
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``momentum``, ``velocity`` (shape of the variable, float32 or float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    Reference: Liu et al. 2020, "On the variance of the adaptive learning rate and beyond",
    arXiv:1908.03265.

    >>> import numpy as np
    >>> w = np.array([1.0, -2.0])
    >>> opt = RAdam(learning_rate=0.5)
    >>> opt.apply_gradients(zip([w.copy()], [w]))
    1
    >>> w
    array([ 0.5, -1. ])
    """

    beta_1: float = hyperparameter(default=0.9, interval="[0, 1)", meaning="decay rate of the mean gradient")
    beta_2: float = hyperparameter(default=0.999, interval="[0, 1)", meaning="decay rate of the mean square")
    epsilon: float = hyperparameter(default=1e-7, interval="(0, inf)", meaning="keeps the denominator from 0")

    def _rule(self) -> str:
        return "radam"
