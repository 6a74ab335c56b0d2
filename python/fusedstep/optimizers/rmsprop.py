"""RMSprop."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class RMSprop(Optimizer):
    """RMSprop: steps along the gradient, scaled by its recent root mean square.

    ::

        v = rho*v + (1 - rho)*g*g
        d = v
        p = p - lr*g / sqrt(d + epsilon)

    centered, with the variance in place of the mean square::

        q = rho*q + (1 - rho)*g
        d = max(v - q*q, 0)

    and with momentum mu, of ``u = lr*g / sqrt(d + epsilon)``::

        m = mu*m + u
        p = p - m

    That is Keras' form. In PyTorch's (``form="torch"``) epsilon is outside of the root, ``sqrt(d) +
    epsilon``, and the learning rate outside of the momentum, ``p = p - lr*m``.

    The maximum with 0 is neither library's: rounded, the variance of nearly equal gradients comes out
    negative, and its root NaN.

    Args:
        learning_rate: step size.
        rho: decay rate of the mean square, in [0, 1).
        momentum: mu, in [0, 1].
        epsilon: keeps the denominator from 0, in (0, inf).
        centered: divide by the standard deviation.
        form: "keras" or "torch".
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``velocity``, with centered ``average_gradient``, with momentum ``momentum`` (shape of the
    variable, float32 or float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    References: Tieleman and Hinton 2012, lecture 6.5 of "Neural networks for machine learning"; Graves
    2013, "Generating sequences with recurrent neural networks", arXiv:1308.0850.

    >>> import numpy as np
    >>> w = np.array([1.0])
    >>> opt = RMSprop(learning_rate=0.1, rho=0.75)
    >>> opt.apply([np.array([4.0])], [w])
    1
    >>> w.round(4)
    array([0.8])
    """

    rho: float = hyperparameter(default=0.9, interval="[0, 1)", meaning="decay rate of the mean square")
    momentum: float = hyperparameter(default=0.0, interval="[0, 1]", meaning="weight of the former steps")
    epsilon: float = hyperparameter(default=1e-7, interval="(0, inf)", meaning="keeps the denominator from 0")
    centered: bool = hyperparameter(default=False, meaning="divide by the standard deviation")
    form: str = hyperparameter(default="keras", choices=("keras", "torch"), meaning="where epsilon stands")

    def _rule(self) -> str:
        return "rmsprop" + "_centered" * self.centered + "_momentum" * (self.momentum != 0)
