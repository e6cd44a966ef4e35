"""What a tree of Records and SparseTensors is, as JSON: all that is not words, and digests of those.

    {"version": 1, "tree": ..., "layouts": [...], "packed": {NAME: {"record", "layout", "digests"}}}

`tree` is the manifest's way to write a tree and `layouts` its `signatures` (docs/format.md), read with the
same checks. Leaves that are not in `packed` are plain arrays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from endor_jax.errors import CorruptCheckpointError, EndorError, InvalidInputError, UnsupportedError
from endor_jax.format.encode import escape_words, with_escapes
from endor_jax.format.layout import (
    SEGMENT,
    FieldLayout,
    RecordLayout,
    TensorLayout,
    TensorSpec,
    padding_words,
    plan_layout,
)
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.tree import Shape
from endor_jax.store.digest import digest_bytes
from endor_jax.store.manifest import FORMAT_VERSION, Manifest, Signature, layout_from_json, to_json
from endor_jax.store.manifest_schema import check_schema

_VERSION = 1
_OWN = "array"
"""What `endor.encode` calls the one tensor in the words of a SparseTensor that owns them."""
_DIGEST = re.compile("[0-9a-f]{16}")
_MEMBERS = {"version", "tree", "layouts", "packed"}


@dataclass(frozen=True)
class Packed:
    """A Record, or a SparseTensor as a record of one tensor; a digest for each part."""

    is_record: bool
    layout: RecordLayout
    digests: tuple[str, ...]

    @property
    def own(self) -> TensorLayout:
        """The layout of the SparseTensor."""
        return self.layout[_OWN]


@dataclass(frozen=True)
class Description:
    """A tree: its shape, the names of its leaves in order, and which of them are packed."""

    tree: Shape
    names: tuple[str, ...]
    packed: Mapping[str, Packed]


def describe(tree: Shape, packed: Mapping[str, Record | SparseTensor]) -> dict[str, Any]:
    """The JSON object for a tree of this shape with these nodes, on the host, among its leaves.

    Raises UnsupportedError for a SparseTensor that is a view of a longer record.
    """
    found: dict[str, Packed] = {}
    for name, node in packed.items():
        words: tuple[Any, ...] = node.words if isinstance(node, Record) else node.parts
        layout = node.layout if isinstance(node, Record) else _own_layout(name, node)
        found[name] = Packed(isinstance(node, Record), layout, tuple(digest_bytes(part) for part in words))
    layouts = list(dict.fromkeys(one.layout for one in found.values()))
    return {
        "version": _VERSION,
        "tree": tree,
        "layouts": to_json(Manifest(tuple(Signature(layout) for layout in layouts), ()))["signatures"],
        "packed": {
            name: {"record": one.is_record, "layout": layouts.index(one.layout), "digests": list(one.digests)}
            for name, one in found.items()
        },
    }


def _own_layout(name: str, tensor: SparseTensor) -> RecordLayout:
    """The layout of a SparseTensor's words as a record of one tensor."""
    layout = tensor.layout
    codec = layout.codec if isinstance(layout, FieldLayout) else None
    whole = plan_layout({_OWN: TensorSpec(layout.shape, layout.dtype, codec)}, parts=len(tensor.parts))
    if isinstance(layout, FieldLayout):
        whole = with_escapes(whole, {_OWN: layout.escape_capacity})
    if whole[_OWN] != layout:
        raise UnsupportedError(
            f"leaf {name!r}",
            got="a SparseTensor that is a view of a record",
            expected="one that owns its words, as endor.encode makes them, or the Record",
            fix="save the Record itself",
        )
    return whole


def parse_description(value: Any, shapes: Mapping[str, Any], *, where: str) -> Description:
    """The description in a checkpoint's metadata, which anybody may have written.

    shapes: of every array that Orbax found, by dotted name. Raises InvalidInputError where there is none,
    UnsupportedError for another version, CorruptCheckpointError for one that contradicts itself or the
    arrays.
    """
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"Orbax checkpoint {where}",
            got="no description of records in its metadata",
            expected="a checkpoint that endor.orbax.save wrote",
            fix="read plain checkpoints with orbax itself, or convert them (docs/importing.md)",
        )
    if (version := value.get("version")) != _VERSION:
        raise UnsupportedError(
            f"Orbax checkpoint {where}",
            got=f"version {version!r:.40}",
            expected=f"version {_VERSION}",
            fix="use the endor_jax release that wrote it, or a newer one",
        )
    try:
        return _description(value, shapes)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, EndorError) as error:
        raise CorruptCheckpointError(
            f"Orbax checkpoint {where}",
            got=f"a description with {type(error).__name__}: {' '.join(str(error).split()):.200}",
            expected="what endor.orbax.save writes",
            fix="the metadata are damaged: copy or save the checkpoint again",
        ) from error


