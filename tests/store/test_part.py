"""A part on disk: contiguous from offset 0, readable by anyone, and no damage goes unseen."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from endor_jax.arrays import round_up
from endor_jax.errors import CorruptCheckpointError, EndorError, NotFoundError
from endor_jax.store.direct import read_part
from endor_jax.store.part import (
    CHUNK_BYTES,
    PAGE_BYTES,
    check_index,
    check_part,
    chunk_bytes_for,
    write_part,
)

MIB = 2**20
SIZES = [1, 64, 4095, 4096, 4097, 16 * MIB - 4, 16 * MIB, 16 * MIB + 4, 40 * MIB + 12]


def random_bytes(count: int, seed: int = 0) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(count), np.uint8)


def read(directory: Path, length: int) -> np.ndarray:
    into = np.full(length, 0xAA, np.uint8)
    check_part(directory, length, chunk_bytes_for(length))
    read_part(directory, into)
    return into


@pytest.mark.parametrize("length", SIZES)
def test_file_holds_the_bytes_from_its_start(tmp_path: Path, length: int) -> None:
    data = random_bytes(length)
    write_part(tmp_path / "part", data)
    with (tmp_path / "part/c/0").open("rb") as file:
        plain = os.pread(file.fileno(), length, 0)
    assert plain == data.tobytes()
    assert np.array_equal(read(tmp_path / "part", length), data)


@pytest.mark.parametrize("length", [*SIZES, 512 * MIB - 4])
def test_chunks_are_whole_pages_of_about_one_size(length: int) -> None:
    chunk = chunk_bytes_for(length)
    chunks = -(-length // chunk)
    assert chunk % PAGE_BYTES == 0
    assert chunk <= CHUNK_BYTES
    assert round_up(length, chunk) - length < chunks * PAGE_BYTES


def test_chunks_of_zeros_are_stored_too(tmp_path: Path) -> None:
    data = np.zeros(33 * MIB, np.uint8)
    data[-1] = 1  # the last chunk is not all zeros, the first ones are
    write_part(tmp_path / "part", data)
    assert (tmp_path / "part/c/0").stat().st_size > data.shape[0]
    assert np.array_equal(read(tmp_path / "part", data.shape[0]), data)


def test_path_may_hold_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    directory = Path("here/../a model, 50 % ü?#x.endor")
    write_part(directory, random_bytes(100))
    assert np.array_equal(read(directory, 100), random_bytes(100))


@pytest.mark.parametrize("name", ["zarr.json", "c/0"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    (tmp_path / "part" / name).unlink()
    with pytest.raises(NotFoundError, match=rf"part .*part: got no file {name}, expected zarr.json and c/0"):
        read(tmp_path / "part", 5000)


@pytest.mark.parametrize("position", [*range(8192, 8212)])
def test_damaged_index_changes_nothing(tmp_path: Path, position: int) -> None:
    """The index of the shard is for other readers of zarr: ours know where the bytes are."""
    write_part(tmp_path / "part", random_bytes(5000))
    check_index(tmp_path / "part", 5000, 8192)
    flip(tmp_path / "part/c/0", position)
    with pytest.raises(
        CorruptCheckpointError, match=r"got .*expected (an index that TensorStore|every chunk)"
    ):
        check_index(tmp_path / "part", 5000, 8192)
    assert np.array_equal(read(tmp_path / "part", 5000), random_bytes(5000))


def test_tensorstore_reads_what_we_read(tmp_path: Path) -> None:
    write_part(tmp_path / "part", random_bytes(40 * MIB + 12))
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/part/"}}
    assert np.array_equal(ts.open(spec).result().read().result(), read(tmp_path / "part", 40 * MIB + 12))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[1]"])
def test_damaged_metadata(tmp_path: Path, text: bytes) -> None:
    write_part(tmp_path / "part", random_bytes(100))
    (tmp_path / "part/zarr.json").write_bytes(text)
    with pytest.raises(CorruptCheckpointError, match=r"part .*part: got .*a readable zarr3 array"):
        read(tmp_path / "part", 100)


def test_metadata_of_another_part(tmp_path: Path) -> None:
    write_part(tmp_path / "part", random_bytes(100))
    write_part(tmp_path / "other", random_bytes(104))
    shutil.copy(tmp_path / "other/zarr.json", tmp_path / "part/zarr.json")
    with pytest.raises(CorruptCheckpointError, match=r"got an array of uint8 \(104,\).*as the manifest says"):
        read(tmp_path / "part", 100)


def test_part_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    write_part(tmp_path / "part", random_bytes(100))
    with pytest.raises(
        EndorError, match=r"part .*part: got .*expected to write 200 bytes; see whether the disk"
    ):
        write_part(tmp_path / "part", random_bytes(200))
    assert np.array_equal(read(tmp_path / "part", 100), random_bytes(100))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_refused_write_says_so(tmp_path: Path) -> None:
    with (
        largest_file(8192),
        pytest.raises(EndorError, match=r"expected to write 100,000 bytes; see whether the disk is full"),
    ):
        write_part(tmp_path / "part", random_bytes(100_000))
    assert not (tmp_path / "part/c/0").exists()
