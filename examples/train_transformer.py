"""Train a small transformer on handwritten digits, on the CPU with NumPy or on a GPU with CuPy.

An image is a sequence of its 8 rows of 8 pixels. Two blocks of attention and a small network, each behind
a layer norm, read it; the mean of their outputs tells the digit. Forward and backward are written out by
hand, once for both libraries. The update of all arrays is one call of fusedstep: AdamW with a schedule,
clipped by the norm of all gradients, no decay for biases and norms.

    pip install ".[examples]"
    python examples/train_transformer.py
    python examples/train_transformer.py --device cuda --graph

It takes some seconds. The exit status is 1 when the test accuracy stays under 96 %. With ``--graph`` the
update is captured in a CUDA graph and replayed.
"""

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

import fusedstep

Array: TypeAlias = Any  # NumPy's or CuPy's
Tree: TypeAlias = dict[str, Any]  # arrays by name, and dicts of them
# A layer returns its output, and what makes of the output's gradient the input's and the parameters'.
Backward: TypeAlias = Callable[[Array], tuple[Array, Tree]]

ROWS, PIXELS, DIGITS = 8, 8, 10
WIDTH, HEADS, BLOCKS = 32, 4, 2
BATCH = 64
PEAK = 0.004  # the largest learning rate
GOAL = 0.96


# The layers.


def linear(p: Tree, x: Array) -> tuple[Array, Backward]:
    """A product with a matrix, and a bias."""

    def backward(dy: Array) -> tuple[Array, Tree]:
        rows, of_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        return dy @ p["kernel"].T, {"kernel": rows.T @ of_rows, "bias": of_rows.sum(axis=0)}

    return x @ p["kernel"] + p["bias"], backward


def layer_norm(xp: Any, p: Tree, x: Array) -> tuple[Array, Backward]:
    """Mean 0 and variance 1 over the last axis (Ba et al. 2016), scaled and shifted."""
    centered = x - x.mean(axis=-1, keepdims=True)
    k = 1 / xp.sqrt((centered * centered).mean(axis=-1, keepdims=True) + 1e-5)
    unit = centered * k

    def backward(dy: Array) -> tuple[Array, Tree]:
        d = dy * p["scale"]
        dx = k * (d - d.mean(axis=-1, keepdims=True) - unit * (d * unit).mean(axis=-1, keepdims=True))
        return dx, {"scale": (dy * unit).sum(axis=(0, 1)), "shift": dy.sum(axis=(0, 1))}

    return unit * p["scale"] + p["shift"], backward


def attention(xp: Any, p: Tree, x: Array) -> tuple[Array, Backward]:
    """Each row gets a mean of all rows' values, weighted by how its query meets their keys."""
    count, each = len(x), WIDTH // HEADS
    projected, back_in = linear(p["in"], x)
    q, k, v = projected.reshape(count, ROWS, 3, HEADS, each).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(each)
    weights = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    y, back_out = linear(p["out"], (weights @ v).swapaxes(1, 2).reshape(count, ROWS, WIDTH))

    def backward(dy: Array) -> tuple[Array, Tree]:
        d, of_out = back_out(dy)
        d = d.reshape(count, ROWS, HEADS, each).swapaxes(1, 2)
        dw = d @ v.swapaxes(-1, -2)
        ds = weights * (dw - (dw * weights).sum(axis=-1, keepdims=True)) / math.sqrt(each)
        parts = xp.stack([ds @ k, ds.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ d])
        dx, of_in = back_in(parts.transpose(1, 3, 0, 2, 4).reshape(count, ROWS, 3 * WIDTH))
        return dx, {"in": of_in, "out": of_out}

    return y, backward


def perceptron(xp: Any, p: Tree, x: Array) -> tuple[Array, Backward]:
    """Two matrices, ReLU between them."""
    hidden, back_in = linear(p["in"], x)
    active = xp.maximum(hidden, 0)
    y, back_out = linear(p["out"], active)

    def backward(dy: Array) -> tuple[Array, Tree]:
        d, of_out = back_out(dy)
        dx, of_in = back_in(d * (active > 0))
        return dx, {"in": of_in, "out": of_out}

    return y, backward


def residual(
    xp: Any, p: Tree, x: Array, layer: Callable[..., tuple[Array, Backward]]
) -> tuple[Array, Backward]:
    """The input, and what a layer behind a norm adds to it."""
    normed, back_norm = layer_norm(xp, p["norm"], x)
    y, back_layer = layer(xp, p["layer"], normed)

    def backward(dy: Array) -> tuple[Array, Tree]:
        d, of_layer = back_layer(dy)
        dx, of_norm = back_norm(d)
        return dy + dx, {"norm": of_norm, "layer": of_layer}

    return x + y, backward


def transformer(xp: Any, params: Tree, images: Array) -> tuple[Array, Callable[[Array], Tree]]:
    """Return the logits, and what makes gradients of theirs."""
    x, back_embed = linear(params["embed"], images)
    x = x + params["position"]
    backs: list[tuple[str, Backward]] = []
    for number in range(BLOCKS):
        for name, layer in (("attention", attention), ("perceptron", perceptron)):
            x, back = residual(xp, params[f"{name}{number}"], x, layer)
            backs.append((f"{name}{number}", back))
    logits, back_head = linear(params["head"], x.mean(axis=1))

    def backward(dlogits: Array) -> Tree:
        d, of_head = back_head(dlogits)
        dx = xp.repeat(d[:, None] / ROWS, ROWS, axis=1)
        grads = {"head": of_head}
        for name, back in reversed(backs):
            dx, grads[name] = back(dx)
        return {"embed": back_embed(dx)[1], "position": dx.sum(axis=0), **grads}

    return logits, backward


