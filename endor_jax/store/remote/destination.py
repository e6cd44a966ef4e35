"""A place in an object store that a checkpoint is written to: what `CheckpointWriter` asks of a place."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from endor_jax.errors import (
    CorruptCheckpointError,
    DestinationBusyError,
    DestinationExistsError,
    IncompleteCheckpointError,
)
from endor_jax.location import ObjectPath
from endor_jax.store.digest import digest_bytes, digest_chunks
from endor_jax.store.finished import FinishedPart
from endor_jax.store.manifest import JOURNAL_FILE, MANIFEST_FILE, PARTS, Manifest, Part, manifest_bytes
from endor_jax.store.part import DATA_FILE, METADATA_FILE, file_bytes, metadata_of
from endor_jax.store.remote.journal import ObjectJournal, peek_objects
from endor_jax.store.remote.objects import ABSENT, Objects
from endor_jax.store.shard import rest_of_shard

_PART = re.compile(rf"({PARTS}/.+\.\d+)/(?:{re.escape(METADATA_FILE)}|{re.escape(DATA_FILE)})")


class ObjectDestination:
    """A prefix of a bucket. Every method raises what `Objects` raises."""

    def __init__(self, path: ObjectPath):
        self.path = path
        self.objects = Objects(path)

    def check(self, *, resume: bool, header: Mapping[str, Any] | None = None, locked: bool = False) -> None:
        """Raises unless a checkpoint can be written there: nothing is there or, with `resume`, what an
        interrupted writer left. header, locked: as `check_destination`. Reads only."""
        if not locked:
            lines = peek_objects(self.objects)
            header = lines[0] if lines else None
        names = [name for name in self.objects.names() if name != JOURNAL_FILE]
        if header is None:
            if names:
                got = "a finished checkpoint" if MANIFEST_FILE in names else f"{names[0]!r} and perhaps more"
                raise _exists(self.path, got)
            return
        foreign = [name for name in names if not _is_known(name, header)]
        if foreign:
            raise _exists(self.path, f"{foreign[0]!r} beside what an interrupted conversion left")
        if not resume and any(_PART.fullmatch(name) for name in names):
            raise DestinationExistsError(
                f"destination {self.path}",
                got=f"what an interrupted {header.get('by', 'writer')} left",
                expected="a place where nothing is yet",
                fix="remove it first, or, if it was a conversion, go on with it (without --no-resume)",
            )

    def open(self) -> ObjectJournal:
        """Takes over the journal. Raises DestinationBusyError."""
        return ObjectJournal(self.objects)

    def prepare(self) -> None:
        """There are no directories to be made."""

    def has_manifest(self) -> bool:
        """Whether a manifest is there."""
        return self.objects.get(MANIFEST_FILE) is not None

    def clear(self, header: Mapping[str, Any] | None, *, keep: Collection[str]) -> None:
        """Removes what a writer with this header may have left half done, but parts to keep."""
        for name in self.objects.names() if header is not None else ():
            part = _PART.fullmatch(name)
            kept = part[1] in keep if part else name in (JOURNAL_FILE, MANIFEST_FILE)
            if not kept and _is_known(name, header or {}):
                self.objects.delete(name)

    def remove(self, name: str) -> None:
        """Removes the objects of a part."""
        for file in (DATA_FILE, METADATA_FILE):
            self.objects.delete(f"{name}/{file}")

    def write_part(self, part: Part, data: np.ndarray) -> tuple[str, str]:
        """Writes the two objects of a part; digests of its metadata, and of what follows its bytes."""
        metadata, rest = metadata_of(part.length_bytes), rest_of_shard(part.length_bytes, part.chunk_bytes)
        self.objects.put(f"{part.path}/{METADATA_FILE}", metadata)
        self.objects.put(f"{part.path}/{DATA_FILE}", b"".join((data.data, rest)))
        return digest_bytes(metadata), digest_bytes(rest)

    def is_sound(self, finished: FinishedPart) -> bool:
        """Whether every byte of a part is what the journal says."""
        part = finished.part
        metadata = self.objects.get(f"{part.path}/{METADATA_FILE}")
        if metadata is None or digest_bytes(metadata.data) != finished.metadata:
            return False
        name, data = f"{part.path}/{DATA_FILE}", np.empty(file_bytes(part.length_bytes), np.uint8)
        try:
            self.objects.check_lengths({name: data.shape[0]})
            # By ranges: of a large object no single answer could be waited for.
            self.objects.read_into(name, data)
        except (IncompleteCheckpointError, CorruptCheckpointError):
            return False
        own, rest = data[: part.length_bytes], data[part.length_bytes :]
        return digest_chunks(own, part.chunk_bytes) == part.digests and digest_bytes(rest) == finished.rest

    def read_part(self, part: Part, into: np.ndarray) -> None:
        """Reads a part back, whose bytes a network may have changed since it was found sound: they are
        compared, and once read again. Raises CorruptCheckpointError."""
        for _ in range(2):
            self.objects.read_into(f"{part.path}/{DATA_FILE}", into)
            if digest_chunks(into, part.chunk_bytes) == part.digests:
                return
        raise CorruptCheckpointError(
            f"part {self.path / part.path}",
            got="other bytes, twice, than the journal has digests of",
            expected="what was written",
            fix="run the same command again: damaged parts are written anew",
        )

    def write_file(self, name: str, data: bytes) -> None:
        """Writes one of the other files."""
        self.objects.put(name, data)

    def write_manifest(self, manifest: Manifest) -> None:
        """Writes the manifest over none, or over that of a writer that was killed behind it.

        Raises DestinationBusyError if another process has written one meanwhile.
        """
        before = self.objects.get(MANIFEST_FILE)
        over = ABSENT if before is None else before.generation
        if self.objects.put(MANIFEST_FILE, manifest_bytes(manifest), over=over) is None:
            raise DestinationBusyError(
                f"destination {self.path}",
                got=f"a {MANIFEST_FILE} that another process has written just now",
                expected="one writer",
                fix="see whether that checkpoint is what you want, or choose another place",
            )

    def abandon(self) -> None:
        """There are no directories to be removed."""

    def leave(self) -> None:
        """As `abandon`."""


def _is_known(name: str, header: Mapping[str, Any]) -> bool:
    """Whether a writer with this header may have put an object there."""
    files = header.get("files")
    known: Iterable[str] = files if isinstance(files, dict) else ()
    return name in (JOURNAL_FILE, MANIFEST_FILE) or name in known or _PART.fullmatch(name) is not None


def _exists(path: ObjectPath, got: str) -> DestinationExistsError:
    return DestinationExistsError(
        f"destination {path}",
        got=got,
        expected="a place where nothing is yet",
        fix="choose another place, or remove it first",
    )
