"""Adadelta."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class Adadelta(Optimizer):
    """Adadelta: steps along the gradient, of the size that former steps had.

    ::

        s = rho*s + (1 - rho)*g*g
        d = sqrt(x + epsilon) * g / sqrt(s + epsilon)
        x = rho*x + (1 - rho)*d*d
        p = p - lr*d

    That is Keras' form and PyTorch's. The paper has no learning rate; 1, PyTorch's default, is the paper.

    Args:
        learning_rate: step size.
        rho: decay rate of both mean squares, in [0, 1).
        epsilon: keeps the first steps and the denominator from 0, in (0, inf).
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``accumulated_grad``, which is s, and ``accumulated_delta_var``, which is x (shape of the
    variable, float32 or float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    Reference: Zeiler 2012, "ADADELTA: an adaptive learning rate method", arXiv:1212.5701.

    >>> import numpy as np
    >>> w = np.array([1.0])
    >>> opt = Adadelta(learning_rate=1.0, rho=0.75, epsilon=0.25)
    >>> opt.apply([np.array([4.0])], [w])
    1
    >>> w.round(4)
    array([0.0299])
    """

    rho: float = hyperparameter(default=0.95, interval="[0, 1)", meaning="decay rate of both mean squares")
    epsilon: float = hyperparameter(
        default=1e-7, interval="(0, inf)", meaning="keeps the first steps and the denominator from 0"
    )

    def _rule(self) -> str:
        return "adadelta"
