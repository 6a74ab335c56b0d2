"""Keras 3's optimizers on its torch backend, with all variables updated by one native call a step.

One name changes, nothing else does::

    from fusedstep.keras import Adam  # was: from keras.optimizers import Adam

    model.compile(optimizer=Adam(1e-3), loss="mse")

The classes derive from Keras' own and have their arguments, options, configurations and files. What is
identical, what is better and what is not supported is in examples/keras.md. Importing this where Keras has
another backend raises RuntimeError.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import keras

import fusedstep
from fusedstep.keras.fused import Fused
from fusedstep.keras.layout import put_over

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Fused",
    "Lamb",
    "Lion",
    "Nadam",
    "RMSprop",
]

register = keras.saving.register_keras_serializable(package="fusedstep")


@register
class SGD(Fused, keras.optimizers.SGD):
    """keras.optimizers.SGD."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.SGD


@register
class Adam(Fused, keras.optimizers.Adam):
    """keras.optimizers.Adam.

    >>> import keras
    >>> model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=Adam(0.01, global_clipnorm=1.0), loss="mse")
    >>> history = model.fit(keras.ops.ones((8, 3)), keras.ops.zeros((8, 1)), epochs=2, verbose=0)
    >>> int(model.optimizer.iterations)
    2
    """

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Adam
    _core_arguments: ClassVar[dict[str, Any]] = {"epsilon_hat": True}


@register
class AdamW(Fused, keras.optimizers.AdamW):
    """keras.optimizers.AdamW."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.AdamW
    _core_arguments: ClassVar[dict[str, Any]] = {"epsilon_hat": True}


@register
class RMSprop(Fused, keras.optimizers.RMSprop):
    """keras.optimizers.RMSprop; where ``centered`` the variance never falls below 0."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.RMSprop


@register
class Adagrad(Fused, keras.optimizers.Adagrad):
    """keras.optimizers.Adagrad."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Adagrad


@register
class Adadelta(Fused, keras.optimizers.Adadelta):
    """keras.optimizers.Adadelta."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Adadelta


@register
class Adamax(Fused, keras.optimizers.Adamax):
    """keras.optimizers.Adamax."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Adamax


@register
class Nadam(Fused, keras.optimizers.Nadam):
    """keras.optimizers.Nadam; the product of its momenta is float64."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Nadam

    def build(self, variables: Iterable[Any]) -> None:
        """Make the slots, and the product of all momenta so far."""
        built = self.built
        super().build(variables)
        if not built:
            product = self._u_product.value.detach()
            put_over(self._u_product, product.double().cpu())  # where no step waits for a GPU to read it

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        product = self._u_product.value.detach()
        self._core._plans[0].carried = float(product)
        super()._backend_apply_gradients(grads, trainable_variables)
        product.fill_(self._core._plans[0].carried)


@register
class Ftrl(Fused, keras.optimizers.Ftrl):
    """keras.optimizers.Ftrl."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Ftrl


@register
class Lion(Fused, keras.optimizers.Lion):
    """keras.optimizers.Lion."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Lion


@register
class Lamb(Fused, keras.optimizers.Lamb):
    """keras.optimizers.Lamb."""

    _core_class: ClassVar[type[fusedstep.Optimizer]] = fusedstep.Lamb
