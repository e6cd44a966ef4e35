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
from endor_jax.errors import CorruptCheckpointError, IncompleteCheckpointError, StorageError
from endor_jax.location import Location
from endor_jax.store.files import sync_directory
from endor_jax.store.shard import refusal, write_shard

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

    Raises StorageError if the file system refuses, or there is a part already.
    """
    chunk = chunk_bytes_for(data.shape[0])
    spec = _spec(directory) | _new(data.shape[0])
    try:
        ts.open(spec).result()
        write_shard(directory / DATA_FILE, data, chunk)
        sync_directory(directory.parent)  # TensorStore and write_shard sync what is below
    except (OSError, ValueError) as error:  # ValueError is all that TensorStore has
        raise StorageError(
            f"part {directory}",
            got=refusal(error),
            expected=f"to write {data.shape[0]:,} bytes",
            fix="see whether the disk is full or read-only, and that nothing else writes here",
        ) from error


def _new(length: int) -> dict[str, Any]:
    """What TensorStore is told to make: a part of `length` bytes."""
    chunk = chunk_bytes_for(length)
    return {
        "store_data_equal_to_fill_value": True,
        "create": True,
        "metadata": {
            "shape": [length],
            "data_type": "uint8",
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [round_up(length, chunk)]}},
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


def metadata_of(length: int) -> bytes:
    """What `write_part` writes as the metadata of a part of `length` bytes."""
    files, context = _in_memory()
    ts.open({"driver": "zarr3", "kvstore": files.spec()} | _new(length), context=context).result()
    return files.read(METADATA_FILE).result().value


def check_metadata(part: Location, metadata: bytes, length: int, chunk: int) -> None:
    """As `check_part`, of metadata that has been read."""
    files, context = _in_memory()
    files.write(METADATA_FILE, metadata).result()
    try:
        spec = {"driver": "zarr3", "kvstore": files.spec(), "open": True}
        store = ts.open(spec, context=context).result()
    except ValueError as error:
        raise corrupt_part(part, _first_line(error), "a readable zarr3 array") from error
    _check_array(part, store, length, chunk)


def _in_memory() -> tuple[ts.KvStore, ts.Context]:
    """A place for files in memory, of its own."""
    context = ts.Context({"memory_key_value_store": {}})
    return ts.KvStore.open({"driver": "memory"}, context=context).result(), context


def check_part(directory: Path, length: int, chunk: int) -> None:
    """Raises unless the metadata in `directory` is that of a part of `length` bytes in chunks of `chunk`.

    IncompleteCheckpointError or CorruptCheckpointError.
    """
    try:
        store = ts.open(_spec(directory) | {"open": True}).result()
    except ValueError as error:
        # TensorStore reports everything as ValueError: tell a missing file from a damaged one.
        if not (directory / METADATA_FILE).exists():
            raise missing_file(directory, METADATA_FILE) from error
        raise corrupt_part(directory, _first_line(error), "a readable zarr3 array") from error
    _check_array(directory, store, length, chunk)


def _check_array(part: Location, store: ts.TensorStore, length: int, chunk: int) -> None:
    chunks = store.chunk_layout.read_chunk.shape
    if store.shape != (length,) or store.dtype != ts.uint8 or chunks != (chunk,):
        raise corrupt_part(
            part,
            f"an array of {store.dtype.name} {store.shape} in chunks of {chunks}",
            f"uint8 {(length,)} in chunks of {(chunk,)}, as the manifest says",
        )


def check_index(directory: Path, length: int, chunk: int) -> None:
    """Raises CorruptCheckpointError unless the index of the shard is that of chunks in order without a gap,
    and TensorStore, which checks the index's crc32c, can read by it. length, chunk: bytes of the part and of
    an inner chunk, as `check_part` found them."""
    spec = _spec(directory) | {"open": True, "fill_missing_data_reads": False}
    try:
        store = ts.open(spec).result()
        store[:1].read().result()
    except ValueError as error:
        raise corrupt_part(directory, _first_line(error), "an index that TensorStore can read by") from error
    count = -(-length // chunk)
    with (directory / DATA_FILE).open("rb") as file:
        file.seek(round_up(length, chunk))
        index = np.frombuffer(file.read(16 * count), "<u8").reshape(count, 2)
    expected = np.stack([np.arange(count) * chunk, np.full(count, chunk)], axis=1)
    if not np.array_equal(index, expected):
        raise corrupt_part(directory, "an index of chunks elsewhere", "every chunk in order, without a gap")


def read_through_tensorstore(directory: Path, into: np.ndarray, *, start: int) -> None:
    """Bytes `start` and following of a part into a (n,) uint8 buffer, by way of memory of TensorStore's own.

    Raises CorruptCheckpointError for whatever TensorStore refuses.
    """
    try:
        store = ts.open(_spec(directory) | {"open": True, "fill_missing_data_reads": False}).result()
        ts.array(into).write(store[start : start + into.shape[0]].translate_to[0]).result()
    except ValueError as error:
        raise corrupt_part(directory, _first_line(error), "an array that TensorStore can read") from error


def _spec(directory: Path) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory.resolve()}/"},  # ".." is no path to TensorStore
    }


def missing_file(directory: Path, name: str) -> IncompleteCheckpointError:
    """The error for a part of which a file is not there."""
    return IncompleteCheckpointError(
        f"part {directory}",
        got=f"no file {name}",
        expected=f"{METADATA_FILE} and {DATA_FILE}",
        fix="copy the checkpoint again, or convert it again",
    )


def corrupt_part(
    part: Location, got: str, expected: str, fix: str = "copy or convert the checkpoint again"
) -> CorruptCheckpointError:
    """The error for a part whose files are not those that were written."""
    return CorruptCheckpointError(f"part {part}", got=got, expected=expected, fix=fix)


def _first_line(error: ValueError) -> str:
    return str(error).splitlines()[0]