def _description(value: Mapping[str, Any], shapes: Mapping[str, Any]) -> Description:
    if value.keys() != _MEMBERS or type(value["packed"]) is not dict:
        raise ValueError(f"the members {sorted(value)}")
    layouts = [layout_from_json(layout) for layout in _checked(value["layouts"], value["tree"])]
    names = leaf_names(value["tree"])
    packed: dict[str, Packed] = {}
    for name, entry in value["packed"].items():
        if name not in names or type(entry["record"]) is not bool or type(entry["layout"]) is not int:
            raise ValueError(f"an entry for {name!r} that fits no leaf")
        if not 0 <= entry["layout"] < len(layouts):
            raise ValueError(f"layout {entry['layout']} of {len(layouts)}")
        digests = tuple(entry["digests"])
        if not all(type(digest) is str and _DIGEST.fullmatch(digest) for digest in digests):
            raise ValueError(f"digests of {name!r} that are none")
        packed[name] = Packed(entry["record"], layouts[entry["layout"]], digests)
        if not entry["record"] and packed[name].layout.names != (_OWN,):
            raise ValueError(f"a tensor {name!r} with the layout of a record")
        prefix = "" if isinstance(value["tree"], str) else f"{name}."
        held = "words" if entry["record"] else "parts"
        _check_words(packed[name], [shapes[f"{prefix}{held}.{i}"] for i in range(len(digests))])
    return Description(value["tree"], tuple(names), packed)


def _checked(layouts: Any, tree: Any) -> list[Any]:
    """The layouts, once they and the tree have the types and ranges of docs/format.md."""
    names = [{"name": name, "shape": [1], "dtype": "uint8"} for name in leaf_names(tree)]
    of_tree = [entry | {"codec": None, "escapes": 0} for entry in names]
    signature = {"parts": 1, "segment": SEGMENT, "tensors": of_tree, "tree": tree}
    if type(layouts) is not list:
        raise ValueError("layouts that are no list")
    empty = {"format": "endor", "format_version": FORMAT_VERSION, "made": {}, "model": None, "records": []}
    check_schema(empty | {"files": {}, "signatures": [signature, *layouts]})
    return layouts


def _check_words(packed: Packed, shapes: Sequence[Any]) -> None:
    """Whether the arrays can be parts of this layout: before they are read, and before a step is compiled
    that sets memory aside for their escapes."""
    layout = packed.layout
    if len(packed.digests) != layout.parts or not all(len(shape) == 1 for shape in shapes):
        raise ValueError(f"parts of the shapes {list(shapes)}, not {layout.parts} of rank 1")
    words = [shape[0] for shape in shapes]
    if min(words) < layout.streams_start + padding_words(layout):
        raise ValueError(f"a part of {min(words):,} words, fewer than its sections need")
    for name, tensor in layout.tensors:
        if isinstance(tensor, FieldLayout):
            escapes = escape_words(tensor.escape_capacity, tensor.number.bits // 8)
            if layout.streams_start + escapes > max(words):
                raise ValueError(f"{tensor.escape_capacity:,} escapes of {name!r} in {max(words):,} words")


def leaf_names(tree: Shape) -> list[str]:
    """The names of a shape's leaves, in order. Raises ValueError for what is no shape."""
    match tree:
        case str():
            return [tree]
        case {"none": None, **rest} if not rest:
            return []
        case {"dict": dict(items), **rest} if not rest:
            children = list(items.values())
        case {"list": list(children), **rest} | {"tuple": list(children), **rest} if not rest:
            pass
        case _:
            raise ValueError("a tree that is no dict, list, tuple, none or name")
    return [name for child in children for name in leaf_names(child)]
