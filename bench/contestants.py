"""Who steps: fusedstep, its peers, and the yardstick, each with arrays of its own."""

import contextlib
import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import fusedstep
from bench.same_bytes import SameBytes
from bench.workloads import ADAM, CLIP_EMA, DEEPSPEED, FUSEDSTEP, NUMPY, PAIRS, PYTORCH, SAME_BYTES, Shape

Array = npt.NDArray[Any]
Arrays = list[Array]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


class UnavailableError(Exception):
    """This contestant cannot take part; the message says why."""


@dataclass(frozen=True)
class Contestant:
    """One step as a call without arguments, and the variables that it updates."""

    step: Callable[[], object]
    variables: Callable[[], Arrays]


def start(shapes: list[Shape], dtype: str = "float32", seed: int = 0) -> tuple[Arrays, Arrays]:
    """Make variables in [1, 2) and gradients from the normal distribution: nothing subnormal, nothing near 0.

    Large arrays repeat one block of numbers: how long a step takes does not depend on them.
    """
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    rng = np.random.default_rng(seed)
    longest = min(max(math.prod(shape) for shape in shapes), 1 << 20)
    uniform = rng.uniform(1, 2, longest).astype(stored)
    normal = rng.standard_normal(longest).astype(stored)

    def filled(shape: Shape, numbers: Array) -> Array:
        array = np.empty(math.prod(shape), stored)
        for begin in range(0, array.size, longest):
            part = array[begin : begin + longest]
            part[...] = numbers[: part.size]
        return array.reshape(shape)

    return [filled(shape, uniform) for shape in shapes], [filled(shape, normal) for shape in shapes]


def _adam(learning_rate: float) -> fusedstep.Adam:
    return fusedstep.Adam(learning_rate, beta_1=BETA_1, beta_2=BETA_2, epsilon=EPSILON)


def _fusedstep(variables: Arrays, gradients: Arrays, learning_rate: float, threads: int) -> Contestant:
    return Contestant(partial(_adam(learning_rate).apply, gradients, variables), lambda: variables)


def _pairs(variables: Arrays, gradients: Arrays, learning_rate: float, threads: int) -> Contestant:
    opt = _adam(learning_rate)
    return Contestant(lambda: opt.apply_gradients(zip(gradients, variables, strict=True)), lambda: variables)


# Both clip: the gradients' norm is far above.
CLIP_NORM, DECAY, EMA = 1.0, 0.01, 0.99


def _fusedstep_clip_ema(
    variables: Arrays, gradients: Arrays, learning_rate: float, threads: int
) -> Contestant:
    opt = fusedstep.AdamW(
        learning_rate,
        beta_1=BETA_1,
        beta_2=BETA_2,
        epsilon=EPSILON,
        weight_decay=DECAY,
        global_clipnorm=CLIP_NORM,
        use_ema=True,
        ema_momentum=EMA,
    )
    return Contestant(partial(opt.apply, gradients, variables), lambda: variables)


def _pytorch_clip_ema(variables: Arrays, gradients: Arrays, learning_rate: float, threads: int) -> Contestant:
    torch = import_peer("torch")
    torch.set_num_threads(threads)
    parameters = _parameters(variables, gradients)
    averages = [parameter.detach().clone() for parameter in parameters]
    opt = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(BETA_1, BETA_2), eps=EPSILON, weight_decay=DECAY, fused=True
    )

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - EMA)

    return Contestant(step, lambda: [parameter.detach().numpy() for parameter in parameters])


def _same_bytes_clip_ema(
    variables: Arrays, gradients: Arrays, learning_rate: float, threads: int
) -> Contestant:
    return _moving(variables, gradients, threads, slots=3)


def _parameters(variables: Arrays, gradients: Arrays) -> list[Any]:
    torch = import_peer("torch")
    parameters = []
    for variable, gradient in zip(variables, gradients, strict=True):
        # Copies, in the memory that PyTorch gives its users: it aligns to cache lines, NumPy to 16 bytes.
        parameter = torch.nn.Parameter(torch.tensor(variable))
        parameter.grad = torch.tensor(gradient)
        parameters.append(parameter)
    return parameters


