"""The files that `verify` looks at: those of a directory, or objects, of which it copies a part at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from endor_jax.location import Location, ObjectPath
from endor_jax.store.files import inside, read_bytes
from endor_jax.store.manifest import Manifest, Part, read_manifest
from endor_jax.store.part import DATA_FILE, METADATA_FILE, file_bytes
from endor_jax.store.remote.manifest import fetch_manifest
from endor_jax.store.remote.objects import Objects


class LocalFiles:
    """The files of a directory."""

    def __init__(self, root: Path):
        self._root = root

    def manifest(self) -> Manifest:
        """As `read_manifest`."""
        return read_manifest(self._root)

    def read(self, name: str) -> tuple[Location, bytes]:
        """A file and its bytes. Raises IncompleteCheckpointError, CorruptCheckpointError, OSError."""
        path = inside(self._root, name)
        return path, read_bytes(path)

    @contextmanager
    def local(self, part: Part) -> Iterator[Path]:
        """The directory below which the files of a part are."""
        yield self._root

    def names(self) -> Iterator[str]:
        """Names of all files, in order."""
        for directory, _, names in sorted(os.walk(self._root)):
            for name in sorted(names):
                yield (Path(directory) / name).relative_to(self._root).as_posix()


class ObjectFiles:
    """The objects below a prefix. All methods raise StorageError for a store that refuses or is gone."""

    def __init__(self, root: ObjectPath):
        self._objects = Objects(root)

    def manifest(self) -> Manifest:
        """As `fetch_manifest`."""
        return fetch_manifest(self._objects)

    def read(self, name: str) -> tuple[Location, bytes]:
        """An object and its bytes. Raises IncompleteCheckpointError."""
        return self._objects.root / name, self._objects.read(name)

    @contextmanager
    def local(self, part: Part) -> Iterator[Path]:
        """A temporary directory with copies of a part's objects, one part in memory at a time.

        Raises IncompleteCheckpointError, CorruptCheckpointError for an object of another length.
        """
        with tempfile.TemporaryDirectory(prefix="endor-verify-") as temporary:
            directory = Path(temporary) / part.path
            (directory / DATA_FILE).parent.mkdir(parents=True)
            metadata = self._objects.get(f"{part.path}/{METADATA_FILE}")
            if metadata is not None:
                (directory / METADATA_FILE).write_bytes(metadata.data)
            data = np.empty(file_bytes(part.length_bytes), np.uint8)
            name = f"{part.path}/{DATA_FILE}"
            self._objects.check_lengths({name: data.shape[0]})
            self._objects.read_into(name, data)
            data.tofile(directory / DATA_FILE)
            yield Path(temporary)

    def names(self) -> Iterator[str]:
        """Names of all objects, in order."""
        yield from self._objects.names()
