"""JSON files that hold one object, read strictly: what Rust's serde_json refuses is refused here too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from endor_jax.errors import InvalidInputError
from endor_jax.sources.brief import brief, brief_text
from endor_jax.sources.byte_range import read_file
from endor_jax.sources.lfs_pointer import refuse_pointer

MAXIMUM_BYTES = 100_000_000
"""The safetensors format's own limit for a header; the index of a model of 100,000 tensors has 10 MB."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises NotFoundError, or InvalidInputError if it is anything else."""
    refuse_pointer(path)
    return parse_json_object(read_file(path, limit=MAXIMUM_BYTES), where=str(path))


def parse_json_object(data: bytes, *, where: str) -> dict[str, Any]:
    """The object that UTF-8 JSON text spells.

    Raises InvalidInputError on anything else: repeated keys, NaN and Infinity, half of a surrogate pair (no
    UTF-8 has one, so such a string could not be written again), nesting without end.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_int=_integer,
        )
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            where,
            got=f"unreadable JSON ({brief_text(error)})",
            expected="one JSON object",
            fix="fetch the file again",
        ) from error
    if not isinstance(value, dict):
        raise InvalidInputError(
            where, got=f"a JSON {type(value).__name__}", expected="a JSON object", fix="fetch the file again"
        )
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {brief(repeated)} occurs twice")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | float:
    # "-0" is no integer: -0.0 is what it means, and where a size is expected it is as wrong as 2.0.
    return -0.0 if text == "-0" else int(text)
