"""The files of a checkpoint in a local directory: parts read by one of the readers of `direct`, or mapped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from endor_jax.store.damage import check_digests, check_file
from endor_jax.store.digest import digest_bytes, digest_chunks
from endor_jax.store.direct import ReadAt, check_length, check_reader, open_part, read_part
from endor_jax.store.files import FileState, file_state, inside, read_bytes
from endor_jax.store.manifest import Manifest, Part
from endor_jax.store.mapping import MappedPart
from endor_jax.store.part import DATA_FILE, METADATA_FILE, check_part
from endor_jax.store.reader_choice import Choice, choose_reader


class LocalParts:
    """The parts and other files of the checkpoint in a directory; `Checkpoint` says what its methods do.

    Digests of a part are compared the first time, and when its file has changed since. count: called with
    bytes of parts as they are read. Raises what opening a checkpoint raises.
    """

    bytes_fetched = 0
    """Nothing comes over a network that we know of."""
    fetch_bytes = 0

    def __init__(self, root: Path, manifest: Manifest, *, reader: str | None, count: Callable[[int], None]):
        self._root, self._manifest, self._count = root, manifest, count
        for part in manifest.parts:
            inside(root, f"{part.path}/{DATA_FILE}")
            check_length(root / part.path, part.length_bytes)
        self._asked_reader = reader
        if reader is not None:
            _check_named(reader, self._places())
        self._lock = threading.Lock()
        self._verified: dict[str, FileState] = {}

    def choose(self) -> Choice:
        """How parts are read. Measures the disk, unless that is remembered."""
        return choose_reader(self._places(), reader=self._asked_reader)

    def _places(self) -> list[tuple[Path, int]]:
        return [(self._root / part.path, part.length_bytes) for part in self._manifest.parts]

    def read_part(self, part: Part, into: np.ndarray, *, reader: str) -> None:
        """Fills a (part.length_bytes,) buffer."""
        unverified = self._check_metadata(part)
        read_part(self._root / part.path, into, reader=reader)
        self._count(part.length_bytes)
        if unverified is not None:
            self._compare(part, into, unverified)

    def _compare(self, part: Part, data: np.ndarray, state: FileState) -> None:
        check_digests(self._root, self._manifest, part, digest_chunks(data, part.chunk_bytes))
        with self._lock:
            self._verified[part.path] = state

    def map_part(self, part: Part) -> MappedPart:
        """The part's file in memory."""
        directory = self._root / part.path
        check_length(directory, part.length_bytes)
        return MappedPart(directory, length_bytes=part.length_bytes, size_bytes=part.buffer_bytes)

    def fetch_mapped(self, part: Part, mapped: MappedPart) -> None:
        """Brings a mapped part into memory."""
        unverified = self._check_metadata(part)
        mapped.fetch()
        self._count(part.length_bytes)
        if unverified is not None:
            self._compare(part, mapped.bytes[: part.length_bytes], unverified)

    @contextmanager
    def open_part(self, part: Part) -> Iterator[ReadAt]:
        """A part open for reading pieces of it."""
        directory = self._root / part.path
        unverified = self._check_metadata(part)
        with open_part(directory, part.length_bytes, reader="preadv") as read:

            def read_at(into: np.ndarray, start: int) -> None:
                read(into, start)
                self._count(into.shape[0])

            if unverified is not None:
                self._compare_in_pieces(part, read_at, unverified)
            yield read_at

    def _compare_in_pieces(self, part: Part, read_at: ReadAt, state: FileState) -> None:
        buffer = np.empty(min(part.chunk_bytes, part.length_bytes), np.uint8)
        digests = []
        for start in range(0, part.length_bytes, part.chunk_bytes):
            piece = buffer[: part.length_bytes - start]
            read_at(piece, start)
            digests.append(digest_bytes(piece))
        check_digests(self._root, self._manifest, part, tuple(digests))
        with self._lock:
            self._verified[part.path] = state

    def _check_metadata(self, part: Part) -> FileState | None:
        """The state of a part's file, if it has not been verified in that; then its metadata are, here."""
        state = file_state(self._root / part.path / DATA_FILE)
        with self._lock:
            if self._verified.get(part.path) == state:
                return None
        self.read_file(f"{part.path}/{METADATA_FILE}")
        check_part(self._root / part.path, part.length_bytes, part.chunk_bytes)
        return state

    def read_file(self, name: str) -> bytes:
        """One of the other files, checked against its digest."""
        path = inside(self._root, name)
        data = read_bytes(path)
        check_file(path, self._manifest, name, data)
        return data

    def close(self) -> None:
        """Nothing is held between reads."""


def _check_named(reader: str, parts: list[tuple[Path, int]]) -> None:
    """Raises what the reader that was asked for would raise at its first read."""
    check_reader(reader)
    for directory, length in parts[:1]:
        with open_part(directory, length, reader=reader):
            pass
