"""One part as a zarr3 array: how it is laid out in its file, written, and read into a buffer.

A part is a 1-D uint8 array in one shard: `sharding_indexed` with uncompressed inner chunks, the index (with
crc32c) at the end. So its file holds the part's bytes contiguously from offset 0, and TensorStore, preadv,
O_DIRECT and mmap all read the very same file. Plain 16 MiB chunks would pad every part to whole chunks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from endor_jax.arrays import round_up
from endor_jax.errors import CorruptCheckpointError, EndorError, IncompleteCheckpointError

PAGE_BYTES = 4096
CHUNK_BYTES = 16 * 2**20
"""Upper bound of an inner chunk: the unit of digests and of parallel reads."""
METADATA_FILE = "zarr.json"
DATA_FILE = "c/0"


def chunk_bytes_for(length: int) -> int:
    """Bytes of an inner chunk of a part of `length` bytes: whole pages, at most 16 MiB, all about equal."""
    chunks = max(1, -(-length // CHUNK_BYTES))
    return round_up(max(1, -(-length // chunks)), PAGE_BYTES)


def file_bytes(length: int) -> int:
    """Bytes of a data file for `length` bytes: whole chunks, 16 bytes of index for each, a crc32c."""
    chunk = chunk_bytes_for(length)
    shard = round_up(max(1, length), chunk)
    return shard + 16 * (shard // chunk) + 4


def write_part(directory: Path, data: np.ndarray) -> None:
    """Writes a (n,) uint8 array as the part in `directory`, durably; its file appears by rename.

    Raises EndorError if the file system refuses, or there is a part already.
    """
    chunk = chunk_bytes_for(data.shape[0])
    shard = round_up(data.shape[0], chunk)
    spec = _spec(directory) | {
        "store_data_equal_to_fill_value": True,
        "create": True,
        "metadata": {
            "shape": [data.shape[0]],
            "data_type": "uint8",
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [chunk],
                        "codecs": [{"name": "bytes"}],
                        "index_codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            {"name": "crc32c"},
                        ],
                        "index_location": "end",
                    },
                }
            ],
        },
    }
    try:
        ts.open(spec).result().write(data).result()
    except ValueError as error:  # TensorStore has no other class, for a full disk neither
        raise EndorError(
            f"part {directory}",
            got=_first_line(error),
            expected=f"to write {data.shape[0]:,} bytes",
            fix="see whether the disk is full or read-only, and that nothing else writes here",
        ) from error


def check_part(directory: Path, length: int, chunk: int) -> None:
    """Raises unless the metadata in `directory` is that of a part of `length` bytes in chunks of `chunk`.

    IncompleteCheckpointError or CorruptCheckpointError.
    """
    try:
        store = ts.open(_spec(directory) | {"open": True}).result()
    except ValueError as error:
        # TensorStore reports everything as ValueError: tell a missing file from a damaged one.
        if not (directory / METADATA_FILE).exists():
            raise _missing(directory, METADATA_FILE) from error
        raise _corrupt(directory, _first_line(error), "a readable zarr3 array") from error
    chunks = store.chunk_layout.read_chunk.shape
    if store.shape != (length,) or store.dtype != ts.uint8 or chunks != (chunk,):
        raise _corrupt(
            directory,
            f"an array of {store.dtype.name} {store.shape} in chunks of {chunks}",
            f"uint8 {(length,)} in chunks of {(chunk,)}, as the manifest says",
        )


def read_part(directory: Path, into: np.ndarray) -> None:
    """Reads the whole part into a (n,) uint8 buffer of exactly its length.

    With preadv, because the file holds the part's bytes from offset 0: TensorStore reads into memory of its
    own first, which malloc keeps, or maps the file, and then a disk that fails kills the process.
    Raises IncompleteCheckpointError, CorruptCheckpointError for a file of another length, OSError for a disk
    that fails.
    """
    try:
        handle = os.open(directory / DATA_FILE, os.O_RDONLY)
    except FileNotFoundError as error:
        raise _missing(directory, DATA_FILE) from error
    try:
        size, expected = os.fstat(handle).st_size, file_bytes(into.shape[0])
        if size != expected:
            raise _corrupt(directory, f"{size:,} bytes in {DATA_FILE}", f"{expected:,}")
        done = 0
        while done < into.shape[0]:
            count = os.preadv(handle, [into.data[done:]], done)
            if count == 0:  # cut off while it was read
                raise _corrupt(directory, f"{done:,} bytes in {DATA_FILE}", f"{into.shape[0]:,} and more")
            done += count
    finally:
        os.close(handle)


def _spec(directory: Path) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory.resolve()}/"},  # ".." is no path to TensorStore
    }


def _missing(directory: Path, name: str) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        f"part {directory}",
        got=f"no file {name}",
        expected=f"{METADATA_FILE} and {DATA_FILE}",
        fix="copy the checkpoint again, or convert it again",
    )


def _corrupt(directory: Path, got: str, expected: str) -> EndorError:
    return CorruptCheckpointError(
        f"part {directory}",
        got=got,
        expected=expected,
        fix="files are damaged, truncated or exchanged; copy or convert the checkpoint again",
    )


def _first_line(error: ValueError) -> str:
    return str(error).splitlines()[0]
