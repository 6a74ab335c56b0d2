"""Nadam."""

from decimal import Context, Decimal

from fusedstep import _native
from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


def decay_of_one_update(momentum_decay: float) -> float:
    """Return 0.96**momentum_decay, the same everywhere; pow differs between libraries."""
    power = Context(prec=40).power(Decimal("0.96"), Decimal(momentum_decay))
    return _native.in_default_mode(float, power)  # it rounds in the mode that the process has


class Nadam(Optimizer):
    """Nadam: Adam with Nesterov's momentum, which grows from step to step.

    At update t, from 1::

        m = beta_1*m + (1 - beta_1)*g
        v = beta_2*v + (1 - beta_2)*g*g
        p = p - (a*m + b*g) / (sqrt(v)/sqrt(1 - beta_2^t) + epsilon)

        mu_t = beta_1 * (1 - 0.5 * 0.96^(t*momentum_decay)),  P_t = mu_1 * mu_2 * ... * mu_t
        a = lr*mu_(t+1) / (1 - P_(t+1)),  b = lr*(1 - mu_t) / (1 - P_t)

    That is Keras' form with ``momentum_decay=1``, and PyTorch's NAdam with its default, 0.004. The product
    P_t is state, beside the slots: it keeps the momenta of former updates where beta_1 is changed.

    Args:
        learning_rate: step size.
        beta_1: decay rate of the mean gradient, and the momentum at last, in [0, 1).
        beta_2: decay rate of the mean squared gradient, in [0, 1).
        epsilon: keeps the denominator from 0, in (0, inf).
        momentum_decay: how fast the momentum grows from half of beta_1, in [0, inf).
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``momentum``, ``velocity`` (shape of the variable, float32 or float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    Reference: Dozat 2016, "Incorporating Nesterov momentum into Adam".

    >>> import numpy as np
    >>> w = np.array([1.0, -2.0])
    >>> opt = Nadam(learning_rate=0.1)
    >>> for _ in range(2):
    ...     _ = opt.apply([w.copy()], [w])
    >>> w.round(4)
    array([ 0.8202, -1.8182])
    """

    beta_1: float = hyperparameter(default=0.9, interval="[0, 1)", meaning="decay rate of the mean gradient")
    beta_2: float = hyperparameter(default=0.999, interval="[0, 1)", meaning="decay rate of the mean square")
    epsilon: float = hyperparameter(default=1e-7, interval="(0, inf)", meaning="keeps the denominator from 0")
    momentum_decay: float = hyperparameter(
        default=1.0,
        interval="[0, inf)",
        meaning="how fast the momentum grows from half of beta_1",
        number=decay_of_one_update,
    )

    def _rule(self) -> str:
        return "nadam"
