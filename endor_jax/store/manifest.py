"""The manifest: everything `endor.json` says about a checkpoint, as frozen dataclasses, and its JSON form.

It is written last and by rename, so a directory that has one is complete. It holds a digest of every byte of
every other file, and one of itself. Section positions are not stored: they follow from names, shapes and
codecs by the rule in docs/format.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from endor_jax.errors import CorruptCheckpointError, EndorError, NotFoundError, UnsupportedError
from endor_jax.format.encode import with_escapes
from endor_jax.format.layout import SEGMENT, FieldLayout, RecordLayout, TensorSpec, plan_layout
from endor_jax.format.stats import TensorStats
from endor_jax.format.tree import Shape
from endor_jax.format.values import parse_codec
from endor_jax.store.digest import digest_json

MANIFEST_FILE = "endor.json"
JOURNAL_FILE = "endor.journal"
"""What a writer keeps while it works, and removes once the manifest is written."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Part:
    """One stored part. `path` is its directory, relative to the checkpoint; `buffer_bytes` its size class."""

    path: str
    length_bytes: int
    buffer_bytes: int
    chunk_bytes: int
    digests: tuple[str, ...]


@dataclass(frozen=True)
class StoredRecord:
    """One record: which signature it has, its parts in order, what was counted per tensor."""

    name: str
    signature: int
    parts: tuple[Part, ...]
    stats: dict[str, TensorStats]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.length_bytes for part in self.parts)

    @property
    def buffer_bytes(self) -> int:
        """Bytes the record takes on the device, padded to its size classes."""
        return sum(part.buffer_bytes for part in self.parts)


@dataclass(frozen=True)
class Signature:
    """What makes records share a compiled step: their layout, and the tree their tensors make up.

    tree: as `format/tree.py` gives it; None where the caller must know the structure.
    """

    layout: RecordLayout
    tree: Shape = None


@dataclass(frozen=True)
class Manifest:
    """A checkpoint.

    signatures: records point at them by index. records: in the order they are applied. model: the model's own
    config (Hugging Face form) or None for plain parameter trees. files: other files with their digests.
    made: how the checkpoint came to be.
    """

    signatures: tuple[Signature, ...]
    records: tuple[StoredRecord, ...]
    model: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def record(self, name: str) -> StoredRecord:
        """The record called `name`. Raises KeyError naming what there is."""
        for record in self.records:
            if record.name == name:
                return record
        raise KeyError(f"no record {name!r}; there are {', '.join(r.name for r in self.records)}")

    def layout(self, record: StoredRecord) -> RecordLayout:
        """The layout of one of its records."""
        return self.signatures[record.signature].layout

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(record.stored_bytes for record in self.records)


def size_classes(lengths: Sequence[int], *, most: int = 4, slack: float = 1.05) -> tuple[int, ...]:
    """Buffer sizes, ascending, such that padding every length to the next one costs at most 5 %.

    As few as possible, at most `most`: every class is one more compilation of the step. Each class is the
    longest length it serves; cuts are made where they save most.
    """
    ordered = sorted(lengths)
    classes = [ordered[-1]]
    while len(classes) < most and _padded(ordered, classes) > slack * sum(ordered):
        extra = min(set(ordered) - set(classes), key=lambda length: _padded(ordered, [*classes, length]))
        classes.append(extra)
    return tuple(sorted(classes))


def _padded(lengths: Sequence[int], classes: Sequence[int]) -> int:
    return sum(min(size for size in classes if size >= length) for length in lengths)


def to_json(manifest: Manifest) -> dict[str, Any]:
    """The JSON object of a manifest, its own digest included."""
    value = {
        "format": "endor",
        "format_version": FORMAT_VERSION,
        "made": manifest.made,
        "model": manifest.model,
        "signatures": [
            _layout_to_json(signature.layout) | {"tree": signature.tree} for signature in manifest.signatures
        ],
        "records": [asdict(record) for record in manifest.records],
        "files": manifest.files,
    }
    value = json.loads(json.dumps(value))  # tuples become lists, as they will be read
    return value | {"digest": digest_json(value)}


def _layout_to_json(layout: RecordLayout) -> dict[str, Any]:
    def tensor(name: str) -> dict[str, Any]:
        place = layout[name]
        codec, escapes = (
            (place.codec.name, place.escape_capacity) if isinstance(place, FieldLayout) else (None, 0)
        )
        return {"name": name, "shape": place.shape, "dtype": place.dtype, "codec": codec, "escapes": escapes}

    return {"parts": layout.parts, "segment": SEGMENT, "tensors": [tensor(name) for name in layout.names]}


