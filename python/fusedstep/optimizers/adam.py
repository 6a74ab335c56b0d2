"""Adam and AdamW."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class Adam(Optimizer):
    """Adam: steps along the mean gradient, scaled by its root mean square.

    At update t, from 1::

        m = beta_1*m + (1 - beta_1)*g
        v = beta_2*v + (1 - beta_2)*g*g
        p = p - a*m / (sqrt(v)*r + epsilon)

        a = lr / (1 - beta_1^t),  r = 1 / sqrt(1 - beta_2^t)

    That is the paper's Algorithm 1, and PyTorch's and optax' Adam. With ``epsilon_hat=True`` it is the
    form at the end of the paper's section 2, and Keras' and TensorFlow's Adam::

        a = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t),  r = 1

    With ``amsgrad=True`` the largest v so far takes the place of v in the last line.

    Args:
        learning_rate: step size.
        beta_1: decay rate of the mean gradient, in [0, 1).
        beta_2: decay rate of the mean squared gradient, in [0, 1).
        epsilon: keeps the denominator from 0, in (0, inf).
        amsgrad: never let a denominator shrink.
        epsilon_hat: add epsilon before the bias correction.
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``momentum``, ``velocity`` and with amsgrad ``velocity_hat`` (shape of the variable, float32 or
    float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    References: Kingma and Ba 2015, "Adam: a method for stochastic optimization", arXiv:1412.6980; Reddi et
    al. 2018, "On the convergence of Adam and beyond", arXiv:1904.09237.

    >>> import numpy as np
    >>> w = np.array([1.0, -2.0])
    >>> opt = Adam(learning_rate=0.1)
    >>> opt.apply_gradients(zip([w.copy()], [w]))
    1
    >>> w.round(4)
    array([ 0.9, -1.9])
    """

    beta_1: float = hyperparameter(default=0.9, interval="[0, 1)", meaning="decay rate of the mean gradient")
    beta_2: float = hyperparameter(default=0.999, interval="[0, 1)", meaning="decay rate of the mean square")
    epsilon: float = hyperparameter(default=1e-7, interval="(0, inf)", meaning="keeps the denominator from 0")
    amsgrad: bool = hyperparameter(default=False, meaning="never let a denominator shrink")
    epsilon_hat: bool = hyperparameter(default=False, meaning="add epsilon before the bias correction")

    def _rule(self) -> str:
        return "adam_amsgrad" if self.amsgrad else "adam"


class AdamW(Adam):
    """Adam with decoupled weight decay, 0.004 by default.

    ::

        p = p - p * (weight_decay * lr)

    and then :class:`Adam`, whose arguments, slots and errors it has.

    Reference: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101.

    >>> import numpy as np
    >>> w = np.array([1.0])
    >>> opt = AdamW(learning_rate=0.1, weight_decay=0.5)
    >>> opt.apply([np.array([0.0])], [w])
    1
    >>> w
    array([0.95])
    """

    weight_decay: float | None = hyperparameter(
        default=0.004,
        interval="[0, inf)",
        optional=True,
        meaning="decoupled weight decay, times the learning rate",
    )
