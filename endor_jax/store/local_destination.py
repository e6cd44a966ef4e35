"""A local directory that a checkpoint is written to: what `CheckpointWriter` asks of a place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from endor_jax.store.destination import check_destination, known_entries
from endor_jax.store.digest import digest_bytes
from endor_jax.store.direct import read_part
from endor_jax.store.files import sync_directory
from endor_jax.store.finished import FinishedPart, is_sound, rest_of
from endor_jax.store.journal import Journal
from endor_jax.store.manifest import (
    JOURNAL_FILE,
    MANIFEST_FILE,
    PARTS,
    Manifest,
    Part,
    write_manifest,
)
from endor_jax.store.part import METADATA_FILE, write_part


class LocalDestination:
    """A directory. Every method raises OSError for what the file system refuses."""

    def __init__(self, path: Path):
        self.path = path
        self._made = False

    def check(self, *, resume: bool, header: Mapping[str, Any] | None = None, locked: bool = False) -> None:
        """As `check_destination`."""
        check_destination(self.path, resume=resume, header=header, locked=locked)

    def open(self) -> Journal:
        """Makes the directory, if it is not there, and opens and locks its journal. Raises as `Journal`."""
        self._made = not self.path.exists()
        _make_directory(self.path)
        return Journal(self.path)

    def prepare(self) -> None:
        """Makes room for parts."""
        (self.path / PARTS).mkdir(exist_ok=True)
        sync_directory(self.path)  # even if it is there: whoever made it may have been killed before this

    def has_manifest(self) -> bool:
        """Whether a manifest is there."""
        return (self.path / MANIFEST_FILE).exists()

    def clear(self, header: Mapping[str, Any] | None, *, keep: Collection[str]) -> None:
        """Removes what a writer with this header may have left half done, but parts to keep."""
        for name in known_entries(self.path, header):
            if name not in keep and name not in (JOURNAL_FILE, MANIFEST_FILE):
                self.remove(name)

    def remove(self, name: str) -> None:
        """Removes a file, or a directory with all that is in it."""
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def write_part(self, part: Part, data: np.ndarray) -> tuple[str, str]:
        """Writes the bytes of a part, durably; digests of its metadata, and of what follows its bytes."""
        write_part(self.path / part.path, data)
        metadata = digest_bytes((self.path / part.path / METADATA_FILE).read_bytes())
        return metadata, rest_of(self.path, part)

    def is_sound(self, finished: FinishedPart) -> bool:
        """As `is_sound` of `finished`."""
        return is_sound(self.path, finished)

    def read_part(self, part: Part, into: np.ndarray) -> None:
        """Reads a part back. Raises as `read_part` of `direct`."""
        read_part(self.path / part.path, into, reader="preadv")

    def write_file(self, name: str, data: bytes) -> None:
        """Writes one of the other files, durably."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def write_manifest(self, manifest: Manifest) -> None:
        """As `write_manifest` of `manifest`."""
        write_manifest(self.path, manifest)

    def abandon(self) -> None:
        """Removes directories that were made for nothing."""
        with suppress(OSError):
            (self.path / PARTS).rmdir()

    def leave(self) -> None:
        """After the journal: removes the directory if it was made here, and nothing is in it."""
        if self._made:
            self.path.rmdir()


def _make_directory(path: Path) -> None:
    """Makes a directory and those above it that are not there, durably."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in made:
        sync_directory(each.parent)
