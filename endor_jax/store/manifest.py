"""The manifest: everything `endor.json` says about a checkpoint, as frozen dataclasses, and its JSON form.

It is written last and by rename, so a directory that has one is complete. It holds a digest of every byte of
every other file, and one of itself. Section positions are not stored: they follow from names, shapes and
codecs by the rule in docs/format.md.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from endor_jax.arrays import round_up
from endor_jax.errors import (
    CorruptCheckpointError,
    EndorError,
    IncompleteCheckpointError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from endor_jax.format.encode import escape_words, with_escapes
from endor_jax.format.layout import SEGMENT, FieldLayout, RecordLayout, TensorSpec, plan_layout
from endor_jax.format.stats import TensorStats
from endor_jax.format.tree import Shape
from endor_jax.format.values import parse_codec
from endor_jax.location import Location
from endor_jax.store.digest import digest_json
from endor_jax.store.files import read_bytes, sync_directory
from endor_jax.store.manifest_schema import check_schema
from endor_jax.store.part import METADATA_FILE, PAGE_BYTES, chunk_bytes_for

MANIFEST_FILE = "endor.json"
JOURNAL_FILE = "endor.journal"
"""What a writer keeps while it works, and removes once the manifest is written."""
FORMAT_VERSION = 1
MOST_SIZE_CLASSES = 4
PARTS = "parts"
"""The directory that a writer puts the parts of records into."""
BEGUN = (JOURNAL_FILE, PARTS, f"{MANIFEST_FILE}.tmp")
"""What a writer that did not finish may have left."""


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
    def parts(self) -> tuple[Part, ...]:
        """The parts of all records, in order."""
        return tuple(part for record in self.records for part in record.parts)

    @property
    def shards(self) -> int:
        """Among how many devices it can be shared, or among any divisor: parts of every record are a multiple
        of it."""
        return math.gcd(*(len(record.parts) for record in self.records))

    @property
    def kept_files(self) -> tuple[str, ...]:
        """Files beside the parts, kept as they are: tokenizer, config."""
        return tuple(name for name in self.files if not name.startswith(f"{PARTS}/"))

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(record.stored_bytes for record in self.records)


def size_classes(
    lengths: Sequence[int], *, most: int = MOST_SIZE_CLASSES, slack: float = 1.05
) -> tuple[int, ...]:
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
    tensors = []
    for name, place in layout.tensors:
        codec, escapes = (
            (place.codec.name, place.escape_capacity) if isinstance(place, FieldLayout) else (None, 0)
        )
        tensors.append(
            {"name": name, "shape": place.shape, "dtype": place.dtype, "codec": codec, "escapes": escapes}
        )
    return {"parts": layout.parts, "segment": SEGMENT, "tensors": tensors}


def layout_from_json(value: Mapping[str, Any]) -> RecordLayout:
    """The layout that a signature of a manifest describes, its schema checked. Raises ValueError for segments
    of another width, and what `plan_layout` raises."""
    specs = {
        t["name"]: TensorSpec(
            tuple(t["shape"]), t["dtype"], None if t["codec"] is None else parse_codec(t["codec"])
        )
        for t in value["tensors"]
    }
    if value["segment"] != SEGMENT:
        raise ValueError(f"segments of {value['segment']} columns")
    layout = plan_layout(specs, parts=value["parts"])
    return with_escapes(layout, {t["name"]: t["escapes"] for t in value["tensors"]})


def from_json(value: Any, where: str) -> Manifest:
    """The manifest of a JSON object; `where` names its file in errors.

    Raises UnsupportedError for an intact manifest of another format version, CorruptCheckpointError for
    anything that is not what `to_json` gives.
    """
    if not isinstance(value, dict) or value.get("format") != "endor":
        raise _corrupt(where, "something else", "the manifest of an endor checkpoint")
    body = {key: item for key, item in value.items() if key != "digest"}
    try:
        # Before the version: a digit that has flipped there is damage, no release of ours.
        intact = digest_json(body) == value.get("digest")
    except RecursionError as error:
        raise _corrupt(where, "JSON nested too deep", "the fields of docs/format.md") from error
    if not intact:
        raise _corrupt(where, "a manifest whose digest does not match", "the bytes that were written")
    version = body.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise UnsupportedError(
            where,
            got=f"format version {version!r:.40}",
            expected=f"version {FORMAT_VERSION}",
            fix="use the endor_jax release that wrote it, or a newer one",
        )
    try:
        check_schema(body)
        return _build(body)
    except (ValueError, TypeError, RecursionError, UnicodeError) as error:
        raise _corrupt(where, str(error), "the fields of docs/format.md") from error


def _build(body: Mapping[str, Any]) -> Manifest:
    """The manifest of members that `check_schema` passed. Raises ValueError if they contradict each other."""
    records = tuple(
        StoredRecord(
            r["name"],
            r["signature"],
            tuple(Part(**(p | {"digests": tuple(p["digests"])})) for p in r["parts"]),
            {name: TensorStats(**stats) for name, stats in r["stats"].items()},
        )
        for r in body["records"]
    )
    signatures = tuple(Signature(layout_from_json(s), s["tree"]) for s in body["signatures"])
    groups: list[list[StoredRecord]] = [[] for _ in signatures]
    for record in records:
        if record.signature >= len(signatures):
            raise ValueError(f"record {record.name!r} has signature {record.signature}")
        groups[record.signature].append(record)
        _check_record(record, signatures[record.signature].layout, body["files"])
    paths = [part.path for record in records for part in record.parts]
    if len({record.name for record in records}) < len(records) or len(set(paths)) < len(paths):
        raise ValueError("two records have one name, or two parts one path")
    for index, (signature, group) in enumerate(zip(signatures, groups, strict=True)):
        if not group:
            raise ValueError(f"no record has signature {index}")
        _check_group(signature.layout, group)
    return Manifest(signatures, records, body["model"], body["files"], body["made"])


def _check_record(record: StoredRecord, layout: RecordLayout, files: Mapping[str, str]) -> None:
    """Raises ValueError unless the parts and counts of a record can be what its layout says."""
    if len(record.parts) != layout.parts or set(record.stats) != set(layout.names):
        raise ValueError(f"record {record.name!r} does not have the parts and tensors of its signature")
    for part in record.parts:
        length, chunk = part.length_bytes, part.chunk_bytes
        if not 4 * layout.streams_start < length <= part.buffer_bytes or length % 4:
            raise ValueError(f"part {part.path!r} has {length} bytes in {part.buffer_bytes}")
        if chunk != chunk_bytes_for(length) or len(part.digests) != -(-length // chunk):
            raise ValueError(f"part {part.path!r} has {len(part.digests)} digests of {chunk} bytes each")
        if f"{part.path}/{METADATA_FILE}" not in files:
            raise ValueError(f"part {part.path!r} has no digest of its {METADATA_FILE}")
    for name, tensor in layout.tensors:
        stats = record.stats[name]
        if stats.elements != math.prod(tensor.shape) or max(stats.nonzero, stats.escapes) > stats.elements:
            raise ValueError(f"record {record.name!r} counts {stats.elements} elements of {name!r}")


def _check_group(layout: RecordLayout, records: Sequence[StoredRecord]) -> None:
    """Raises ValueError unless buffers and escape lists of the records of a signature are as long as they
    must be: both become allocations before a byte of the parts is read."""
    parts = [part for record in records for part in record.parts]
    longest = max(part.length_bytes for part in parts)
    classes = {part.buffer_bytes for part in parts}
    if not classes <= {round_up(part.length_bytes, PAGE_BYTES) for part in parts}:
        raise ValueError(f"buffers of {sorted(classes)} bytes, which no part of the signature fills")
    if len(classes) > MOST_SIZE_CLASSES:
        raise ValueError(f"{len(classes)} size classes in one signature")
    for name, tensor in layout.tensors:
        if isinstance(tensor, FieldLayout):
            words = escape_words(tensor.escape_capacity, tensor.number.bits // 8)
            most = max(record.stats[name].escapes for record in records)
            if tensor.escape_capacity > most or 4 * (layout.streams_start + words) > longest:
                raise ValueError(f"tensor {name!r} has {tensor.escape_capacity} escapes")


def manifest_bytes(manifest: Manifest) -> bytes:
    """What `endor.json` holds, byte for byte (docs/format.md, "Checkpoint directory").

    Raises InvalidInputError for a config with NaN or infinities, which JSON has no words for.
    """
    try:
        return json.dumps(to_json(manifest), indent=1, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidInputError(
            "manifest", got=str(error), expected="numbers that JSON can hold", fix="mend the model's config"
        ) from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `endor.json`: to a temporary file, synced, then renamed, and the rename synced too.

    What it lists must be durable in its directories, but for `directory` itself: that is synced before.
    """
    temporary = directory / f"{MANIFEST_FILE}.tmp"
    data = manifest_bytes(manifest)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)
    temporary.rename(directory / MANIFEST_FILE)
    sync_directory(directory)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint in `directory`, every byte of its file checked.

    Raises NotFoundError if there is none, IncompleteCheckpointError if a writer began one and did not end,
    CorruptCheckpointError, UnsupportedError for another format version.
    """
    path = directory / MANIFEST_FILE
    if not os.path.lexists(path):
        raise _found_instead(directory)
    return parse_manifest(read_bytes(path), str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """The manifest that a file holds, every byte of it checked. path: of the file, for errors.

    Raises CorruptCheckpointError, UnsupportedError for another format version.
    """
    try:
        manifest = from_json(json.loads(data.decode(), parse_constant=_refuse), path)
        intact = manifest_bytes(manifest) == data
    except UnicodeDecodeError as error:
        raise _corrupt(path, "bytes that are not UTF-8", "JSON") from error
    except RecursionError as error:
        raise _corrupt(path, "JSON nested too deep", "the fields of docs/format.md") from error
    except EndorError:
        raise
    except ValueError as error:  # JSONDecodeError, and numbers of thousands of digits
        raise _corrupt(path, f"invalid JSON ({error})", "JSON") from error
    if not intact:  # white space or a repeated key, which no digest of the values can see
        raise _corrupt(path, "other bytes than a writer gives these values", "the bytes that were written")
    return manifest


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


def _found_instead(directory: Path) -> EndorError:
    begun = next((n for n in BEGUN if (directory / n).exists()), None)
    if directory.is_dir():
        return no_manifest(directory, begun=begun)
    return no_manifest(directory, got="a file" if directory.exists() else "no such directory")


def no_manifest(place: Location, *, begun: str | None = None, got: str = f"no {MANIFEST_FILE}") -> EndorError:
    """The error for a place without a manifest. begun: which of the names in `BEGUN` is there, if one is."""
    if begun is not None:
        return IncompleteCheckpointError(
            f"checkpoint {place}",
            got=f"{begun}, but no {MANIFEST_FILE}: it was not finished",
            expected=f"{MANIFEST_FILE}, which is written last",
            fix="run the same command again to go on, or remove it and begin again"
            if begun == JOURNAL_FILE
            else "remove it, then convert or copy the checkpoint again",
        )
    return NotFoundError(
        f"checkpoint {place}",
        got=got,
        expected="a directory written by `endor convert` or `endor.save`",
        fix="check the path",
    )


def _corrupt(where: str, got: str, expected: str) -> EndorError:
    return CorruptCheckpointError(
        where, got=got, expected=expected, fix="the file is damaged; copy or convert the checkpoint again"
    )