def _pytorch(variables: Arrays, gradients: Arrays, learning_rate: float, threads: int) -> Contestant:
    torch = import_peer("torch")
    torch.set_num_threads(threads)
    parameters = _parameters(variables, gradients)
    opt = torch.optim.Adam(parameters, lr=learning_rate, betas=(BETA_1, BETA_2), eps=EPSILON, fused=True)
    return Contestant(opt.step, lambda: [parameter.detach().numpy() for parameter in parameters])


def _deepspeed(variables: Arrays, gradients: Arrays, learning_rate: float, threads: int) -> Contestant:
    import_peer("torch").set_num_threads(threads)
    parameters = _parameters(variables, gradients)
    adam = import_peer("deepspeed.ops.adam").DeepSpeedCPUAdam
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            opt = adam(parameters, lr=learning_rate, betas=(BETA_1, BETA_2), eps=EPSILON, adamw_mode=False)
    except Exception as error:  # whatever goes wrong in its build
        raise UnavailableError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return Contestant(opt.step, lambda: [parameter.detach().numpy() for parameter in parameters])


def _numpy(variables: Arrays, gradients: Arrays, learning_rate: float, threads: int) -> Contestant:
    slots = [(np.zeros_like(variable), np.zeros_like(variable)) for variable in variables]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        a, r = learning_rate / (1 - BETA_1**t), 1 / math.sqrt(1 - BETA_2**t)
        for p, g, (m, v) in zip(variables, gradients, slots, strict=True):
            m[...] = BETA_1 * m + (1 - BETA_1) * g
            v[...] = BETA_2 * v + (1 - BETA_2) * g * g
            p -= a * m / (np.sqrt(v) * r + EPSILON)

    return Contestant(step, lambda: variables)


def _same_bytes(variables: Arrays, gradients: Arrays, learning_rate: float, threads: int) -> Contestant:
    return _moving(variables, gradients, threads, slots=2)


def _moving(variables: Arrays, gradients: Arrays, threads: int, slots: int) -> Contestant:
    more = [[np.ones(variable.shape, np.float32) for variable in variables] for _ in range(slots)]
    try:
        return Contestant(SameBytes(variables, gradients, more, threads), lambda: variables)
    except RuntimeError as error:
        raise UnavailableError(str(error)) from error


Make = Callable[[Arrays, Arrays, float, int], Contestant]

CONTESTANTS: dict[str, Make] = {
    FUSEDSTEP: _fusedstep,
    PAIRS: _pairs,
    PYTORCH: _pytorch,
    DEEPSPEED: _deepspeed,
    NUMPY: _numpy,
    SAME_BYTES: _same_bytes,
}
STEPS: dict[str, dict[str, Make]] = {
    ADAM: CONTESTANTS,
    CLIP_EMA: {
        FUSEDSTEP: _fusedstep_clip_ema,
        PYTORCH: _pytorch_clip_ema,
        SAME_BYTES: _same_bytes_clip_ema,
    },
}


def import_peer(name: str) -> Any:
    """Import a module that is no requirement, or raise UnavailableError."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return importlib.import_module(name)
    except Exception as error:
        raise UnavailableError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def make(
    name: str,
    shapes: list[Shape],
    *,
    threads: int,
    dtype: str = "float32",
    learning_rate: float = 1e-6,
    step: str = ADAM,
) -> Contestant:
    """Make a contestant with fresh arrays.

    Raises:
        UnavailableError: it is not installed, or does not build.
    """
    variables, gradients = start(shapes, dtype)
    return STEPS[step][name](variables, gradients, learning_rate, threads)


def disagreement(name: str, threads: int) -> float:
    """Return the largest relative difference of a contestant's variables from fusedstep's, after 3 steps."""
    shapes: list[Shape] = [(1000,), (7, 9), (64,), ()]
    ours, theirs = (make(who, shapes, threads=threads, learning_rate=0.1) for who in (FUSEDSTEP, name))
    for _ in range(3):
        ours.step()
        theirs.step()
    return max(
        float(np.max(np.abs(p - q) / np.abs(p)))
        for p, q in zip(ours.variables(), theirs.variables(), strict=True)
    )
