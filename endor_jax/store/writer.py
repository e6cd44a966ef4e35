"""Writing a checkpoint: records as they come, the manifest last; what was interrupted can be gone on with.

Every part is noted in the journal (`journal.py`) once it is on disk. A writer with the same job finds them
there, checks them against their digests and writes only the others, so that the checkpoint is byte for byte
that of an uninterrupted run. Until the manifest is there the directory is no checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.format.encode import Encodable, counts_of, encode_part, with_escapes
from endor_jax.format.layout import RecordLayout
from endor_jax.format.record import Record
from endor_jax.format.tree import Shape
from endor_jax.location import Location, ObjectPath, locate
from endor_jax.store.destination import check_job, refusals
from endor_jax.store.digest import digest_bytes, digest_chunks
from endor_jax.store.finished import FinishedPart, from_entry, to_entry
from endor_jax.store.journal import JOURNAL_VERSION
from endor_jax.store.local_destination import LocalDestination
from endor_jax.store.manifest import (
    MANIFEST_FILE,
    PARTS,
    Manifest,
    Part,
    Signature,
    StoredRecord,
    size_classes,
)
from endor_jax.store.part import METADATA_FILE, PAGE_BYTES, chunk_bytes_for, file_bytes
from endor_jax.store.remote.destination import ObjectDestination

MANIFEST_BYTES_PER_PART = 4096
"""What manifest and journal say about a part, about."""


class CheckpointWriter:
    """A place that becomes a checkpoint when `finish` is called, and is none before.

    path: of a directory, or the URL of a place in an object store.

    Holds one part besides the arrays it is given. job: JSON that says what is made from what and how; its
    "files" are the names of files that will be kept beside the parts. resume: go on with what a writer of the
    same job has left. It is locked until `finish` or `close`.

    Raises DestinationExistsError if something else is there, or leftovers that may not be gone on with;
    ResumeError if they are those of another job; DestinationBusyError if another process is writing there;
    StorageError, in every method, if the file system refuses.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, job: Mapping[str, Any] | None = None, resume: bool = False
    ):
        self.path: Location = locate(path)
        self._place: LocalDestination | ObjectDestination = (
            ObjectDestination(self.path) if isinstance(self.path, ObjectPath) else LocalDestination(self.path)
        )
        self._resume = resume
        self._written: list[_Written] = []
        self._files: dict[str, str] = {}
        self._finished: dict[str, FinishedPart] = {}
        self._checked: set[str] = set()
        self._begun = False
        with refusals(self.path, "to read what is there", resume=resume):
            self._place.check(resume=resume)
        with self._storage("a directory"):
            self._journal = self._place.open()
        try:
            self._begin({"journal": JOURNAL_VERSION} | dict(job or {}))
        except BaseException:
            self.close()
            raise

    def _begin(self, job: dict[str, Any]) -> None:
        """Takes over what is finished and clears away what is not. Under the lock."""
        header = self._journal.header
        with refusals(self.path, "to read what is there", resume=self._resume):
            self._place.check(resume=self._resume, header=header, locked=True)
            begun = bool(self._journal.entries) or self._place.has_manifest()
        if header is not None and begun:
            check_job(self.path, header, job)
            found = [from_entry(self.path, entry) for entry in self._journal.entries]
            self._finished = {finished.part.path: finished for finished in found}
        with self._storage("the journal"):
            self._place.clear(header, keep=self._finished)
            if not self._finished:  # nothing to lose: whatever was begun here may be begun otherwise
                self._journal.start(job)
            self._place.prepare()
        self._begun = True

    @property
    def finished_parts(self) -> int:
        """How many parts are on disk."""
        return len(self._finished)

    def missing(self, name: str, layout: RecordLayout) -> tuple[int, ...]:
        """The parts of a record that are still to be written; finished ones are checked against their
        digests first, and removed if they do not agree."""
        for index in range(layout.parts):
            path = _part_path(name, index)
            if path in self._finished and path not in self._checked:
                with refusals(self.path, f"to read {path} back", resume=self._resume):
                    sound = self._place.is_sound(self._finished[path])
                if not sound:
                    del self._finished[path]
                    with self._storage("over a damaged part"):
                        self._place.remove(path)
                self._checked.add(path)
        return tuple(g for g in range(layout.parts) if _part_path(name, g) not in self._finished)

    def notes(self, name: str, layout: RecordLayout) -> list[Mapping[str, Any]]:
        """What was noted with the finished parts of a record."""
        finished = [self._finished.get(_part_path(name, index)) for index in range(layout.parts)]
        return [part.note for part in finished if part is not None]

    def read_record(self, name: str, layout: RecordLayout) -> Record:
        """A record of which nothing is missing, as a reader of the checkpoint will see it."""
        parts = [self._finished[_part_path(name, index)] for index in range(layout.parts)]
        words = []
        for finished in parts:
            buffer = np.empty(finished.part.length_bytes, np.uint8)
            with refusals(self.path, f"to read {finished.part.path} back", resume=self._resume):
                self._place.read_part(finished.part, buffer)
            words.append(buffer.view(np.uint32))
        _, escapes = counts_of([(finished.stats, finished.escapes) for finished in parts])
        return Record(tuple(words), with_escapes(layout, escapes))

    def write_record(
        self,
        name: str,
        layout: RecordLayout,
        arrays: Mapping[str, Encodable],
        *,
        tree: Shape = None,
        note: Mapping[str, Any] | None = None,
    ) -> StoredRecord:
        """Encodes and writes what is missing of a record; returns its entry (`finish` settles buffer sizes).

        arrays: by tensor, as `encode_record` takes them; may be empty if nothing is missing. tree: how the
        tensors make up a parameter tree (`format/tree.py`). note: JSON for the journal, that `notes`
        gives back to whoever goes on.
        """
        for index in self.missing(name, layout):
            self._write_part(name, layout, arrays, index=index, note=note or {})
        parts = [self._finished[_part_path(name, index)] for index in range(layout.parts)]
        for part in parts:
            self._files[f"{part.part.path}/{METADATA_FILE}"] = part.metadata
        stats, escapes = counts_of([(part.stats, part.escapes) for part in parts])
        record = StoredRecord(name, 0, tuple(part.part for part in parts), stats)
        self._written.append(_Written(record, layout, tree, escapes))
        return record

    def _write_part(
        self,
        name: str,
        layout: RecordLayout,
        arrays: Mapping[str, Encodable],
        *,
        index: int,
        note: Mapping[str, Any],
    ) -> None:
        encoded = encode_part(layout, arrays, index)
        data = encoded.words.view(np.uint8)
        length, path = data.shape[0], _part_path(name, index)
        with self._storage(f"{length:,} bytes of {path}"):
            chunk = chunk_bytes_for(length)
            # The data file is covered by the digests of its chunks; its index by the crc32c that zarr3 keeps.
            part = Part(path, length, 0, chunk, digest_chunks(data, chunk))
            metadata, rest = self._place.write_part(part, data)
            finished = FinishedPart(part, metadata, rest, encoded.stats, encoded.escapes, note)
            self._journal.add(to_entry(finished))
        self._finished[path] = finished
        self._checked.add(path)

    def write_file(self, name: str, data: bytes) -> None:
        """Writes a file that is kept as it is: tokenizer, config."""
        with self._storage(name):
            self._place.write_file(name, data)
        self._files[name] = digest_bytes(data)

    def finish(self, *, model: dict[str, Any] | None = None, made: Mapping[str, Any]) -> Manifest:
        """Settles signatures and size classes over all records, writes the manifest, ends the journal."""
        groups: dict[tuple[RecordLayout, str], list[_Written]] = {}
        for written in self._written:
            groups.setdefault(written.key, []).append(written)
        signatures = tuple(_signature(group) for group in groups.values())
        settled: dict[str, StoredRecord] = {}
        for index, group in enumerate(groups.values()):
            settled |= {record.name: record for record in _settle([w.record for w in group], index)}
        records = tuple(settled[written.record.name] for written in self._written)
        manifest = Manifest(signatures, records, model, dict(self._files), dict(made))
        with self._storage(MANIFEST_FILE):
            self._place.write_manifest(manifest)
            self._journal.remove()
        return manifest

    def close(self) -> None:
        """Lets go of the lock. Finished parts stay to be gone on with; a beginning without any is removed."""
        if not self._journal.locked:
            return
        with suppress(OSError):  # only to leave no litter; what a file system refuses has been told already
            if self._begun and not self._finished and not self._place.has_manifest():
                self._place.clear(self._journal.header, keep=())
                self._place.abandon()
                self._journal.remove()
            elif self._journal.empty:  # made for its lock alone
                self._journal.remove()
            self._place.leave()
        with suppress(OSError):
            self._journal.close()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _storage(self, what: str) -> AbstractContextManager[None]:
        return refusals(self.path, f"to write {what}", resume=self._resume)