def loss_and_gradients(xp: Any, params: Tree, images: Array, digits: Array) -> tuple[Array, Tree]:
    """Return the mean cross entropy, an array without dimensions, and its gradients by name."""
    logits, backward = transformer(xp, params, images)
    chosen = xp.arange(len(digits)), digits
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - xp.log(xp.exp(logits).sum(axis=1, keepdims=True))
    d = xp.exp(log_p)
    d[chosen] -= 1
    return -log_p[chosen].mean(), backward(d / len(digits))


def initial_parameters(rng: np.random.Generator) -> Tree:
    """Return weights (Glorot and Bengio 2010), biases and norms, NumPy's, by name."""

    def matrix(fan_in: int, fan_out: int) -> Tree:
        kernel = rng.standard_normal((fan_in, fan_out)) * math.sqrt(2 / (fan_in + fan_out))
        return {"kernel": kernel.astype(np.float32), "bias": np.zeros(fan_out, np.float32)}

    def behind_a_norm(inner: int, outer: int) -> Tree:
        norm = {"scale": np.ones(WIDTH, np.float32), "shift": np.zeros(WIDTH, np.float32)}
        return {"norm": norm, "layer": {"in": matrix(WIDTH, inner), "out": matrix(outer, WIDTH)}}

    position = 0.1 * rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    params: Tree = {"embed": matrix(PIXELS, WIDTH), "position": position}
    for number in range(BLOCKS):
        params[f"attention{number}"] = behind_a_norm(3 * WIDTH, WIDTH)
        params[f"perceptron{number}"] = behind_a_norm(2 * WIDTH, 2 * WIDTH)
    return params | {"head": matrix(WIDTH, DIGITS)}


def arrays_of(tree: Tree) -> Iterator[Array]:
    """Return the arrays, in their order."""
    for one in tree.values():
        yield from arrays_of(one) if isinstance(one, dict) else [one]


def mapped(function: Callable[[Array], Array], tree: Tree) -> Tree:
    """Return the same tree with a function of each array."""
    return {k: mapped(function, v) if isinstance(v, dict) else function(v) for k, v in tree.items()}


# The training.


def train(xp: Any, epochs: int, seed: int, captures: bool) -> float:
    """Train, print what is reached, and return the test accuracy."""
    x, y, x_test, y_test = (xp.asarray(one) for one in digits_data())
    rng = np.random.default_rng(seed)
    params = mapped(xp.asarray, initial_parameters(rng))
    batches = len(x) // BATCH
    warm, last = 2 * batches, (epochs - 2) * batches
    schedule = fusedstep.CosineDecay(0.0, last, warmup_target=PEAK, warmup_steps=warm)
    # The optimizer reads it at each step: on a GPU the kernel does, so that it also is the graph's.
    rate = xp.asarray(0.0)
    opt = fusedstep.AdamW(rate, weight_decay=0.05, global_clipnorm=1.0)
    opt.exclude_from_weight_decay(var_names=["bias", "scale", "shift", "position"])
    graph, read_by_graph = None, {}
    step, begin = 0, perf_counter()
    for epoch in range(1, epochs + 1):
        total = xp.zeros((), np.float32)
        for batch in np.array_split(rng.permutation(len(x)), batches):
            chosen = xp.asarray(batch)
            loss, grads = loss_and_gradients(xp, params, x[chosen], y[chosen])
            total += loss
            rate[...] = schedule(step)
            if graph is None:
                opt.apply(grads, params)
            else:  # it knows addresses, so new gradients go where those were that it was captured with
                for place, gradient in zip(arrays_of(read_by_graph), arrays_of(grads), strict=True):
                    place[...] = gradient
                graph.launch()
            if captures and graph is None:
                # CuPy captures its kernels but no products of matrices, which are cuBLAS's: the update alone.
                read_by_graph, stream = grads, xp.cuda.get_current_stream()
                stream.begin_capture()
                opt.apply(read_by_graph)
                graph = stream.end_capture()
            step += 1
        accuracy = float((transformer(xp, params, x_test)[0].argmax(axis=1) == y_test).mean())
        if epoch % 5 == 0 or epoch == epochs:
            print(f"epoch {epoch:3}  loss {float(total) / batches:.4f}  test accuracy {accuracy:.2%}")
    print(f"{opt.iterations} steps in {perf_counter() - begin:.1f} s")
    return accuracy


def digits_data() -> tuple[Array, Array, Array, Array]:
    """Return images and digits to learn from, and to test with, NumPy's."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        sys.exit(f'This example needs {error.name}, which is not installed: pip install ".[examples]"')
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(42).permutation(len(images))
    images, digits = (images[order] / 16).astype(np.float32).reshape(-1, ROWS, PIXELS), digits[order]
    tested = len(images) // 4
    return images[tested:], digits[tested:], images[:tested], digits[:tested]


def main() -> int:
    """Train and report; return the exit status."""
    parser = argparse.ArgumentParser(description="Train a small transformer on handwritten digits.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda takes CuPy")
    parser.add_argument("--graph", action="store_true", help="replay the update from a CUDA graph")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the batches")
    args = parser.parse_args()
    if args.epochs < 3:
        parser.error("--epochs must be at least 3")
    if args.graph and args.device != "cuda":
        parser.error("--graph needs --device cuda")

    xp: Any = np if args.device == "cpu" else importlib.import_module("cupy")
    # Work that is captured must not be on the default stream.
    with xp.cuda.Stream(non_blocking=True) if args.graph else nullcontext():
        accuracy = train(xp, args.epochs, args.seed, args.graph)
    return 0 if accuracy >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
