"""`reshard`: a checkpoint cut into other parts, one record in memory at a time; no bit of a tensor changes.

Fields, bases, scales and escapes move as they are (`format/cut.py`): integers are never quantised again, and
the parts are those that a conversion with as many shards would have written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from endor_jax.conversion.estimate import estimate
from endor_jax.conversion.layouts import UNCOMPRESSED, record_layouts, tree_layouts
from endor_jax.conversion.paths import check_apart
from endor_jax.conversion.settings import check_shards
from endor_jax.conversion.survey import Progress
from endor_jax.format.cut import own_bytes
from endor_jax.format.decode import decode
from endor_jax.format.encode import Encodable
from endor_jax.format.layout import DenseLayout, FieldLayout, RecordLayout, TensorLayout, TensorSpec
from endor_jax.location import local_path
from endor_jax.memory import give_back
from endor_jax.store.destination import check_destination, check_resumable, check_room, taken_bytes
from endor_jax.store.manifest import Manifest, StoredRecord, to_json
from endor_jax.store.reader import Checkpoint
from endor_jax.store.writer import CheckpointWriter, disk_bytes
from endor_jax.version import VERSION


def reshard(
    checkpoint: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    shards: int,
    resume: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Writes a checkpoint again with every record in a multiple of `shards` parts; returns its manifest.

    Tensors keep their bits, dtypes and codecs, and files beside them their bytes; the checkpoint that is read
    is not changed. In memory are one record as it is stored, and one part. resume: go on with what an
    interrupted call for the same checkpoint has left at `destination`: the result is the same to the byte.
    progress: called with (what, dense bytes done, dense bytes in all).
    Raises what opening and reading a checkpoint raises, OptionError for less than one shard or more than the
    smallest matrix has rows, InvalidInputError if one path lies in the other, DestinationExistsError,
    DestinationBusyError, ResumeError (what was interrupted was something else), StorageError.
    """
    check_shards(shards)
    report, target = (
        progress or (lambda what, done, total: None),
        local_path(destination, "destination of reshard"),
    )
    source = local_path(checkpoint, "source")
    with Checkpoint(source) as opened:
        check_apart(source, target)
        check_destination(target, resume=resume)
        manifest = opened.manifest
        layouts = _layouts(manifest, shards)
        job = _job(manifest, shards)
        check_resumable(target, job)
        files = {name: opened.read_file(name) for name in manifest.kept_files}
        need = disk_bytes(_expected(manifest, layouts)) + sum(map(len, files.values()))
        check_room(target, need - taken_bytes(target))
        with CheckpointWriter(target, job=job, resume=resume) as writer:
            for name, data in files.items():
                writer.write_file(name, data)
            _write_records(opened, writer, layouts, report)
            how = {
                "by": f"endor_jax {VERSION}",
                "source": str(source.resolve()),
                "shards": shards,
            }
            return writer.finish(model=manifest.model, made=manifest.made | {"resharded": how})


def _layouts(manifest: Manifest, shards: int) -> dict[str, RecordLayout]:
    """A layout per record: as `convert` cuts a model, and `save` parameter trees."""
    specs = {
        record.name: {name: _spec(tensor) for name, tensor in manifest.layout(record).tensors}
        for record in manifest.records
    }
    return (tree_layouts if manifest.model is None else record_layouts)(specs, shards=shards)


def _spec(tensor: TensorLayout) -> TensorSpec:
    """What a tensor would be in one shard: where its own bytes are fields only to be cut, it is dense."""
    codec = tensor.codec if isinstance(tensor, FieldLayout) else None
    return TensorSpec(tensor.shape, tensor.dtype, None if codec == UNCOMPRESSED else codec)


def _job(manifest: Manifest, shards: int) -> dict[str, Any]:
    """What must be the same for an interrupted call to be gone on with."""
    return {
        "by": "reshard",
        "version": VERSION,
        "source": to_json(manifest)["digest"],
        "shards": shards,
        "files": {name: manifest.files[name] for name in manifest.kept_files},
    }


def _expected(manifest: Manifest, layouts: Mapping[str, RecordLayout]) -> Manifest:
    """The manifest to expect, from what was counted when the checkpoint was made."""

    def escapes(record: str, tensor: str) -> float:
        stats, layout = manifest.record(record).stats[tensor], layouts[record][tensor]
        with_bitmap = isinstance(layout, FieldLayout) and layout.codec.bitmap
        return stats.escapes / max(1, stats.nonzero if with_bitmap else stats.elements)

    return estimate(
        layouts, lambda record, tensor: manifest.record(record).stats[tensor].sparsity, escapes=escapes
    )


def _write_records(
    opened: Checkpoint, writer: CheckpointWriter, layouts: Mapping[str, RecordLayout], report: Progress
) -> None:
    """Writes every record, but for the parts that are there already."""
    manifest, done = opened.manifest, 0
    total = sum(layout.dense_bytes for layout in layouts.values())
    for record in manifest.records:
        layout, tree = layouts[record.name], manifest.signatures[record.signature].tree
        report(f"cutting {record.name}", done, total)
        arrays = _arrays(opened, record, layout) if writer.missing(record.name, layout) else {}
        writer.write_record(record.name, layout, arrays, tree=tree)
        del arrays  # or they would still be here while the next record is read
        done += layout.dense_bytes
        give_back()
    report("done", done, total)


def _arrays(opened: Checkpoint, record: StoredRecord, layout: RecordLayout) -> dict[str, Encodable]:
    """What the tensors of a record are written from: what is stored of them, or, where an array's own bytes
    become fields or fields an array, the array."""
    held = opened.read_record(record)
    arrays: dict[str, Encodable] = {}
    for name, wanted in layout.tensors:
        stored = held[name]
        if isinstance(stored.layout, DenseLayout):
            arrays[name] = decode(stored)
        else:
            arrays[name] = stored if isinstance(wanted, FieldLayout) else own_bytes(stored)
    return arrays
