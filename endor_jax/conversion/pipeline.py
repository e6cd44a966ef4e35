"""A conversion: source → prune → encode → store, one record at a time.

First a survey (`survey.py`) chooses codecs and lays every record out. Then each record is read, prepared,
encoded and written; memory holds one record as it is stored, or the largest single tensor. What an
interrupted conversion has finished is kept, once the source's bytes and the stored ones are found the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.conversion.paths import check_apart
from endor_jax.conversion.prepare import Prepared, prepare, source_digest
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.conversion.survey import Progress, Survey, survey
from endor_jax.errors import ResumeError
from endor_jax.format.layout import RecordLayout
from endor_jax.memory import give_back, peak_host_bytes
from endor_jax.sources.mapping import Place
from endor_jax.sources.opening import open_source
from endor_jax.sources.source import Source
from endor_jax.store.destination import check_destination, check_resumable, check_room, taken_bytes
from endor_jax.store.digest import digest_bytes
from endor_jax.store.manifest import Manifest
from endor_jax.store.writer import CheckpointWriter, disk_bytes
from endor_jax.version import VERSION


@dataclass(frozen=True)
class Conversion:
    """What a conversion did. dense_bytes: all tensors in the dtype they are stored in.

    resumed_parts: parts that were there already. expected_peak_host_bytes, peak_host_bytes: resident memory
    of the process as it was said beforehand, and as it was.
    """

    path: Path
    manifest: Manifest
    dense_bytes: int
    negative_zeros: int
    resumed_parts: int
    expected_peak_host_bytes: int
    peak_host_bytes: int

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts."""
        return self.manifest.stored_bytes


def survey_conversion(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    settings: ConvertSettings,
    resume: bool = True,
    progress: Progress | None = None,
) -> Survey:
    """What `run_conversion` would do; reads samples, writes nothing.

    Raises as it does, but for what only reading all of the source or writing can tell.
    """
    with open_source(Path(source)) as opened:
        found, _, _ = _prepared(opened, Path(destination), settings, resume, progress or _silent)
        return found


def run_conversion(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    settings: ConvertSettings,
    resume: bool = True,
    progress: Progress | None = None,
    announce: Callable[[Survey], None] | None = None,
) -> Conversion:
    """Converts `source` to a checkpoint at `destination`; see `endor_jax.conversion.api.convert`.

    announce: called with the survey before anything is written.
    """
    report = progress or _silent
    with open_source(Path(source)) as opened:
        plan, files, job = _prepared(opened, Path(destination), settings, resume, report)
        if announce is not None:
            announce(plan)
        with CheckpointWriter(destination, job=job, resume=resume) as writer:
            resumed = writer.finished_parts
            for name, data in files.items():
                writer.write_file(name, data)
            negative_zeros = _write_records(opened, plan, settings, writer, report)
            made = {
                "by": f"endor_jax {VERSION}",
                "source": str(opened.path.resolve()),
                "settings": asdict(settings),
                "negative_zeros": negative_zeros,
            }
            manifest = writer.finish(model=_config(opened, settings), made=made)
    return Conversion(
        Path(destination),
        manifest,
        plan.dense_bytes,
        negative_zeros,
        resumed,
        plan.expected_peak_host_bytes,
        peak_host_bytes(),
    )


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def _prepared(
    source: Source, destination: Path, settings: ConvertSettings, resume: bool, report: Progress
) -> tuple[Survey, dict[str, bytes], dict[str, Any]]:
    """The survey, the files to keep beside the weights and the writer's job, once the destination can take
    them."""
    check_apart(source.path, destination)
    check_destination(destination, resume=resume)
    plan = survey(source, settings, report)
    files = source.files() | {"config.json": json.dumps(_config(source, settings), indent=2).encode()}
    job = _job(plan, files, settings)
    check_resumable(destination, job)
    # What an interrupted conversion left is either kept or removed first.
    need = disk_bytes(plan.expected) + sum(map(len, files.values())) - taken_bytes(destination)
    check_room(destination, need)
    return plan, files, job


def _job(plan: Survey, files: Mapping[str, bytes], settings: ConvertSettings) -> dict[str, Any]:
    """What must be the same for an interrupted conversion to be gone on with; the tensors' own bytes are
    compared record by record."""
    return {
        "by": "conversion",
        "version": VERSION,
        "settings": asdict(settings),
        "files": {name: digest_bytes(data) for name, data in files.items()},
        "layouts": {name: _described(layout) for name, layout in plan.layouts.items()},
    }


def _described(layout: RecordLayout) -> dict[str, str]:
    """A layout in words: for the journal, and for whoever reads where it differs."""
    return {"parts": str(layout.parts)} | {
        name: f"{tensor.dtype} {tensor.shape} {getattr(getattr(tensor, 'codec', None), 'name', 'dense')}"
        for name, tensor in layout.tensors
    }


def _write_records(
    source: Source, plan: Survey, settings: ConvertSettings, writer: CheckpointWriter, report: Progress
) -> int:
    """Writes every record, or keeps what is there of it; how many −0.0 were changed."""
    done = negative_zeros = 0
    for record, tensors in plan.names.items():
        layout = plan.layouts[record]
        report(f"encoding {record}", done, plan.dense_bytes)
        missing, notes = writer.missing(record, layout), writer.notes(record, layout)
        if missing:
            prepared = {
                tensor: prepare(source, name, Place(record, tensor), settings=settings)
                for tensor, name in tensors.items()
            }
            note = _note(prepared)
            _check_source(source, tensors, notes, note["source"])
            arrays = {tensor: it.array for tensor, it in prepared.items()}
            del prepared
            writer.write_record(record, layout, arrays, note=note)
            del arrays  # or it would still be here while the next record is read
        else:
            digests = {tensor: source_digest(source.read(name)) for tensor, name in tensors.items()}
            _check_source(source, tensors, notes, digests)
            note = notes[0]
            writer.write_record(record, layout, {})
        negative_zeros += note["negative_zeros"]
        done += layout.dense_bytes
        give_back()
    report("done", done, plan.dense_bytes)
    return negative_zeros


def _note(prepared: Mapping[str, Prepared]) -> dict[str, Any]:
    """What the journal keeps of a record besides its parts."""
    return {
        "source": {tensor: it.digest for tensor, it in prepared.items()},
        "negative_zeros": sum(it.negative_zeros for it in prepared.values()),
    }


def _check_source(
    source: Source,
    names: Mapping[str, str],
    notes: list[Mapping[str, Any]],
    digests: Mapping[str, str],
) -> None:
    """Raises ResumeError, naming the tensor, unless finished parts were made of the bytes that are there."""
    for note in notes:
        for tensor, digest in note["source"].items():
            if digests[tensor] != digest:
                raise ResumeError(
                    f"tensor {names[tensor]!r} of {source.path}",
                    got="other bytes than when the conversion was interrupted",
                    expected="the same source",
                    fix="put the old source back, or remove the destination and begin again",
                )


def _config(source: Source, settings: ConvertSettings) -> dict[str, Any]:
    """The model's config, telling the dtype that its weights are stored in."""
    if settings.dtype is None:
        return source.config
    key = "torch_dtype" if "torch_dtype" in source.config else "dtype"
    return source.config | {key: settings.dtype}
