"""A part that changes while its checkpoint is open: what is read next is checked again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import CorruptCheckpointError
from endor_jax.store.part import DATA_FILE
from endor_jax.store.reader import Checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    layers = ({"w": random.normal(size=(64, 128)).astype(np.float32)} for _ in range(2))
    endor.save(tmp_path / "x.endor", layers)
    return tmp_path / "x.endor"


def read(checkpoint: Checkpoint) -> bytes:
    part = checkpoint.manifest.parts[0]
    buffer = np.zeros(part.length_bytes, np.uint8)
    checkpoint.read_part(part, into=buffer)
    return buffer.tobytes()


def rewritten(path: Path, other: Path) -> None:
    """Other bytes in the very file."""
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    with path.open("r+b") as file:
        file.write(content)


def replaced(path: Path, other: Path) -> None:
    """Another part of the same size in its place."""
    shutil.copy(other, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize("change", [rewritten, replaced])
def test_what_was_read_once_is_checked_again_when_its_file_has_changed(path: Path, change) -> None:
    with endor.open(path, reader="preadv") as checkpoint:
        first = read(checkpoint)
        assert read(checkpoint) == first
        mine, other = (path / part.path / DATA_FILE for part in checkpoint.manifest.parts)
        whole = mine.read_bytes()
        change(mine, other)
        for _ in range(2):
            with pytest.raises(CorruptCheckpointError, match=r"parts/layers\.0\.0"):
                read(checkpoint)
        mine.write_bytes(whole)
        assert read(checkpoint) == first


def test_what_has_not_changed_is_checked_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from endor_jax.store import local_parts

    checked: list[object] = []
    compare = local_parts.check_digests
    monkeypatch.setattr(local_parts, "check_digests", lambda *given: checked.append(given) or compare(*given))
    with endor.open(path, reader="preadv") as checkpoint:
        for _ in range(3):
            read(checkpoint)
    assert len(checked) == 1
