"""The transformer of the examples: its gradients are right, and it learns; .ci/run runs the other one."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("train_transformer", EXAMPLES / "train_transformer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gradients_are_those_of_finite_differences(example: Any) -> None:
    """In float64, for each array along a direction of its own."""
    rng = np.random.default_rng(0)
    params = example.mapped(lambda p: p + 0.1 * rng.standard_normal(p.shape), example.initial_parameters(rng))
    images, digits = rng.random((5, example.ROWS, example.PIXELS)), rng.integers(0, example.DIGITS, 5)
    _, grads = example.loss_and_gradients(np, params, images, digits)

    def loss() -> float:
        return float(example.loss_and_gradients(np, params, images, digits)[0])

    for (name, p), (same_name, g) in zip(by_name(params), by_name(grads), strict=True):
        assert name == same_name
        assert g.shape == p.shape
        direction, start = rng.standard_normal(p.shape), p.copy()
        p += 1e-5 * direction
        above = loss()
        p[...] = start - 1e-5 * direction
        below = loss()
        p[...] = start
        assert (above - below) / 2e-5 == pytest.approx(np.sum(g * direction), rel=1e-5, abs=1e-9), name


def by_name(tree: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name in sorted(tree):
        below = isinstance(tree[name], dict)
        found += by_name(tree[name], f"{before}{name}/") if below else [(before + name, tree[name])]
    return found


def test_it_learns(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="needs the examples extra")
    assert example.train(np, epochs=20, seed=0, captures=False) >= example.GOAL
    assert "steps in" in capsys.readouterr().out
