"""Adamax."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class Adamax(Optimizer):
    """Adamax: steps along the mean gradient, scaled by the largest recent gradient.

    At update t, from 1::

        m = beta_1*m + (1 - beta_1)*g
        u = max(beta_2*u, abs(g))
        p = p - lr/(1 - beta_1^t) * m / (u + epsilon)

    That is Keras' form. In PyTorch's (``form="torch"``) epsilon is inside of the maximum::

        u = max(beta_2*u, abs(g) + epsilon)
        p = p - lr/(1 - beta_1^t) * m / u

    Args:
        learning_rate: step size.
        beta_1: decay rate of the mean gradient, in [0, 1).
        beta_2: decay rate of the largest gradient, in [0, 1).
        epsilon: keeps the denominator from 0, in (0, inf).
        form: "keras" or "torch".
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``momentum``, which is m, and ``norm``, which is u (shape of the variable, float32 or float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    Reference: Kingma and Ba 2015, "Adam: a method for stochastic optimization", section 7.1,
    arXiv:1412.6980.

    >>> import numpy as np
    >>> w = np.array([1.0, 2.0])
    >>> opt = Adamax(learning_rate=0.1)
    >>> for gradient in (4.0, 1.0):
    ...     _ = opt.apply([np.array([gradient, -gradient])], [w])
    >>> w.round(4)
    array([0.8394, 2.1606])
    """

    beta_1: float = hyperparameter(default=0.9, interval="[0, 1)", meaning="decay rate of the mean gradient")
    beta_2: float = hyperparameter(
        default=0.999, interval="[0, 1)", meaning="decay rate of the largest gradient"
    )
    epsilon: float = hyperparameter(default=1e-7, interval="(0, inf)", meaning="keeps the denominator from 0")
    form: str = hyperparameter(default="keras", choices=("keras", "torch"), meaning="where epsilon stands")

    def _rule(self) -> str:
        return "adamax"
