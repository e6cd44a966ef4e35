"""Writing a checkpoint: records as they come, the manifest last."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.errors import DestinationExistsError
from endor_jax.format.encode import encode_record, with_escapes
from endor_jax.format.layout import RecordLayout
from endor_jax.format.tree import Shape
from endor_jax.store.digest import digest_bytes, digest_chunks
from endor_jax.store.manifest import Manifest, Part, Signature, StoredRecord, size_classes, write_manifest
from endor_jax.store.part import METADATA_FILE, PAGE_BYTES, chunk_bytes_for, write_part

PARTS = "parts"


class CheckpointWriter:
    """A directory that becomes a checkpoint when `finish` is called, and is none before.

    Holds one record at a time. Raises DestinationExistsError unless the directory is absent or empty.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        check_destination(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._written: list[_Written] = []
        self._files: dict[str, str] = {}

    def write_record(
        self, name: str, layout: RecordLayout, arrays: Mapping[str, np.ndarray], *, tree: Shape = None
    ) -> StoredRecord:
        """Encodes and writes one record; returns its entry (buffer sizes are settled by `finish`).

        tree: how the tensors make up a parameter tree (`format/tree.py`).
        """
        encoded = encode_record(layout, arrays)
        parts = tuple(self._write_part(f"{PARTS}/{name}.{g}", words) for g, words in enumerate(encoded.parts))
        record = StoredRecord(name, 0, parts, encoded.stats)
        self._written.append(_Written(record, layout, tree, encoded.escapes))
        return record

    def _write_part(self, path: str, words: np.ndarray) -> Part:
        data = words.view(np.uint8)
        write_part(self.path / path, data)
        # The data file is covered by the digests of its chunks; its index by the crc32c that zarr3 keeps.
        self._files[f"{path}/{METADATA_FILE}"] = digest_bytes((self.path / path / METADATA_FILE).read_bytes())
        chunk = chunk_bytes_for(data.shape[0])
        return Part(path, data.shape[0], 0, chunk, digest_chunks(data, chunk))

    def write_file(self, name: str, data: bytes) -> None:
        """Writes a file that is kept as it is: tokenizer, config."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._files[name] = digest_bytes(data)

    def finish(self, *, model: dict[str, Any] | None = None, made: Mapping[str, Any]) -> Manifest:
        """Settles signatures and size classes over all records and writes the manifest."""
        groups: dict[tuple[RecordLayout, str], list[_Written]] = {}
        for written in self._written:
            groups.setdefault(written.key, []).append(written)
        signatures = tuple(_signature(group) for group in groups.values())
        settled: dict[str, StoredRecord] = {}
        for index, group in enumerate(groups.values()):
            settled |= {record.name: record for record in _settle([w.record for w in group], index)}
        records = tuple(settled[written.record.name] for written in self._written)
        manifest = Manifest(signatures, records, model, dict(self._files), dict(made))
        write_manifest(self.path, manifest)
        return manifest


def check_destination(path: Path) -> None:
    """Raises DestinationExistsError unless a checkpoint can be written to `path`: nothing is there, or an
    empty directory."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DestinationExistsError(
            f"destination {path}",
            got="a directory that is not empty" if path.is_dir() else "a file",
            expected="a path where nothing is yet",
            fix="choose another path, or remove it first",
        )


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
