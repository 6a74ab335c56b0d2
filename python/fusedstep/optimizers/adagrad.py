"""Adagrad."""

from fusedstep.optimizers.hyperparameters import hyperparameter
from fusedstep.optimizers.optimizer import Optimizer


class Adagrad(Optimizer):
    """Adagrad: steps along the gradient, scaled by the root of the sum of all its squares.

    ::

        s = s + g*g
        p = p - lr*g / sqrt(s + epsilon)

    That is Keras' form. In PyTorch's (``form="torch"``), at update t, from 1::

        p = p - lr/(1 + (t - 1)*learning_rate_decay) * g / (sqrt(s) + epsilon)

    Args:
        learning_rate: step size.
        initial_accumulator_value: what s starts with, in [0, inf); read when variables are built.
        epsilon: keeps the denominator from 0, in (0, inf).
        form: "keras" or "torch".
        learning_rate_decay: in [0, inf), for form="torch" only. PyTorch calls it lr_decay.
        weight_decay, l2, maximize, name: see :class:`Optimizer`.

    Slots: ``accumulator`` (shape of the variable, float32 or float64).

    Raises:
        ValueError, TypeError: an argument is out of its interval or of another kind; for the errors of
            steps see :meth:`apply`.

    Reference: Duchi et al. 2011, "Adaptive subgradient methods for online learning and stochastic
    optimization".

    >>> import numpy as np
    >>> w = np.array([1.0])
    >>> opt = Adagrad(learning_rate=0.1, initial_accumulator_value=9.0)
    >>> opt.apply([np.array([4.0])], [w])
    1
    >>> w.round(4)
    array([0.92])
    """

    initial_accumulator_value: float = hyperparameter(
        default=0.1, interval="[0, inf)", meaning="what the sum of squares starts with"
    )
    epsilon: float = hyperparameter(default=1e-7, interval="(0, inf)", meaning="keeps the denominator from 0")
    form: str = hyperparameter(default="keras", choices=("keras", "torch"), meaning="where epsilon stands")
    learning_rate_decay: float = hyperparameter(
        default=0.0, interval="[0, inf)", meaning="how fast PyTorch's learning rate falls"
    )

    def _rule(self) -> str:
        return "adagrad"

    def _initial(self) -> dict[str, float]:
        return {"accumulator": self.initial_accumulator_value}

    def _check_together(self) -> None:
        super()._check_together()
        if self.learning_rate_decay != 0 and self.form != "torch":
            raise ValueError(
                "Adagrad: learning_rate_decay is for form='torch',"
                f" got {self.learning_rate_decay!r} with form={self.form!r}"
            )