def disk_bytes(expected: Manifest) -> int:
    """Bytes that all files of a checkpoint with such a manifest take on disk, about: whole pages."""
    parts = [round_up(file_bytes(part.length_bytes), PAGE_BYTES) + PAGE_BYTES for part in expected.parts]
    return sum(parts) + MANIFEST_BYTES_PER_PART * len(parts)


def _part_path(record: str, index: int) -> str:
    return f"{PARTS}/{record}.{index}"


@dataclass(frozen=True)
class _Written:
    """A record on disk whose signature is not settled yet."""

    record: StoredRecord
    layout: RecordLayout
    tree: Shape
    escapes: dict[str, int]

    @property
    def key(self) -> tuple[RecordLayout, str]:
        return self.layout, json.dumps(self.tree)


def _signature(group: list[_Written]) -> Signature:
    """The signature of records that agree in all but their data: room for the longest escape list."""
    most = {name: max(written.escapes[name] for written in group) for name in group[0].escapes}
    return Signature(with_escapes(group[0].layout, most), group[0].tree)


def _settle(records: list[StoredRecord], signature: int) -> list[StoredRecord]:
    """The same records with their signature and with buffers padded to its size classes."""
    classes = size_classes([round_up(p.length_bytes, PAGE_BYTES) for record in records for p in record.parts])

    def settled(part: Part) -> Part:
        return replace(part, buffer_bytes=min(size for size in classes if size >= part.length_bytes))

    return [
        replace(record, signature=signature, parts=tuple(settled(part) for part in record.parts))
        for record in records
    ]
