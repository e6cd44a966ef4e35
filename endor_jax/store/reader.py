"""Reading a checkpoint: an open directory whose parts are read into the caller's buffers and checked."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from endor_jax.errors import (
    CorruptCheckpointError,
    IncompleteCheckpointError,
    InvalidInputError,
    StreamError,
)
from endor_jax.format.decode import decode
from endor_jax.format.record import Record
from endor_jax.store.digest import digest_bytes, digest_chunks
from endor_jax.store.manifest import Manifest, Part, StoredRecord, read_manifest
from endor_jax.store.part import METADATA_FILE, check_part, read_part


class Checkpoint:
    """An open checkpoint. Its methods may be called from several threads.

    manifest: what it holds. bytes_read: bytes of parts read so far, counted as they are read, by whomever: a
    stream that reads ahead is ahead here too.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self.bytes_read = 0
        self._lock = threading.Lock()
        self._closed = False
        self._verified: set[str] = set()

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

        The first time, its digests are compared. Raises IncompleteCheckpointError or CorruptCheckpointError
        naming the file, StreamError after `close`; the buffer's contents are then undefined.
        """
        if self._closed:
            raise StreamError(
                f"checkpoint {self.path}",
                got="a read after close()",
                expected="an open checkpoint",
                fix="use it inside its with block",
            )
        directory, data = self.path / part.path, into[: part.length_bytes]
        with self._lock:
            first = part.path not in self._verified
        if first:
            check_part(directory, part.length_bytes, part.chunk_bytes)
            self.read_file(f"{part.path}/{METADATA_FILE}")
        read_part(directory, data)
        with self._lock:
            self.bytes_read += part.length_bytes
        if first:
            self._verify(part, data)

    def _verify(self, part: Part, data: np.ndarray) -> None:
        digests = digest_chunks(data, part.chunk_bytes)
        for i, (got, expected) in enumerate(zip(digests, part.digests, strict=True)):
            if got != expected:
                raise CorruptCheckpointError(
                    f"part {self.path / part.path}",
                    got=f"digest {got} for bytes {i * part.chunk_bytes:,} and following",
                    expected=expected,
                    fix="the file is damaged; convert the checkpoint again",
                )
        with self._lock:
            self._verified.add(part.path)

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

        Raises IncompleteCheckpointError or CorruptCheckpointError naming the file.
        """
        path = self.path / name
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise IncompleteCheckpointError(
                f"file {path}", got="no such file", expected=f"{name}, which the manifest lists",
                fix="copy the checkpoint again, or convert it again",
            ) from error  # fmt: skip
        if digest_bytes(data) != self.manifest.files.get(name):
            raise CorruptCheckpointError(
                f"file {path}",
                got=f"digest {digest_bytes(data)}",
                expected=str(self.manifest.files.get(name)),
                fix="the file was changed; copy or convert the checkpoint again",
            )
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
