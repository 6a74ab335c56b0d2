"""Stochastic gradient descent."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.learning_rate import LearningRate
from fusedstep.optimizers.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's.

    Without momentum::

        p = p - lr*g

    With momentum mu, in Keras' form and in PyTorch's (``form="torch"``)::

        Keras                           PyTorch
        m = mu*m - lr*g                 m = mu*m + (1 - dampening)*g   (the first update: + g)
        p = p + m                       p = p - lr*m
        nesterov:
        p = p + mu*m - lr*g             p = p - lr*mu*m - lr*g

    They differ when the learning rate changes: Keras' momentum holds steps, PyTorch's gradients.

    Args:
        learning_rate: step size.
        momentum: mu, in [0, 1].
        nesterov: look ahead along the momentum; without momentum it changes nothing.
        form: "keras" or "torch".
        dampening: in [0, 1], for form="torch" only.
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``momentum`` (shape of the variable, float32 or float64), where momentum is not 0.

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    References: Polyak 1964, "Some methods of speeding up the convergence of iteration methods"; Sutskever
    et al. 2013, "On the importance of initialization and momentum in deep learning".

    >>> import numpy as np
    >>> w = np.array([1.0, 2.0])
    >>> opt = SGD(learning_rate=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     _ = opt.apply([w.copy()], [w])
    >>> w.round(4)
    array([0.72, 1.44])
    """

    learning_rate: LearningRate = LearningRate(default=0.01, kw_only=False)
    momentum: float = hyperparameter(default=0.0, interval="[0, 1]", meaning="weight of the former steps")
    nesterov: bool = hyperparameter(default=False, meaning="look ahead along the momentum")
    form: str = hyperparameter(default="keras", choices=("keras", "torch"), meaning="whose momentum")
    dampening: float = hyperparameter(
        default=0.0, interval="[0, 1]", meaning="how much less than 1 a gradient weighs in PyTorch's momentum"
    )

    def _rule(self) -> str:
        if self.momentum == 0:
            return "sgd"
        return "sgd_nesterov" if self.nesterov else "sgd_momentum"

    def _check_together(self) -> None:
        super()._check_together()
        if self.dampening != 0 and self.form != "torch":
            raise ValueError(
                f"SGD: dampening is for form='torch', got {self.dampening!r} with form={self.form!r}"
            )
