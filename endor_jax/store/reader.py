"""Reading a checkpoint: parts are read into the caller's buffers and checked, wherever they are."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from endor_jax.errors import InvalidInputError, OptionError, StreamError
from endor_jax.format.decode import decode
from endor_jax.format.record import Record
from endor_jax.location import Location, ObjectPath, locate
from endor_jax.store.direct import ReadAt
from endor_jax.store.local_parts import LocalParts
from endor_jax.store.manifest import Manifest, Part, StoredRecord, read_manifest
from endor_jax.store.mapping import MappedPart
from endor_jax.store.reader_choice import Choice
from endor_jax.store.remote.cache import PartCache
from endor_jax.store.remote.manifest import fetch_manifest
from endor_jax.store.remote.objects import Objects
from endor_jax.store.remote.parts import RemoteParts


class Checkpoint:
    """An open checkpoint. Its methods may be called from several threads.

    path: where it is. manifest: what it holds. bytes_read: bytes of parts read so far, counted as they are
    read, by whomever: a stream that reads ahead is ahead here too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        reader: str | None = None,
        cache: PartCache | None = None,
    ):
        """Opens a checkpoint: checks its manifest, and that the file of every part is there and has its
        length, so that no memory is set aside for what cannot be read.

        path: of a directory, or the URL of a place in an object store (s3://bucket/prefix, gs://...). reader:
        "preadv", "direct", "mmap" or "tensorstore"; by default the best of those that are safe, which is
        measured once per disk, when a part is first read (`reader_choice`). cache: of an object store, where
        its parts are kept on a local disk.
        Raises NotFoundError, IncompleteCheckpointError, CorruptCheckpointError, UnsupportedError (another
        format version; a reader that the place refuses), OptionError for a reader there is not or a cache of
        local files or that is none, StorageError for a store that cannot be reached.
        """
        if cache is not None and not isinstance(cache, PartCache):
            raise OptionError(
                "cache", got=repr(cache), expected="a PartCache", fix="write cache=PartCache(...)"
            )
        self.path: Location = locate(path)
        self.bytes_read = 0
        self._lock = threading.Lock()
        self._closed = False
        self._choice: Choice | None = None
        self._choosing = threading.Lock()
        self.manifest: Manifest
        self._parts: LocalParts | RemoteParts
        if isinstance(self.path, ObjectPath):
            objects = Objects(self.path)
            self.manifest = fetch_manifest(objects)
            self._parts = RemoteParts(
                objects, self.manifest, reader=reader, cache=cache or PartCache(), count=self._count
            )
        elif cache is not None:
            raise OptionError(
                f"checkpoint {path}",
                got="a cache for local files",
                expected="one for an object store only",
                fix="leave it out",
            )
        else:
            self.manifest = read_manifest(self.path)
            self._parts = LocalParts(self.path, self.manifest, reader=reader, count=self._count)

    def _count(self, count: int) -> None:
        with self._lock:
            self.bytes_read += count

    @property
    def bytes_fetched(self) -> int:
        """Bytes that came over the network so far, from an object store; 0 of a local checkpoint."""
        return self._parts.bytes_fetched

    @property
    def fetch_bytes(self) -> int:
        """Most memory that answers of an object store take while they are under way."""
        return self._parts.fetch_bytes

    @property
    def reader_choice(self) -> Choice:
        """How parts are read, and why. Chosen when first asked for, also by `read_part`: to look at a
        checkpoint costs no measurement. Raises what reading raises."""
        with self._choosing:
            if self._choice is None:
                self._choice = self._parts.choose()
            return self._choice

    @property
    def reader(self) -> str:
        """The name of how parts are read: that of `reader_choice`."""
        return self.reader_choice.reader

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

        The first time, and when its file has changed since, its digests are compared; what comes over a
        network, each time. Raises IncompleteCheckpointError or CorruptCheckpointError naming the file,
        StorageError for a store that cannot be reached, StreamError after `close`; the buffer's contents are
        then undefined.
        """
        self._check_open()
        self._parts.read_part(part, into[: part.length_bytes], reader=self.reader)

    def map_part(self, part: Part) -> MappedPart:
        """The part's file in memory, as long as its buffers are (`part.buffer_bytes`).

        Nothing is read before `fetch_mapped`. Raises as `read_part` does, and
        UnsupportedError elsewhere than on Linux, and for an object store.
        """
        return self._parts.map_part(part)

    def fetch_mapped(self, part: Part, mapped: MappedPart) -> None:
        """Brings a mapped part into memory; its digests are compared as `read_part` does.

        Raises as that does.
        """
        self._check_open()
        self._parts.fetch_mapped(part, mapped)

    @contextmanager
    def open_part(self, part: Part) -> Iterator[ReadAt]:
        """A part open for reading pieces of it, with preadv: what is wanted again is in the page cache.

        The first time, and when its file has changed since, it is read as a whole, a chunk at a time, and its
        digests are compared. Raises as `read_part` does.
        """
        self._check_open()
        with self._parts.open_part(part) as read_at:
            yield read_at

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError(
                f"checkpoint {self.path}",
                got="a read after close()",
                expected="an open checkpoint",
                fix="use it inside its with block",
            )

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
        return self._parts.read_file(name)

    def close(self) -> None:
        """Refuses to read from now on. Idempotent."""
        self._closed = True
        self._parts.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
