"""JSON files that hold one object, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from endor_jax.errors import InvalidInputError, NotFoundError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises NotFoundError, or InvalidInputError if it is anything else."""
    if not path.is_file():
        raise NotFoundError(
            str(path),
            got="no such file",
            expected="a JSON file that belongs to every Hugging Face checkpoint",
            fix="copy it from where the weights came from",
        )
    return parse_json_object(path.read_bytes(), where=str(path))


def parse_json_object(data: bytes, *, where: str) -> dict[str, Any]:
    """The object that UTF-8 JSON text spells. Raises InvalidInputError on anything else or repeated keys."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            where, got=f"unreadable JSON ({error})", expected="one JSON object", fix="fetch the file again"
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
        raise ValueError(f"key {repeated!r} occurs twice")
    return result
