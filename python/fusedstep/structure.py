"""Nested dicts and lists of arrays: from ``{"dense": {"kernel": w}}`` to ``{"dense/kernel": w}``."""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from fusedstep import _native

# To ask whether a type is a Mapping takes longer than all else, so it comes last.
BRANCHES = (dict, list, tuple, Mapping)
LEAVES = {np.ndarray, type(None)}  # for sure


def flatten(tree: Any, who: str, known: Container[str] = ()) -> dict[str, Any]:
    """Return the leaves of nested dicts and lists, under their keys joined by slashes.

    A tuple that has a ``known`` name is a leaf, too: the gradient of some rows is one.
    """
    leaves: dict[str, Any] = {}
    if not isinstance(tree, BRANCHES):
        return {"": tree}
    _add(leaves, tree, "", who, known)
    return leaves


def _add(leaves: dict[str, Any], tree: Any, path: str, who: str, known: Container[str]) -> None:
    for key, child in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        name = f"{path}/{key}" if path else str(key)
        is_leaf = type(child) in LEAVES or not isinstance(child, BRANCHES)
        if not is_leaf and not (isinstance(child, tuple) and name in known):
            _add(leaves, child, name, who, known)
        elif name in leaves:
            raise ValueError(f"{who}: two arrays are named '{name}'; rename one")
        else:
            leaves[name] = child


def in_order_of(names: list[str], tree: Any, who: str) -> list[Any]:
    """Return the leaves in the order of ``names``, which must be their very names."""
    leaves = flatten(tree, who, set(names))
    missing = [name for name in names if name not in leaves]
    if missing or len(leaves) != len(names):
        raise ValueError(
            f"{who}: grads must have the names of the variables; missing are {missing}, unknown are"
            f" {sorted(leaves.keys() - set(names))} (None stands for no gradient)"
        )
    return [leaves[name] for name in names]


def pair_up(variables: Mapping[str, Any], grads: Mapping[str, Any], who: str) -> tuple[list[Any], list[Any]]:
    """Return the variables, and the gradient of each, which has the same name."""
    paired = _native.pair_up(variables, grads)
    if paired is not None:
        return paired
    arrays = flatten(variables, who)
    return list(arrays.values()), in_order_of(list(arrays), grads, who)
