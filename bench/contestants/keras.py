"""Keras 3, on the backend of its process: each as its guides write a training loop for that backend.

And fusedstep.keras, whose classes have the same arguments, on the same variables.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.contestants.contestant import Array, Contestant, Given, import_peer
from bench.optimizers import CLIP_NORM, EMA

MOST_ARRAYS = 200
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"global_clipnorm": CLIP_NORM},
    "clip-ema": {"global_clipnorm": CLIP_NORM, "use_ema": True, "ema_momentum": EMA},
}


def optimizer(given: Given, library: str) -> tuple[Any, dict[str, Any]]:
    """Make the library's optimizer, and say in which form it is."""
    optimizers, h = import_peer(library), given.definition.arguments
    names = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "momentum": "SGD", "rmsprop": "RMSprop"}
    names |= {"adagrad": "Adagrad", "adadelta": "Adadelta", "adamax": "Adamax", "nadam": "Nadam"}
    names |= {"lion": "Lion", "ftrl": "Ftrl"}
    form: dict[str, Any] = {"epsilon_hat": True} if given.workload.optimizer in ("adam", "adamw") else {}
    arguments = dict(h)
    if given.workload.optimizer == "momentum":
        form = {"form": arguments.pop("form") and "keras"}
    cls = getattr(optimizers, names[given.workload.optimizer])
    return cls(given.learning_rate, **arguments, **OPTIONS[given.workload.step]), form


def make(given: Given, library: str = "keras.optimizers") -> Contestant:
    """Step on the backend."""
    keras = import_peer("keras")
    given.refuse(steps=OPTIONS, dtypes=("float32",))
    opt, form = optimizer(given, library)
    backend = keras.config.backend()
    if backend in ("jax", "tensorflow"):
        given.refuse_many_arrays(MOST_ARRAYS)
    variables = [keras.Variable(variable) for variable in given.variables]
    opt.build(variables)
    gradients = [keras.ops.convert_to_tensor(gradient) for gradient in given.gradients]
    values: Callable[[], list[Array]] = lambda: [  # noqa: E731
        np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables
    ]

    def scale(factor: float) -> None:
        gradients[:] = [gradient * factor for gradient in gradients]

    if backend == "jax":
        step, values = _with_jax(opt, variables, gradients)
        return Contestant(step, values, scale, form)
    if backend == "tensorflow":
        return _with_tensorflow(given, opt, variables, values, form)
    if backend == "torch":
        import_peer("torch").set_num_threads(given.threads)
    step = lambda: opt.apply(gradients, variables)  # noqa: E731
    return Contestant(step, values, scale, form, renew=lambda: scale(1.0))


def make_ours(given: Given) -> Contestant:
    """fusedstep.keras, on its only backend."""
    return make(given, "fusedstep.keras")


def _with_jax(opt: Any, variables: list[Any], gradients: list[Any]) -> Any:
    """Without state, in jax.jit, with what is replaced donated."""
    jax = import_peer("jax")
    apply = functools.partial(jax.jit, donate_argnums=(0, 2))(opt.stateless_apply)
    state = [variable.value for variable in opt.variables]
    values = [variable.value for variable in variables]

    def step() -> None:
        nonlocal state, values
        values, state = apply(state, gradients, values)
        jax.block_until_ready(values)

    return step, lambda: [np.asarray(value) for value in values]


def _with_tensorflow(
    given: Given, opt: Any, variables: list[Any], values: Callable[[], list[Array]], form: dict[str, Any]
) -> Contestant:
    """In tf.function, compiled by XLA."""
    tensorflow = import_peer("tensorflow")
    gradients = [tensorflow.Variable(gradient) for gradient in given.gradients]

    @tensorflow.function(jit_compile=True)  # type: ignore[untyped-decorator]
    def step() -> None:
        opt.apply([tensorflow.convert_to_tensor(gradient) for gradient in gradients], variables)

    def scale(factor: float) -> None:
        for gradient in gradients:
            gradient.assign(gradient * factor)

    return Contestant(step, values, scale, form)
