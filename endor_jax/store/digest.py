"""Digests of stored bytes: xxh3, which runs faster than any disk (31 GiB/s on one core)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash


def digest_bytes(data: bytes | np.ndarray) -> str:
    """The 64-bit xxh3 of some bytes, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(data.data if isinstance(data, np.ndarray) else data)


def digest_chunks(data: np.ndarray, chunk_bytes: int) -> tuple[str, ...]:
    """One digest per chunk of a (n,) uint8 array; together they cover every byte."""
    return tuple(digest_bytes(data[i : i + chunk_bytes]) for i in range(0, data.shape[0], chunk_bytes))


def digest_json(value: Mapping[str, Any]) -> str:
    """The digest of a JSON object, whatever its formatting: keys sorted, no spaces."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