def _layout_from_json(value: Mapping[str, Any]) -> RecordLayout:
    specs = {
        t["name"]: TensorSpec(tuple(t["shape"]), t["dtype"], t["codec"] and parse_codec(t["codec"]))
        for t in value["tensors"]
    }
    if value["segment"] != SEGMENT:
        raise ValueError(f"segments of {value['segment']} columns")
    layout = plan_layout(specs, parts=value["parts"])
    return with_escapes(layout, {t["name"]: t["escapes"] for t in value["tensors"]})


def from_json(value: Any, where: str) -> Manifest:
    """The manifest of a JSON object; `where` names its file in errors.

    Raises UnsupportedError for a newer format version, CorruptCheckpointError for anything that is not what
    `to_json` writes.
    """
    if not isinstance(value, dict) or value.get("format") != "endor":
        raise _corrupt(where, "something else", "the manifest of an endor checkpoint")
    if value.get("format_version") != FORMAT_VERSION:
        raise UnsupportedError(
            where,
            got=f"format version {value.get('format_version')}",
            expected=f"version {FORMAT_VERSION}",
            fix="use the endor_jax release that wrote it, or a newer one",
        )
    body = {key: item for key, item in value.items() if key != "digest"}
    if digest_json(body) != value.get("digest"):
        raise _corrupt(where, "a manifest whose digest does not match", "the bytes that were written")
    try:
        records = tuple(
            StoredRecord(
                r["name"],
                r["signature"],
                tuple(Part(**(p | {"digests": tuple(p["digests"])})) for p in r["parts"]),
                {name: TensorStats(**stats) for name, stats in r["stats"].items()},
            )
            for r in body["records"]
        )
        signatures = tuple(Signature(_layout_from_json(s), s["tree"]) for s in body["signatures"])
        for record in records:
            if not 0 <= record.signature < len(signatures):
                raise ValueError(f"record {record.name} has signature {record.signature}")
            _check_record(record, signatures[record.signature].layout)
        for name in body["files"]:
            _check_inside(name)
        return Manifest(signatures, records, body["model"], body["files"], body["made"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _corrupt(where, f"{type(error).__name__}: {error}", "the fields of docs/format.md") from error


def _check_record(record: StoredRecord, layout: RecordLayout) -> None:
    """Raises ValueError unless the parts of a record can be what its layout says, inside the checkpoint."""
    if len(record.parts) != layout.parts or set(record.stats) != set(layout.names):
        raise ValueError(f"record {record.name} does not have the parts and tensors of its signature")
    for part in record.parts:
        _check_inside(part.path)
        if not 4 * layout.streams_start < part.length_bytes <= part.buffer_bytes or part.buffer_bytes % 4:
            raise ValueError(f"part {part.path} has {part.length_bytes} bytes in {part.buffer_bytes}")
        if len(part.digests) != -(-part.length_bytes // part.chunk_bytes):
            raise ValueError(f"part {part.path} has {len(part.digests)} digests")


def _check_inside(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} is outside the checkpoint")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `endor.json`: to a temporary file, synced, then renamed, and the rename synced too."""
    temporary = directory / f"{MANIFEST_FILE}.tmp"
    with temporary.open("w") as file:
        json.dump(to_json(manifest), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / MANIFEST_FILE)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint in `directory`. Raises NotFoundError if it is none."""
    path = directory / MANIFEST_FILE
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"checkpoint {directory}",
            got=f"no {MANIFEST_FILE}" if directory.exists() else "no such directory",
            expected="a directory written by `endor convert` or `endor.save`",
            fix="check the path; one that was interrupted has no manifest: remove it and run it again",
        ) from error
    except UnicodeDecodeError as error:
        raise _corrupt(str(path), "bytes that are not UTF-8", "JSON") from error
    try:
        return from_json(json.loads(text), str(path))
    except json.JSONDecodeError as error:
        raise _corrupt(str(path), f"invalid JSON ({error})", "JSON") from error


def _corrupt(where: str, got: str, expected: str) -> EndorError:
    return CorruptCheckpointError(where, got=got, expected=expected, fix="convert the checkpoint again")
