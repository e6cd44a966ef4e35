"""One part as a zarr3 array: how it is laid out in its file, written, and read into a buffer.

A part is a 1-D uint8 array in one shard: `sharding_indexed` with uncompressed inner chunks, the index (with
crc32c) at the end. So its file holds the part's bytes contiguously from offset 0, and TensorStore, preadv,
O_DIRECT and mmap all read the very same file. Plain 16 MiB chunks would pad every part to whole chunks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from endor_jax.arrays import round_up
from endor_jax.errors import CorruptCheckpointError, EndorError, NotFoundError

PAGE_BYTES = 4096
CHUNK_BYTES = 16 * 2**20
"""Upper bound of an inner chunk: the unit of digests and of parallel reads."""
METADATA_FILE = "zarr.json"
DATA_FILE = "c/0"


def chunk_bytes_for(length: int) -> int:
    """Bytes of an inner chunk of a part of `length` bytes: whole pages, at most 16 MiB, all about equal."""
    chunks = max(1, -(-length // CHUNK_BYTES))
    return round_up(max(1, -(-length // chunks)), PAGE_BYTES)


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


def open_part(directory: Path, length: int, chunk: int) -> ts.TensorStore:
    """The part in `directory`, of `length` bytes in inner chunks of `chunk`, ready to be read.

    Raises NotFoundError or CorruptCheckpointError.
    """
    # Without this a missing chunk would read as zeros.
    spec = _spec(directory) | {"fill_missing_data_reads": False, "open": True}
    try:
        store = ts.open(spec).result()
    except ValueError as error:
        raise _read_error(directory, error) from error
    chunks = store.chunk_layout.read_chunk.shape
    if store.shape != (length,) or store.dtype != ts.uint8 or chunks != (chunk,):
        raise _corrupt(
            directory,
            f"an array of {store.dtype.name} {store.shape} in chunks of {chunks}",
            f"uint8 {(length,)} in chunks of {(chunk,)}, as the manifest says",
        )
    return store


def read_part(store: ts.TensorStore, directory: Path, into: np.ndarray) -> None:
    """Reads the whole part into a (n,) uint8 buffer of exactly its length.

    Reading into memory that is used again is three times faster than letting TensorStore allocate. Raises
    NotFoundError or CorruptCheckpointError.
    """
    try:
        ts.array(into).write(store).result()
    except ValueError as error:
        raise _read_error(directory, error) from error


def _spec(directory: Path) -> dict[str, Any]:
    # Memory that no plan knows of: a cache, though every byte is read once a pass; and buffers to read files
    # into before they are copied to ours, which malloc would keep. A mapping is gone after the copy.
    context = {"cache_pool": {"total_bytes_limit": 0}, "file_io_mode": {"mode": "memmap"}}
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory.resolve()}/"},  # ".." is no path to TensorStore
        "context": context,
    }


def _read_error(directory: Path, error: ValueError) -> EndorError:
    """TensorStore reports everything as ValueError; tell a missing file from a damaged one."""
    for name in (METADATA_FILE, DATA_FILE):
        if not (directory / name).exists():
            return NotFoundError(
                f"part {directory}",
                got=f"no file {name}",
                expected=f"{METADATA_FILE} and {DATA_FILE}",
                fix="copy the checkpoint again, or convert it again",
            )
    return _corrupt(directory, _first_line(error), "a readable zarr3 array")


def _corrupt(directory: Path, got: str, expected: str) -> EndorError:
    return CorruptCheckpointError(
        f"part {directory}",
        got=got,
        expected=expected,
        fix="files are damaged, truncated or exchanged; copy or convert the checkpoint again",
    )


def _first_line(error: ValueError) -> str:
    return str(error).splitlines()[0]
