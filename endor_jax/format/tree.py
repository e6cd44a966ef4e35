"""Parameter trees by name: leaves get dotted names, and the tree's shape becomes a JSON value.

A tree of dicts (with text for keys), lists and tuples can be built again from its shape. Any other pytree
(an `nnx.State`, a dataclass) is named just the same, but only the caller knows its type: the shape is then
None, and whoever reads the tree back says what it is like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from endor_jax.errors import InvalidInputError

Shape = dict[str, Any] | str | None


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by dotted name, in tree order: {"mlp": {"up": a}} -> {"mlp.up": a}.

    Raises InvalidInputError if two leaves get one name.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in leaves:
            raise InvalidInputError(
                "parameter tree",
                got=f"two leaves named {name!r}",
                expected="one name per leaf",
                fix="use keys without dots",
            )
        leaves[name] = leaf
    return leaves


def tree_shape(tree: Any) -> Shape:
    """The tree's containers as JSON with leaf names in place of leaves; None if some container is unknown."""
    names = iter(named_leaves(tree))

    def shape(node: Any) -> Shape:
        if type(node) is dict and all(type(key) is str for key in node):
            # jax orders dict leaves by key, and so do we, or names would meet the wrong leaves
            return {"dict": {key: shape(node[key]) for key in sorted(node)}}
        if type(node) in (list, tuple):
            return {type(node).__name__: [shape(item) for item in node]}
        if node is None:
            return {"none": None}
        if not jax.tree_util.all_leaves([node]):
            raise TypeError(type(node).__name__)
        return next(names)

    try:
        return shape(tree)
    except TypeError:  # an unknown container, or keys that JSON would turn into text
        return None


def rebuild(shape: Shape, leaves: Mapping[str, Any]) -> Any:
    """The tree of a shape that `tree_shape` gave (not None), with these leaves."""
    if isinstance(shape, str):
        return leaves[shape]
    assert shape is not None
    ((kind, items),) = shape.items()
    if kind == "dict":
        return {key: rebuild(item, leaves) for key, item in items.items()}
    if kind == "none":
        return None
    sequence = [rebuild(item, leaves) for item in items]
    return sequence if kind == "list" else tuple(sequence)


def rebuild_like(like: Any, leaves: Mapping[str, Any]) -> Any:
    """A tree structured as `like`, whose leaves have the names of `leaves`.

    Raises InvalidInputError naming the leaves that only one of the two has.
    """
    names = list(named_leaves(like))
    if set(names) != set(leaves):
        missing, extra = sorted(set(names) - set(leaves)), sorted(set(leaves) - set(names))
        raise InvalidInputError(
            "parameter tree",
            got=f"stored leaves that lack {missing} and add {extra}",
            expected="the leaves of `like`",
            fix="pass the tree that was saved, or one of the same structure",
        )
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), [leaves[name] for name in names])
