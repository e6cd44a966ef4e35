"""Models of Records and SparseTensors, saved and restored by Orbax.

Orbax stores arrays: the words. What they mean is static and would be lost, so it goes into the checkpoint's
custom metadata, with digests of the words; restoring needs nothing from the caller. To Orbax it is a tree of
arrays, written atomically as all its checkpoints are, and read by `orbax.checkpoint.v1.load` too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from endor_jax.adapters.orbax_description import Description, Packed, describe, leaf_names, parse_description
from endor_jax.errors import (
    CorruptCheckpointError,
    DestinationExistsError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.tree import Shape, named_leaves, rebuild, tree_shape
from endor_jax.sources.orbax_api import orbax_v1, reading_orbax, writing_orbax
from endor_jax.store.digest import digest_bytes

_KEY = "endor"
"""Where in Orbax's custom metadata the description is."""


@dataclass(frozen=True, eq=False)
class _Leaf:
    """Makes a leaf of what would otherwise be a branch of the tree."""

    node: Any


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree of Records, SparseTensors (`endor.encode`), arrays and numbers as an Orbax checkpoint.

    tree: dicts with text for keys, lists and tuples, or one Record. What lies on a device is copied to the
    host as a whole. On disk are the words as they are and some kilobytes. Raises DestinationExistsError,
    StorageError, UnsupportedError for trees of other containers, for leaves that are no numbers or have no
    elements, and for a SparseTensor that is a view of a record, whose words would be stored once for every
    view.
    """
    target = Path(path).absolute()
    if os.path.lexists(target):
        raise DestinationExistsError(
            str(target),
            got="something that is already there",
            expected="a path where nothing is",
            fix="choose another path or remove it first",
        )
    tree = jax.tree_util.tree_map(lambda node: _Leaf(_on_host(node)), tree, is_leaf=_is_packed)
    shape, named = tree_shape(tree), _nodes(tree)
    if shape is None or (isinstance(shape, str) and not _is_packed(named[shape])):
        raise UnsupportedError(
            "tree to save",
            got="a single array" if isinstance(shape, str) else "containers that JSON cannot name",
            expected="dicts with text for keys, lists and tuples, or one Record",
            fix="convert it first, an nnx.State with nnx.to_pure_dict",
        )
    for name, node in named.items():
        if not _is_packed(node) and not node.size:
            raise UnsupportedError(
                f"tree to save, {name}",
                got=f"an array of shape {node.shape}, without elements",
                expected="arrays that have some: Orbax saves no other",
                fix="leave it out, and make it anew after restoring",
            )
    description = describe(shape, {name: node for name, node in named.items() if _is_packed(node)})
    orbax = orbax_v1()
    context = orbax.Context()
    context.array.saving.use_compression = False  # the words are compressed already
    # Orbax makes directories in the background, and waits minutes for one that cannot be made.
    context.asynchronous.create_directories_asynchronously = False
    with context, writing_orbax(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        orbax.save(target, rebuild(shape, named), custom_metadata={_KEY: description})


def restore(path: str | os.PathLike[str], at: str | None = None) -> Any:
    """The tree that `save` wrote, in host memory, or what is in it at a dotted name.

    at: for example "layers.3", a leaf or a branch; nothing else is read. Words, arrays and numbers come back
    as NumPy arrays. Raises NotFoundError, InvalidInputError for what is no such checkpoint or has nothing at
    that name, UnsupportedError for one of a newer version, CorruptCheckpointError for words that are not
    those saved.
    """
    directory = Path(path).absolute()
    orbax = orbax_v1()
    if not os.path.lexists(directory):
        raise NotFoundError(
            f"Orbax checkpoint {directory}",
            got="nothing there",
            expected="a directory that endor_jax.orbax.save wrote",
            fix="check the path",
        )
    with reading_orbax(directory):
        found = orbax.metadata(directory)
    stored = {name: getattr(leaf, "shape", None) for name, leaf in named_leaves(found.metadata).items()}
    description = parse_description((found.custom_metadata or {}).get(_KEY), stored, where=str(directory))
    branch = _branch(description.tree, at) if at else description.tree
    if branch is None:
        raise InvalidInputError(
            f"Orbax checkpoint {directory}",
            got=f"the name {at!r}",
            expected=f"a leaf or a branch of its tree, such as {', '.join(description.names[:3])}",
            fix="check the spelling",
        )
    wanted = set(leaf_names(branch))
    abstract = {
        name: _abstract(description, name, np.ndarray if name in wanted else orbax.PLACEHOLDER)
        for name in description.names
    }
    with reading_orbax(directory):
        loaded = orbax.load(directory, rebuild(description.tree, abstract))
    nodes = _nodes(jax.tree_util.tree_map(_Leaf, loaded, is_leaf=_is_packed))
    for name in wanted & description.packed.keys():
        _check_digests(directory, name, nodes[name], description.packed[name])
    return rebuild(branch, nodes)


def _is_packed(node: Any) -> bool:
    return isinstance(node, Record | SparseTensor)


def _nodes(tree: Any) -> dict[str, Any]:
    """What the leaves of a tree of `_Leaf` hold, by dotted name."""
    return {name: leaf.node for name, leaf in named_leaves(tree).items()}


def _on_host(node: Any) -> Any:
    """The same with NumPy arrays. Raises UnsupportedError for what is no number."""
    if isinstance(node, Record):
        return Record(tuple(np.asarray(words) for words in node.words), node.layout)
    if isinstance(node, SparseTensor):
        return SparseTensor(tuple(np.asarray(words) for words in node.parts), node.layout)
    try:
        array = np.asarray(node)
    except TypeError:  # a PRNG key
        array = np.asarray(None)
    if array.dtype.kind in "OSUMm":
        raise UnsupportedError(
            "leaf of the tree to save",
            got=f"{type(node).__name__} {' '.join(repr(node).split()):.60}",
            expected="a Record, a SparseTensor, an array or a number",
            fix="leave it out of the tree",
        )
    return array


def _abstract(description: Description, name: str, leaf: Any) -> Any:
    """What Orbax is told of a node: that it is an array to be read, or a placeholder, in its place."""
    if name not in description.packed:
        return leaf
    packed = description.packed[name]
    words = (leaf,) * packed.layout.parts
    return Record(words, packed.layout) if packed.is_record else SparseTensor(words, packed.own)


def _branch(tree: Shape, name: str) -> Shape:
    """The part of a tree's shape that is at a dotted name; None if there is none."""
    if not isinstance(tree, dict):
        return None
    ((kind, items),) = tree.items()
    children: Mapping[str, Any] = {}
    if kind == "dict":
        children = items
    elif kind in ("list", "tuple"):
        children = {str(index): item for index, item in enumerate(items)}
    for key, child in children.items():
        if name == key:
            return child
        # A key may have dots in it itself.
        if name.startswith(f"{key}.") and (found := _branch(child, name[len(key) + 1 :])) is not None:
            return found
    return None


def _check_digests(directory: Path, name: str, node: Any, packed: Packed) -> None:
    words: tuple[Any, ...] = node.words if isinstance(node, Record) else node.parts
    for part, digest in zip(words, packed.digests, strict=True):
        if digest_bytes(part) != digest:
            raise CorruptCheckpointError(
                f"{name} of Orbax checkpoint {directory}",
                got="words with another digest",
                expected=f"digest {digest}, as when they were saved",
                fix="the files are damaged: copy or save the checkpoint again",
            )
