"""Reading a checkpoint: an open directory whose parts are read into the caller's buffers and checked."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from endor_jax.errors import InvalidInputError, StreamError
from endor_jax.format.decode import decode
from endor_jax.format.record import Record
from endor_jax.store.damage import check_digests, check_file
from endor_jax.store.digest import digest_bytes, digest_chunks
from endor_jax.store.direct import ReadAt, check_length, check_reader, open_part, read_part
from endor_jax.store.files import inside, read_bytes
from endor_jax.store.manifest import Manifest, Part, StoredRecord, read_manifest
from endor_jax.store.mapping import MappedPart
from endor_jax.store.part import DATA_FILE, METADATA_FILE, check_part
from endor_jax.store.reader_choice import Choice, choose_reader

FileState: TypeAlias = tuple[int, ...]
"""Device, inode, size and time of change."""


class Checkpoint:
    """An open checkpoint. Its methods may be called from several threads.

    manifest: what it holds. bytes_read: bytes of parts read so far, counted as they are read, by whomever: a
    stream that reads ahead is ahead here too.
    """

    def __init__(self, path: str | os.PathLike[str], *, reader: str | None = None):
        """Opens a checkpoint: checks its manifest, and that the file of every part is there and has its
        length, so that no memory is set aside for what cannot be read.

        reader: "preadv", "direct", "mmap" or "tensorstore"; by default the best of those that are safe, which
        is measured once per disk, when a part is first read (`reader_choice`). Raises NotFoundError,
        IncompleteCheckpointError, CorruptCheckpointError, UnsupportedError (another format version; a reader
        that the file system refuses), OptionError for a reader there is not.
        """
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        for part in self.manifest.parts:
            inside(self.path, f"{part.path}/{DATA_FILE}")
            check_length(self.path / part.path, part.length_bytes)
        self._asked_reader = reader
        if reader is not None:
            _check_named(reader, self._parts())
        self._choice: Choice | None = None
        self._choosing = threading.Lock()
        self.bytes_read = 0
        self._lock = threading.Lock()
        self._closed = False
        self._verified: dict[str, FileState] = {}

    @property
    def reader_choice(self) -> Choice:
        """How parts are read, and why. Chosen when first asked for, also by `read_part`: to look at a
        checkpoint costs no measurement. Raises what reading raises."""
        with self._choosing:
            if self._choice is None:
                self._choice = choose_reader(self._parts(), reader=self._asked_reader)
            return self._choice

    @property
    def reader(self) -> str:
        """The name of how parts are read: that of `reader_choice`."""
        return self.reader_choice.reader

    def _parts(self) -> list[tuple[Path, int]]:
        return [(self.path / part.path, part.length_bytes) for part in self.manifest.parts]

    def model_config(self) -> dict[str, Any]:
        """The config of the model. Raises InvalidInputError for parameter trees, which have none."""
        if self.manifest.model is None:
            raise InvalidInputError(
                f"checkpoint {self.path}",
                got="parameter trees without a model",
                expected="a model written by `endor convert`",
                fix="run it with endor.stream, or read its tensors with endor.open",
            )
        return self.manifest.model

    def read_part(self, part: Part, *, into: np.ndarray) -> None:
        """Reads a part to the start of a uint8 buffer of at least `part.length_bytes`.

        The first time, and when its file has changed since, its digests are compared. Raises
        IncompleteCheckpointError or CorruptCheckpointError naming the file, StreamError after `close`; the
        buffer's contents are then undefined.
        """
        directory, data = self.path / part.path, into[: part.length_bytes]
        unverified = self._check_metadata(part)
        read_part(directory, data, reader=self.reader)
        with self._lock:
            self.bytes_read += part.length_bytes
        if unverified is not None:
            self._compare(part, data, unverified)

    def _compare(self, part: Part, data: np.ndarray, state: FileState) -> None:
        check_digests(self.path, self.manifest, part, digest_chunks(data, part.chunk_bytes))
        with self._lock:
            self._verified[part.path] = state

    def map_part(self, part: Part) -> MappedPart:
        """The part's file in memory, as long as its buffers are (`part.buffer_bytes`).

        Nothing is read before `fetch_mapped`. Raises as `read_part` does, and
        UnsupportedError elsewhere than on Linux.
        """
        directory = self.path / part.path
        check_length(directory, part.length_bytes)
        return MappedPart(directory, length_bytes=part.length_bytes, size_bytes=part.buffer_bytes)

    def fetch_mapped(self, part: Part, mapped: MappedPart) -> None:
        """Brings a mapped part into memory; its digests are compared as `read_part` does.

        Raises as that does.
        """
        unverified = self._check_metadata(part)
        mapped.fetch()
        with self._lock:
            self.bytes_read += part.length_bytes
        if unverified is not None:
            self._compare(part, mapped.bytes[: part.length_bytes], unverified)

    @contextmanager
    def open_part(self, part: Part) -> Iterator[ReadAt]:
        """A part open for reading pieces of it, with preadv: what is wanted again is in the page cache.

        The first time, and when its file has changed since, it is read as a whole, a chunk at a time, and its
        digests are compared. Raises as `read_part` does.
        """
        directory = self.path / part.path
        unverified = self._check_metadata(part)
        with open_part(directory, part.length_bytes, reader="preadv") as read:

            def read_at(into: np.ndarray, start: int) -> None:
                read(into, start)
                with self._lock:
                    self.bytes_read += into.shape[0]

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
        check_digests(self.path, self.manifest, part, tuple(digests))
        with self._lock:
            self._verified[part.path] = state

    def _check_metadata(self, part: Part) -> FileState | None:
        """The state of a part's file, if it has not been verified in that; then its metadata are, here."""
        if self._closed:
            raise StreamError(
                f"checkpoint {self.path}",
                got="a read after close()",
                expected="an open checkpoint",
                fix="use it inside its with block",
            )
        state = _file_state(self.path / part.path / DATA_FILE)
        with self._lock:
            if self._verified.get(part.path) == state:
                return None
        self.read_file(f"{part.path}/{METADATA_FILE}")
        check_part(self.path / part.path, part.length_bytes, part.chunk_bytes)
        return state

    def read_record(self, record: StoredRecord) -> Record:
        """A whole record in host memory of its own: uint32 words, exactly as long as the parts."""
        words = []
        for part in record.parts:
            buffer = np.empty(part.length_bytes, np.uint8)
            self.read_part(part, into=buffer)
            words.append(buffer.view(np.uint32))
        return Record(tuple(words), self.manifest.layout(record))

    def read_tensor(self, record: str, tensor: str) -> np.ndarray:
        """One tensor, decoded on the host. Raises KeyError naming what there is."""
        return decode(self.read_record(self.manifest.record(record))[tensor])

    def read_file(self, name: str) -> bytes:
        """One of the other files, checked against its digest.

        Raises IncompleteCheckpointError or CorruptCheckpointError naming the file, KeyError for one that the
        manifest does not list.
        """
        path = inside(self.path, name)
        data = read_bytes(path)
        check_file(path, self.manifest, name, data)
        return data

    def close(self) -> None:
        """Refuses to read from now on. Idempotent."""
        self._closed = True

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _file_state(path: Path) -> FileState:
    """What changes when a file is written to or replaced; nothing of one that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_named(reader: str, parts: list[tuple[Path, int]]) -> None:
    """Raises what the reader that was asked for would raise at its first read."""
    check_reader(reader)
    for directory, length in parts[:1]:
        with open_part(directory, length, reader=reader):
            pass
