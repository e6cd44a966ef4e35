"""Which JSON values a manifest may hold: members, types and ranges, checked before anything is made of them.

A manifest comes from whoever wrote the directory. Its digest tells damage, not intent: numbers that are
booleans, negative or astronomic, names that leave the directory and trees nested without end are refused
here, so that the code behind never meets them. Every check raises ValueError saying where.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import ml_dtypes

from endor_jax.format.layout import PART_LIMIT_WORDS

PART_LIMIT_BYTES = 4 * PART_LIMIT_WORDS
COUNT_LIMIT = 2**63
"""No count of a checkpoint reaches this; sums of them stay exact in any language."""
TREE_DEPTH = 100
RANK_LIMIT = 32
DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "bfloat16"}
    | {name for name in dir(ml_dtypes) if name.startswith("float8_")}
)
"""Names of the dtypes that a tensor may have: real elements of 8, 16 or 32 bits."""


def check_schema(body: Mapping[str, Any]) -> None:
    """Raises ValueError unless the members of a manifest (without its digest) have the types and ranges of
    docs/format.md. How they go together is for whoever builds them to check."""
    _members(body, "the manifest", "format format_version made model signatures records files")
    _require(type(body["made"]) is dict, "made", body["made"], "an object")
    _require(
        body["model"] is None or type(body["model"]) is dict, "model", body["model"], "an object or null"
    )
    for i, signature in enumerate(_list(body["signatures"], "signatures")):
        _check_signature(signature, f"signature {i}")
    for i, record in enumerate(_list(body["records"], "records")):
        _check_record(record, f"record {i}")
    files = body["files"]
    _require(type(files) is dict, "files", files, "an object")
    for name, digest in files.items():
        check_path(name)
        _check_digest(digest, f"the digest of {name!r}")


def check_path(name: Any) -> None:
    """Raises ValueError unless `name` is a relative path inside the checkpoint, spelled in one way only."""
    _require(type(name) is str and name != "" and "\0" not in name, "a path", name, "a file name")
    name.encode()  # lone surrogates are no file name
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is outside the checkpoint")
    _require(str(path) == name and name != ".", "a path", name, "a path without empty or '.' steps")


def _check_signature(value: Any, where: str) -> None:
    _members(value, where, "parts segment tensors tree")
    _integer(value["parts"], f"{where}: parts", 1, PART_LIMIT_WORDS)
    _integer(value["segment"], f"{where}: segment", 1, COUNT_LIMIT)
    names = []
    for i, tensor in enumerate(_list(value["tensors"], f"{where}: tensors")):
        at = f"{where}: tensor {i}"
        _members(tensor, at, "name shape dtype codec escapes")
        names.append(_text(tensor["name"], f"{at}: name"))
        shape = _list(tensor["shape"], f"{at}: shape")
        _require(len(shape) <= RANK_LIMIT, f"{at}: rank", len(shape), f"at most {RANK_LIMIT}")
        for size in shape:
            _integer(size, f"{at}: shape", 0, COUNT_LIMIT)
        # Zeros left out: NumPy multiplies what is left, and refuses what overflows.
        _integer(math.prod(size for size in shape if size), f"{at}: elements", 1, COUNT_LIMIT)
        _require(
            type(tensor["dtype"]) is str and tensor["dtype"] in DTYPES, f"{at}: dtype", tensor["dtype"], "one"
        )
        codec = tensor["codec"]
        _require(codec is None or type(codec) is str, f"{at}: codec", codec, "a name or null")
        _integer(tensor["escapes"], f"{at}: escapes", 0, 0 if codec is None else PART_LIMIT_WORDS)
    _unique(names, f"{where}: tensors")
    if value["tree"] is not None:
        leaves: list[str] = []
        _check_tree(value["tree"], f"{where}: tree", leaves, TREE_DEPTH)
        _unique(leaves, f"{where}: tree")
        _require(set(leaves) == set(names), f"{where}: tree", leaves, "the names of its tensors")


def _check_tree(tree: Any, where: str, leaves: list[str], depth: int) -> None:
    """`format/tree.py` says what a tree is; its leaves are appended to `leaves`."""
    if type(tree) is str:
        leaves.append(tree)
        return
    _require(type(tree) is dict and len(tree) == 1, where, tree, "a tensor name, dict, list, tuple or none")
    _require(depth > 0, where, "a deeper tree", f"at most {TREE_DEPTH} deep")
    ((kind, items),) = tree.items()
    if kind == "dict" and type(items) is dict:
        items = items.values()
    elif not (kind in ("list", "tuple") and type(items) is list):
        _require(kind == "none" and items is None, where, tree, "a tensor name, dict, list, tuple or none")
        items = ()
    for item in items:
        _check_tree(item, where, leaves, depth - 1)


def _check_record(value: Any, where: str) -> None:
    _members(value, where, "name signature parts stats")
    _text(value["name"], f"{where}: name")
    _integer(value["signature"], f"{where}: signature", 0, COUNT_LIMIT)
    for i, part in enumerate(_list(value["parts"], f"{where}: parts")):
        at = f"{where}: part {i}"
        _members(part, at, "path length_bytes buffer_bytes chunk_bytes digests")
        check_path(part["path"])
        for name in ("length_bytes", "buffer_bytes", "chunk_bytes"):
            _integer(part[name], f"{at}: {name}", 1, PART_LIMIT_BYTES)
        for digest in _list(part["digests"], f"{at}: digests"):
            _check_digest(digest, f"{at}: a digest")
    _require(type(value["stats"]) is dict, f"{where}: stats", value["stats"], "an object")
    for name, stats in value["stats"].items():
        at = f"{where}: stats of {name!r}"
        _members(stats, at, "elements nonzero escapes stored_bytes")
        for count in stats.values():
            _integer(count, at, 0, COUNT_LIMIT)


def _check_digest(value: Any, where: str) -> None:
    good = type(value) is str and re.fullmatch(r"[0-9a-f]{16}", value) is not None
    _require(good, where, value, "16 hexadecimal digits")


def _members(value: Any, where: str, names: str) -> None:
    _require(type(value) is dict, where, value, "an object")
    _require(set(value) == set(names.split()), where, sorted(value), f"the members {names}")


def _list(value: Any, where: str) -> list[Any]:
    _require(type(value) is list, where, value, "an array")
    return value


def _text(value: Any, where: str) -> str:
    _require(type(value) is str and value != "", where, value, "a name")
    return value


def _integer(value: Any, where: str, least: int, most: int) -> None:
    """`type is int`: a boolean is an int to isinstance."""
    _require(
        type(value) is int and least <= value <= most, where, value, f"an integer from {least} to {most}"
    )


def _unique(names: Iterable[str], where: str) -> None:
    names = list(names)
    _require(len(set(names)) == len(names), where, names, "each name once")


def _require(good: bool, where: str, got: Any, expected: str) -> None:
    if not good:
        raise ValueError(f"{where} is {reprlib.repr(got)}, not {expected}")
