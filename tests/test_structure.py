"""Nested dicts and lists of variables and gradients: which array is whose gradient."""

import re
from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fusedstep import SGD, _native
from fusedstep.structure import flatten, in_order_of, pair_up

NAMES = st.text("ab", max_size=2)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        st.integers(),
        lambda inner: (
            st.dictionaries(NAMES, inner) | st.lists(inner, max_size=3).map(tuple) | st.lists(inner)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def numbered(tree: Any, count: list[int]) -> Any:
    """The same tree, with arrays that have a number each."""
    if isinstance(tree, dict):
        return {key: numbered(child, count) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(numbered(child, count) for child in tree)
    count[0] += 1
    return np.array(float(count[0]))


def mirrored(tree: Any) -> Any:
    """The same tree with its keys in another order, lists for tuples, and the negatives of its arrays."""
    if isinstance(tree, dict):
        return {key: mirrored(child) for key, child in reversed(tree.items())}
    if isinstance(tree, (list, tuple)):
        return [mirrored(child) for child in tree]
    return -tree


@given(TREES)
def test_every_variable_finds_its_gradient(tree: dict[str, Any]) -> None:
    """At once, by names, and by the names of a build, which are what is between the slashes."""
    variables = numbered(tree, [0])
    try:
        names = flatten(variables, "")
    except ValueError:  # two have one name, as with empty keys
        assume(False)
    gradients = mirrored(variables)
    found, theirs = pair_up(variables, gradients, "")
    assert [float(one) for one in found] == list(range(1, len(found) + 1))
    assert [float(one) for one in theirs] == [-float(one) for one in found]
    assert [float(one) for one in names.values()] == [float(one) for one in found]
    assert in_order_of(list(names), gradients, "") == theirs
    by_name = {name: -one for name, one in names.items()}
    assert [float(one) for one in pair_up(variables, by_name, "")[1]] == [float(one) for one in theirs]


@pytest.mark.parametrize("kind", [dict, OrderedDict, MappingProxyType], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("both", [True, False], ids=["both", "gradients alone"])
def test_mappings_of_all_kinds(kind: Callable[[Any], Any], both: bool) -> None:
    a, b, c = np.zeros(2), np.zeros(3), np.zeros(())
    variables = kind({"dense": kind({"kernel": a, "bias": b}), "scale": [c]})
    grads = kind({"scale": (np.array(3.0),), "dense": kind({"bias": np.full(3, 2.0), "kernel": None})})
    opt = SGD(1.0)
    opt.build(variables)
    opt.apply(grads, variables if both else None)
    assert (a.tolist(), b.tolist(), float(c)) == ([0, 0], [-2, -2, -2], -3)


@pytest.mark.parametrize("both", [True, False], ids=["both", "gradients alone"])
def test_rows_have_a_name(both: bool) -> None:
    """The tuple of a sparse gradient stands where its variable stands."""
    table, bias = np.zeros((4, 2)), np.zeros(2)
    variables = {"embedding": {"table": table}, "bias": bias}
    opt = SGD(1.0)
    opt.build(variables)
    grads = {"bias": np.ones(2), "embedding": {"table": (np.array([2]), np.ones((1, 2)))}}
    opt.apply(grads, variables if both else None)
    assert table[:, 0].tolist() == [0, 0, -1, 0]
    assert bias.tolist() == [-1, -1]
    opt.apply(
        {"bias": None, "embedding/table": (np.array([0]), np.ones((1, 2)))}, variables if both else None
    )
    assert table[:, 0].tolist() == [-1, 0, -1, 0]


@pytest.mark.parametrize(
    ("grads", "sentence"),
    [
        ({"a": [1.0]}, "missing are ['b/0'], unknown are []"),
        ({"a": [1.0], "b": {}}, "missing are ['b/0'], unknown are []"),
        ({"a": [1.0, 2.0], "b": [1.0]}, "missing are [], unknown are ['a/1']"),
        ({"a": [1.0], "b": [1.0], "c": {"d": 1.0}}, "missing are [], unknown are ['c/d']"),
        ({"a": [[1.0]], "b": [1.0]}, "missing are ['a/0'], unknown are ['a/0/0']"),
        ({"a": [{"x": 1.0}], "b": [1.0]}, "missing are ['a/0'], unknown are ['a/0/x']"),
        (
            {"a": [MappingProxyType({"x": 1.0})], "b": [1.0]},
            "missing are ['a/0'], unknown are ['a/0/x']",
        ),
    ],
    ids=repr,
)
@pytest.mark.parametrize("both", [True, False], ids=["both", "gradients alone"])
def test_other_names_are_refused(grads: dict[str, Any], sentence: str, both: bool) -> None:
    opt, variables = SGD(1.0), {"a": [np.zeros(())], "b": [np.zeros(())]}
    opt.build(variables)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        opt.apply(grads, variables if both else None)
    assert variables["a"] == variables["b"] == [0.0]


class OnlySays:
    """A dict by its __class__ alone, as some libraries' wrappers are."""

    def __init__(self, wrapped: dict[str, Any]) -> None:
        self.wrapped = wrapped

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return dict

    def items(self) -> Any:
        return self.wrapped.items()


@pytest.mark.parametrize("inner", [True, False])
def test_what_only_says_that_it_is_a_dict(inner: bool) -> None:
    w, opt = np.zeros(2), SGD(1.0)
    wrap: Callable[[Any], Any] = (
        (lambda x: {"a": OnlySays({"k": x})}) if inner else (lambda x: OnlySays({"k": x}))
    )
    opt.build(wrap(w))
    opt.apply(wrap(np.ones(2)), wrap(w))
    assert w.tolist() == [-1, -1]


def test_keys_with_code_of_their_own() -> None:
    """They may empty the very dicts that are looked at."""
    variables: dict[str, Any] = {"a": {"b": np.zeros(1)}}

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            variables.clear()
            return True

    opt = SGD(1.0)
    opt.build([np.zeros(1)])
    with pytest.raises(ValueError, match="was never built"):
        opt.apply({Key("a"): {"b": np.ones(1)}}, variables)


def test_names_are_keys_between_slashes() -> None:
    assert list(flatten({"": {"": 1, "x": 2}, "a": [{"b": 3}], 7: 4}, "")) == ["", "x", "a/0/b", "7"]


@pytest.mark.parametrize("bad", [None, np.ones((1, 2)), 3.0], ids=["None", "array", "number"])
def test_a_replica_that_is_no_tree_is_refused(bad: Any) -> None:
    w, opt = np.zeros(2), SGD(1.0)
    opt.build({"0": w})
    for variables in ({"0": w}, None):
        with pytest.raises(TypeError, match=f"replicas are dict, {type(bad).__name__}; all must be dicts"):
            opt.apply(None, variables, replicas=[{"0": np.ones(2)}, bad])
    assert not w.any()


def test_named_replicas_of_listed_variables_are_refused() -> None:
    """The names would be those of the build, whose order and variables may be others."""
    w, b, opt = np.zeros(1), np.zeros(1), SGD(1.0)
    opt.build({"w": w, "b": b})
    grads = {"w": np.ones(1), "b": np.full(1, 10.0)}
    with pytest.raises(TypeError, match=r"replicas\[0\] is a dict and variables a list"):
        opt.apply(None, [b, w], replicas=[grads])
    assert not w.any()
    assert not b.any()
    opt.apply(replicas=[grads])
    assert (w[0], b[0]) == (-1, -10)


class Guarded(np.ndarray):
    """An array with code of its own for every attribute."""

    def __getattribute__(self, name: str) -> Any:
        return None if name == "T" else super().__getattribute__(name)


def test_attributes_of_objects_of_several_types() -> None:
    """Of some it is a property in C, which is looked up once for all of a type."""
    rows = [np.ones((1, 2)), np.ones((1, 3))]
    objects = [rows[0], np.ones((1, 2)).view(Guarded), SimpleNamespace(T=5), rows[1]]
    found, absent = _native.attributes_of(objects, "T")
    assert [one.shape for one in (found[0], found[3])] == [(2, 1), (3, 1)]
    assert (found[1], found[2], absent) == (None, 5, [1])


def test_what_contains_itself_has_no_end() -> None:
    tree: dict[str, Any] = {"a": np.zeros(1)}
    opt = SGD(1.0)
    opt.build(dict(tree))
    tree["b"] = tree
    with pytest.raises(RecursionError):
        opt.apply(tree, tree)
