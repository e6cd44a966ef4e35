"""Syncing directories, where the file system can and where it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import endor_jax as endor
from endor_jax.errors import StorageError
from endor_jax.sources.partial_files import partial_files
from endor_jax.store.files import sync_directory


def refuse_directories(patch: pytest.MonkeyPatch, number: int) -> None:
    sync = os.fsync

    def refusing(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        sync(handle)

    patch.setattr(os, "fsync", refusing)


def write_everything(path: Path) -> None:
    endor.save(path / "x", [{"w": [1.0, 2.0]}])
    with partial_files(path / "y", {path / "y/z": 1}) as files:
        files[path / "y/z"].write(b"z")


def test_a_file_system_that_cannot_sync_directories_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_directories(monkeypatch, errno.EINVAL)
    write_everything(tmp_path)
    assert (tmp_path / "x/endor.json").exists()
    assert (tmp_path / "y/z").read_bytes() == b"z"


def test_any_other_refusal_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = len(os.listdir("/proc/self/fd"))
    refuse_directories(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        sync_directory(tmp_path)
    with pytest.raises(StorageError, match=r"got Input/output error, expected to write"):
        endor.save(tmp_path / "x", [{"w": [1.0, 2.0]}])
    with pytest.raises(StorageError, match=r"got Input/output error"), partial_files(tmp_path / "y", {}):
        pass
    assert len(os.listdir("/proc/self/fd")) <= handles
