"""Nested dicts and lists of arrays: from ``{"dense": {"kernel": w}}`` to ``{"dense/kernel": w}``."""

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Return the leaves of nested dicts and lists, under their keys joined by slashes."""
    leaves: dict[str, Any] = {}
    for name, leaf in _walk(tree, ""):
        if name in leaves:
            raise ValueError(f"{who}: two arrays are named '{name}'; rename one")
        leaves[name] = leaf
    return leaves


def _walk(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        children = tree.items()
    elif isinstance(tree, (list, tuple)):
        children = dict(enumerate(tree)).items()
    else:
        yield path, tree
        return
    for key, child in children:
        yield from _walk(child, f"{path}/{key}" if path else str(key))


def in_order_of(names: list[str], leaves: dict[str, Any], who: str) -> list[Any]:
    """Return the leaves in the order of ``names``, which must be their very names."""
    missing = [name for name in names if name not in leaves]
    unknown = sorted(leaves.keys() - set(names))
    if missing or unknown:
        raise ValueError(
            f"{who}: grads must have the names of the variables; missing are {missing}, unknown are {unknown}"
            " (None stands for no gradient)"
        )
    return [leaves[name] for name in names]
