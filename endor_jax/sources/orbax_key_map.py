"""key_map.json: which array of an Orbax checkpoint is which tensor of the model.

    {
      "checkpoint": "params",
      "tensors": {
        "model.embed_tokens.weight": "embed.embedding",
        "model.layers.{i}.mlp.up_proj.weight": {"key": "layers_{i}.mlp.up.kernel", "transpose": true},
        "model.layers.{i}.self_attn.q_proj.weight":
          {"key": "layers_{i}.attention.q.kernel", "transpose": [1, 2, 0], "shape": [2048, 2048]}
      },
      "ignore": ["step", "opt_state.*"]
    }

Left is the tensor's Hugging Face name, right the array's key, dots between the levels of the tree; {i} is any
layer number. `transpose` is a permutation of the array's axes, `true` reverses them; `shape` is what it is
reshaped to after that. `ignore` lists the arrays that are no part of the model; `*` stands for anything.
`config`, the model's config.json, may be in it too; `checkpoint` is a path from where the key map is.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from endor_jax.errors import InvalidInputError
from endor_jax.sources.brief import brief
from endor_jax.sources.source import TensorInfo

KEY_MAP_FILE = "key_map.json"
_LAYER = "{i}"
_KEYS = frozenset({"checkpoint", "tensors", "ignore", "config"})
_SHOWN = 8  # names in an error message


@dataclass(frozen=True)
class Entry:
    """How one tensor is made of an array. transpose: "reversed", a permutation, or None."""

    key: str
    transpose: tuple[int, ...] | str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class KeyMap:
    """A key map. tensors: by Hugging Face name; names and keys may have {i} in them."""

    checkpoint: str
    tensors: Mapping[str, Entry]
    ignore: tuple[str, ...] = ()
    config: dict[str, Any] | None = None


def parse_key_map(value: Mapping[str, Any], *, where: str) -> KeyMap:
    """The key map of a JSON object. Raises InvalidInputError, naming the entry, for anything else."""
    if unknown := set(value) - _KEYS:
        raise _wrong(where, f"key {brief(min(unknown))}", f"only {', '.join(sorted(_KEYS))}")
    tensors = value.get("tensors")
    if not isinstance(tensors, dict) or not tensors:
        raise _wrong(f"{where}: tensors", brief(tensors), "an object: Hugging Face names with keys")
    ignore = value.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(pattern, str) for pattern in ignore):
        raise _wrong(f"{where}: ignore", brief(ignore), "a list of patterns")
    config = value.get("config")
    if not isinstance(config, dict | None):
        raise _wrong(f"{where}: config", brief(config), "what config.json would hold")
    checkpoint = value.get("checkpoint", ".")
    if not isinstance(checkpoint, str) or not checkpoint or "\0" in checkpoint:
        raise _wrong(f"{where}: checkpoint", brief(checkpoint), "a path")
    entries = {name: _entry(f"{where}: tensor {brief(name)}", name, entry) for name, entry in tensors.items()}
    return KeyMap(checkpoint, entries, tuple(ignore), config)


def key_map_json(checkpoint: str, tensors: Mapping[str, str]) -> bytes:
    """The file that `parse_key_map` reads; `tensors` are keys by Hugging Face name, nothing transposed."""
    return (json.dumps({"checkpoint": checkpoint, "tensors": tensors}, indent=2) + "\n").encode()


def _entry(where: str, name: str, value: Any) -> Entry:
    if isinstance(value, str):
        value = {"key": value}
    match value:
        case {"key": str(key), **rest} if rest.keys() <= {"transpose", "shape"}:
            pass
        case _:
            raise _wrong(where, brief(value), "a key, or an object of key, transpose and shape")
    if key.count(_LAYER) != name.count(_LAYER) or name.count(_LAYER) > 1:
        raise _wrong(where, f"key {brief(key)}", f"{_LAYER} once in both, or in none")
    transpose, shape = rest.get("transpose", False), rest.get("shape")
    if isinstance(transpose, bool):
        axes = "reversed" if transpose else None
    elif _integers(transpose) and sorted(transpose) == list(range(len(transpose))):
        axes = tuple(transpose)
    else:
        raise _wrong(f"{where}: transpose", brief(transpose), "true, false or a permutation of the axes")
    if shape is not None and not (_integers(shape) and all(0 < size < 2**63 for size in shape)):
        raise _wrong(f"{where}: shape", brief(shape), "a list of sizes")
    return Entry(key, axes, None if shape is None else tuple(shape))


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def resolve(key_map: KeyMap, keys: Mapping[str, TensorInfo | None], *, where: str) -> dict[str, Entry]:
    """By Hugging Face name, the array that each tensor is made of, with {i} filled in.

    keys: what is in the checkpoint; None for what is no array. Raises InvalidInputError for an entry that
    finds no array, an array that two entries find or that none does and `ignore` does not list.
    """
    found: dict[str, Entry] = {}
    taken: dict[str, str] = {}
    for name, entry in key_map.tensors.items():
        pattern = re.compile(re.escape(entry.key).replace(re.escape(_LAYER), "(?P<i>0|[1-9][0-9]*)"))
        matches = [match for key in keys if (match := pattern.fullmatch(key))]
        if not matches:
            raise _wrong(where, f"no array {brief(entry.key)}", f"one for {name}; it has {_some(list(keys))}")
        for match in matches:
            full = name.replace(_LAYER, match["i"]) if _LAYER in name else name
            if full in found or match[0] in taken:
                both = (
                    f"{found[full].key} and {match[0]}" if full in found else f"{taken[match[0]]} and {full}"
                )
                raise _wrong(where, f"{brief(both)} in one place", "one array for each tensor")
            if keys[match[0]] is None:
                raise _wrong(f"{where}: {match[0]}", "something else than an array", f"an array for {full}")
            found[full] = Entry(match[0], entry.transpose, entry.shape)
            taken[match[0]] = full
    left = [key for key in keys if key not in taken and not _matches(key, key_map.ignore)]
    if left:
        raise _wrong(where, f"{_some(left)}, which the key map does not name", "every array in the key map")
    return found


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def info_of(entry: Entry, array: TensorInfo, *, where: str) -> TensorInfo:
    """What the tensor is like once the array is transposed and reshaped.

    Raises InvalidInputError if the array has not the axes or the elements for that.
    """
    shape = array.shape
    if entry.transpose == "reversed":
        shape = shape[::-1]
    elif entry.transpose is not None:
        if len(entry.transpose) != len(shape):
            raise _wrong(
                f"{where}: {entry.key}", f"shape {shape}", f"{len(entry.transpose)} axes to transpose"
            )
        shape = tuple(shape[int(axis)] for axis in entry.transpose)
    if entry.shape is not None:
        if math.prod(entry.shape) != math.prod(shape):
            raise _wrong(f"{where}: {entry.key}", f"shape {shape}", f"as many elements as {entry.shape}")
        shape = entry.shape
    return TensorInfo(shape, array.dtype)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(brief(name)[1:-1] for name in names[:_SHOWN]) + more


def _wrong(where: str, got: str, expected: str) -> InvalidInputError:
    fix = 'correct the key map (docs/importing.md, "Orbax")'
    return InvalidInputError(where, got=got, expected=expected, fix=fix)
