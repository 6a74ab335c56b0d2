"""numba: loops over elements, with parallel=True and fastmath=True, as its performance tips say.

Many arrays are shared out among the threads; the elements of few are.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.contestants.contestant import Contestant, Given, import_peer, scaling

MANY_ARRAYS = 64


@functools.cache
def kernels(many: bool) -> dict[str, Callable[..., None]]:
    """The compiled steps, of lists of flat variables, gradients and slots."""
    numba = import_peer("numba")
    compiled: Any = functools.partial(numba.njit, fastmath=True)
    outer, inner = (numba.prange, range) if many else (range, numba.prange)

    # A loop over elements is a function of its own: where numba runs it in parallel, and its arrays come out
    # of lists in the same function, it loses what the loop writes.
    @compiled(parallel=not many)  # type: ignore[untyped-decorator]
    def adam(p: Any, g: Any, m: Any, v: Any, lr: float, t: int, h: Any) -> None:
        a, r = np.float32(lr / (1 - h[0] ** t)), np.float32((1 - h[1] ** t) ** -0.5)
        b1, c1 = np.float32(h[0]), np.float32(1 - h[0])
        b2, c2 = np.float32(h[1]), np.float32(1 - h[1])
        e, k = np.float32(h[2]), np.float32(1 - lr * h[3])
        for j in inner(p.size):
            m[j] = b1 * m[j] + c1 * g[j]
            v[j] = b2 * v[j] + c2 * g[j] * g[j]
            p[j] = p[j] * k - a * m[j] / (np.sqrt(v[j]) * r + e)

    @compiled(parallel=not many)  # type: ignore[untyped-decorator]
    def momentum(p: Any, g: Any, m: Any, v: Any, lr: float, t: int, h: Any) -> None:
        a, b = np.float32(lr), np.float32(h[0])
        for j in inner(p.size):
            m[j] = b * m[j] + g[j]
            p[j] -= a * m[j]

    @compiled(parallel=not many)  # type: ignore[untyped-decorator]
    def sgd(p: Any, g: Any, m: Any, v: Any, lr: float, t: int, h: Any) -> None:
        a = np.float32(lr)
        for j in inner(p.size):
            p[j] -= a * g[j]

    def over_arrays(update: Callable[..., None]) -> Callable[..., None]:
        @compiled(parallel=many)  # type: ignore[untyped-decorator]
        def step(ps: Any, gs: Any, ms: Any, vs: Any, lr: float, t: int, h: Any) -> None:
            for i in outer(len(ps)):
                update(ps[i], gs[i], ms[i], vs[i], lr, t, h)

        found: Callable[..., None] = step
        return found

    steps = {"adam": adam, "momentum": momentum, "sgd": sgd}
    made = {name: over_arrays(update) for name, update in steps.items()}
    return made | {"adamw": made["adam"]}


def make(given: Given) -> Contestant:
    """Compile, and step over all arrays in one call."""
    numba = import_peer("numba")
    given.refuse(optimizers=("adam", "adamw", "momentum", "sgd"), steps=("plain",), dtypes=("float32",))
    numba.set_num_threads(min(given.threads, numba.config.NUMBA_NUM_THREADS))
    kernel = kernels(len(given.variables) >= MANY_ARRAYS)[given.workload.optimizer]
    h = given.definition.arguments
    arguments = {  # type: ignore[no-untyped-call]
        "adam": lambda: (h["beta_1"], h["beta_2"], h["epsilon"], 0.0),
        "adamw": lambda: (h["beta_1"], h["beta_2"], h["epsilon"], h["weight_decay"]),
        "momentum": lambda: (h["momentum"],),
        "sgd": lambda: (0.0,),
    }[given.workload.optimizer]()
    flat = [
        numba.typed.List([array.reshape(-1) for array in arrays])
        for arrays in (
            given.variables,
            given.gradients,
            *([np.zeros_like(p) for p in given.variables] for _ in range(2)),
        )
    ]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        kernel(*flat, given.learning_rate, t, arguments)

    return Contestant(step, lambda: given.variables, scaling(given.gradients))
