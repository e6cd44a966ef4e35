"""A mapped part: the file's own pages, which come and go."""

from __future__ import annotations

import mmap
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import CorruptCheckpointError, IncompleteCheckpointError, UnsupportedError
from endor_jax.memory import resident_bytes
from endor_jax.store.mapping import MappedPart
from endor_jax.store.part import write_part
from endor_jax.store.reader import Checkpoint

LENGTH = 20_000_003
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parts are mapped on Linux only")


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return np.frombuffer(np.random.default_rng(0).bytes(LENGTH), np.uint8)


@pytest.fixture(scope="module")
def directory(data: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mapped") / "part"
    write_part(path, data)
    return path


def test_it_is_the_file_with_room_behind_it(directory: Path, data: np.ndarray) -> None:
    size = LENGTH + 10_000_000
    part = MappedPart(directory, length_bytes=LENGTH, size_bytes=size)
    assert part.bytes.shape == (size,)
    assert part.bytes.ctypes.data % mmap.PAGESIZE == 0
    np.testing.assert_array_equal(part.bytes[:LENGTH], data)
    behind = -(-LENGTH // mmap.PAGESIZE) * mmap.PAGESIZE  # the rest of the last page is the file's
    assert not part.bytes[behind:].any()


def test_nobody_writes_to_it(directory: Path) -> None:
    part = MappedPart(directory, length_bytes=LENGTH, size_bytes=LENGTH)
    with pytest.raises(ValueError, match="read-only"):
        part.bytes[0] = 1


def test_pages_come_and_go(directory: Path, data: np.ndarray) -> None:
    part = MappedPart(directory, length_bytes=LENGTH, size_bytes=LENGTH)
    before = resident_bytes()
    for _ in range(3):
        part.fetch()
        assert resident_bytes() - before > 0.9 * LENGTH
        np.testing.assert_array_equal(part.bytes, data)
        part.forget()
        assert resident_bytes() - before < 0.1 * LENGTH
    np.testing.assert_array_equal(part.bytes, data)


def test_elsewhere_than_on_linux_it_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_DONTNEED")
    with pytest.raises(UnsupportedError, match="lacks what that takes, expected Linux; leave reader"):
        MappedPart(directory, length_bytes=LENGTH, size_bytes=LENGTH)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    endor.save(tmp_path / "x", [{"w": np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)}])
    return tmp_path / "x"


def test_the_first_fetch_compares_digests(path: Path) -> None:
    file = path / "parts/layers.0.0/c/0"
    damaged = bytearray(file.read_bytes())
    damaged[77] ^= 1
    file.write_bytes(damaged)
    with Checkpoint(path, reader="mmap") as checkpoint:
        part = checkpoint.manifest.parts[0]
        with pytest.raises(CorruptCheckpointError, match=r"layers\.0\.0"):
            checkpoint.fetch_mapped(part, checkpoint.map_part(part))


def test_a_file_that_is_shorter_is_never_mapped(path: Path) -> None:
    with Checkpoint(path, reader="mmap") as checkpoint:
        part = checkpoint.manifest.parts[0]
        file = path / part.path / "c/0"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(CorruptCheckpointError, match="the file is truncated"):
            checkpoint.map_part(part)
        file.unlink()
        with pytest.raises(IncompleteCheckpointError):
            checkpoint.map_part(part)


def test_a_file_cut_off_after_it_was_mapped_is_no_signal(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "part")
    part = MappedPart(copy, length_bytes=LENGTH, size_bytes=LENGTH)
    os.truncate(copy / "c/0", 4096)
    with pytest.raises(OSError, match="Bad address"):
        part.fetch()
