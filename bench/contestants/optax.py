"""optax: the whole update in one jax.jit, with parameters and state donated, as both documentations say."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.contestants.contestant import Contestant, Given, import_peer
from bench.optimizers import CLIP_NORM, EMA

MOST_ARRAYS = {"cpu": 1000, "gpu": 200}

# Each is made with the learning rate and the definition's arguments.
OPTIMIZERS: dict[str, Callable[[Any, float, dict[str, Any]], Any]] = {
    "adam": lambda optax, lr, h: optax.adam(lr, h["beta_1"], h["beta_2"], h["epsilon"]),
    "adamw": lambda optax, lr, h: optax.adamw(
        lr, h["beta_1"], h["beta_2"], h["epsilon"], weight_decay=h["weight_decay"]
    ),
    "sgd": lambda optax, lr, h: optax.sgd(lr),
    "momentum": lambda optax, lr, h: optax.sgd(lr, momentum=h["momentum"]),
    "rmsprop": lambda optax, lr, h: optax.rmsprop(lr, h["rho"], h["epsilon"]),
    "adagrad": lambda optax, lr, h: optax.adagrad(lr, h["initial_accumulator_value"], h["epsilon"]),
    "lion": lambda optax, lr, h: optax.lion(lr, h["beta_1"], h["beta_2"], weight_decay=0.0),
}


@functools.cache
def update_of(name: str, learning_rate: float, arguments: tuple[Any, ...], step: str) -> tuple[Any, Any]:
    """The transformation and its compiled step: made once, so that JAX compiles once for the same shapes."""
    jax, optax = import_peer("jax"), import_peer("optax")
    opt = OPTIMIZERS[name](optax, learning_rate, dict(arguments))
    if step != "plain":
        opt = optax.chain(optax.clip_by_global_norm(CLIP_NORM), opt)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(variables: Any, state: Any, averages: Any, gradients: Any) -> Any:
        changes, state = opt.update(gradients, state, variables)
        variables = optax.apply_updates(variables, changes)
        if averages is not None:
            averages = optax.incremental_update(variables, averages, 1 - EMA)
        return variables, state, averages

    return opt, update


def prepare(given: Given, device: str, to_device: Callable[[Any], Any]) -> tuple[Any, Any, Contestant]:
    """Make a step that does not wait for its end, a function that does, and the contestant of both.

    Args:
        given: the workload.
        device: JAX's name of it.
        to_device: makes JAX's arrays.
    """
    jax = import_peer("jax")
    steps, dtypes = ("plain", "clip", "clip-ema"), ("float32", "bfloat16", "float16", "mixed")
    given.refuse(optimizers=OPTIMIZERS, steps=steps, dtypes=dtypes)
    given.refuse_many_arrays(MOST_ARRAYS[device])
    opt, update = update_of(
        given.workload.optimizer,
        given.learning_rate,
        tuple(given.definition.arguments.items()),
        given.workload.step,
    )
    averages = None
    with jax.default_device(jax.devices(device)[0]):
        variables, gradients = to_device(given.variables), to_device(given.gradients)
        state = opt.init(variables)
        if given.workload.step == "clip-ema":
            averages = to_device(given.variables)

    def begin() -> None:
        nonlocal variables, state, averages
        variables, state, averages = update(variables, state, averages, gradients)

    def finish() -> None:
        jax.block_until_ready(variables)

    def step() -> None:
        begin()
        finish()

    def scale(factor: float) -> None:
        nonlocal gradients
        gradients = [gradient * factor for gradient in gradients]

    form = {"form": "torch"} if given.workload.optimizer == "momentum" else {}
    values = lambda: [np.asarray(variable) for variable in variables]  # noqa: E731
    return begin, finish, Contestant(step, values, scale, form)


def make(given: Given) -> Contestant:
    """Step on the CPU."""
    jax = import_peer("jax")
    return prepare(given, "cpu", lambda arrays: jax.device_put(arrays, may_alias=False))[2]
