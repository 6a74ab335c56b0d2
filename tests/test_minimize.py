"""minimize: a loss with gradients of its own, or a function of the variables that autograd differentiates."""

import re
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import DTYPES
from fusedstep import SGD, Adam
from reference import same_bits

Array = npt.NDArray[Any]


def variables(dtype: Any = np.float64) -> tuple[Array, Array]:
    return np.array([2], dtype), np.array(5, dtype)


def test_a_loss_with_gradients() -> None:
    """3*v1^2 + 2*v2^2 at (2, 5) falls along (12, 20)."""
    v1, v2 = variables()
    opt = SGD(0.1)
    value = opt.minimize(lambda: ((3 * v1**2 + 2 * v2**2).item(), [6 * v1, 4 * v2]), [v1, v2])
    assert value == 62
    assert (float(v1[0]), float(v2)) == pytest.approx((0.8, 3.0))
    assert opt.iterations == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_of_the_variables(dtype: Any) -> None:
    pytest.importorskip("autograd")
    v1, v2 = variables(dtype)
    w1, w2 = variables(dtype)
    opt, twin = SGD(0.1), SGD(0.1)
    for step in range(3):
        value = opt.minimize(lambda a, b: (3 * a**2 + 2 * b**2).sum(), [v1, v2] if step else iter([v1, v2]))
        assert value == 62 or step > 0
        wide = [w.astype(np.float64 if dtype == np.float64 else np.float32) for w in (w1, w2)]
        twin.apply([3 * (2 * wide[0]), 2 * (2 * wide[1])], [w1, w2])
        if step == 0:
            assert (float(v1[0]), float(v2)) == pytest.approx((0.8, 3.0), rel=1e-2)
    assert same_bits(v1, w1)
    assert same_bits(v2, w2)


def test_variables_by_name() -> None:
    v1, v2 = variables()
    model = {"layer": {"a": v1}, "b": v2}
    opt = Adam(0.1)
    opt.minimize(lambda: (0.0, {"b": 4 * v2, "layer": {"a": 6 * v1}}), model)
    pytest.importorskip("autograd")
    value = opt.minimize(lambda m: (3 * m["layer"]["a"] ** 2 + 2 * m["b"] ** 2).sum(), model)
    w1, w2 = variables()
    twin = Adam(0.1)
    for _ in range(2):
        expected = (3 * w1**2 + 2 * w2**2).item()
        twin.apply([3 * (2 * w1), 2 * (2 * w2)], [w1, w2])
    assert value == expected
    assert v1 == pytest.approx(w1)
    assert v2 == pytest.approx(w2)


def test_var_list_is_asked_for_after_the_loss() -> None:
    made: list[Array] = []

    def loss() -> tuple[float, list[Array]]:
        if not made:
            made.append(np.ones(3))
        return 1.5, [np.ones(3)]

    assert SGD(0.5).minimize(loss, lambda: made) == 1.5
    assert (made[0] == 0.5).all()


def test_all_that_were_built() -> None:
    v1, v2 = variables()
    opt = SGD(0.1)
    opt.build([v1, v2])
    opt.minimize(lambda: (0.0, [6 * v1, None]))
    assert (float(v1[0]), float(v2)) == (2 - 0.1 * 12, 5)
    pytest.importorskip("autograd")
    opt.minimize(lambda a, b: (a**2).sum() + b)
    assert float(v2) == 4.9


def test_all_that_were_built_by_name() -> None:
    """Their gradients come as apply takes them: by name, or in order."""
    v1, v2 = variables()
    opt = SGD(0.1)
    opt.build({"layer": {"a": v1, "b": v2}})
    opt.minimize(lambda: (0.0, {"layer": {"b": None, "a": 6 * v1}}))
    opt.minimize(lambda: (0.0, [None, np.array(20.0)]))
    assert (float(v1[0]), float(v2)) == (2 - 0.1 * 12, 3)


@pytest.mark.parametrize("returned", [62.0, (1.0, [], []), [1.0, []], None])
def test_a_loss_without_gradients(returned: Any) -> None:
    text = f"SGD.minimize: loss() returned {returned!r}, but must return (value, gradients): "
    with pytest.raises(TypeError, match=f"^{re.escape(text)}"):
        SGD().minimize(lambda: returned, [np.ones(3)])
    with pytest.raises(TypeError, match=r"^SGD\.minimize: loss must be callable, got 62\.0 of type float$"):
        SGD().minimize(62.0, [np.ones(3)])  # type: ignore[arg-type]


def test_a_loss_that_raises_changes_nothing() -> None:
    opt, w = SGD(), np.ones(3)

    def loss() -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opt.minimize(loss, [w])
    assert (w == 1).all()
    assert opt.iterations == 0


def test_autograd_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "autograd", None)
    with pytest.raises(
        RuntimeError, match=r"^SGD\.minimize: the package autograd must be there.*pip install"
    ):
        SGD().minimize(lambda w: w.sum(), [np.ones(3)])


def test_a_loss_of_variables_that_nobody_built() -> None:
    sentence = r"SGD\.minimize: var_list is of type NoneType, but must be a list of arrays"
    with pytest.raises(TypeError, match=sentence):
        SGD(0.1).minimize(lambda w: w)
