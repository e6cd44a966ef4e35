"""The data file of a part, written with plain writes: byte for byte what TensorStore would write.

A zarr3 shard with its index at the end (zarr specification v3, codec `sharding_indexed`): inner chunks in
order, the last one padded with zeros; for each chunk where it starts and how long it is, as two uint64; the
crc32c of that index. TensorStore copies every chunk first, in memory that its threads' malloc keeps, so that
no bound could be told for a conversion; and it has no error class for a full disk.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.store.files import sync_directory

_CASTAGNOLI = 0x82F63B78
"""The polynomial of crc32c, bits reversed (RFC 3720, appendix B.4)."""


def write_shard(path: Path, data: np.ndarray, chunk_bytes: int) -> None:
    """Writes a (n,) uint8 array as a shard of chunks of `chunk_bytes`, durably; it appears by rename.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb", buffering=0) as file:
        write_all(file.fileno(), data.data)
        write_all(file.fileno(), rest_of_shard(data.shape[0], chunk_bytes))
        os.fsync(file.fileno())
    temporary.rename(path)
    for directory in (path.parent, path.parent.parent):  # the rename, and the directory it happened in
        sync_directory(directory)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Writes to an open file, from where it is on. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]  # Linux takes at most 2 GiB at once


def rest_of_shard(length: int, chunk_bytes: int) -> bytes:
    """What follows the `length` bytes of a part in its data file: padding, the index, its crc32c."""
    padded = round_up(length, chunk_bytes)
    starts = np.arange(0, padded, chunk_bytes)
    index = np.stack([starts, np.full_like(starts, chunk_bytes)], axis=1).astype("<u8").tobytes()
    return bytes(padded - length) + index + crc32c(index).to_bytes(4, "little")


def refusal(error: OSError | ValueError) -> str:
    """What the file system said, in its own words; TensorStore has only a text with a number for it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else str(error).splitlines()[0]


def crc32c(data: bytes) -> int:
    """The crc32c of a few bytes, bit by bit: an index has 16 for every chunk of up to 16 MiB."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
