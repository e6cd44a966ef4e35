"""A conversion: source → prune → encode → store, one record at a time.

First a survey (`survey.py`) chooses codecs and lays every record out. Then each record is read, prepared,
encoded and written; memory holds one record as it is stored, or the largest single tensor. Methods that look
at a text take it along through the layers (`calibrate.py`). What an interrupted conversion has finished is
kept, once the source's bytes and the stored ones are found the same; the text then goes through the finished
layers as they are stored.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from endor_jax import models
from endor_jax.conversion.calibrate import Calibration, Note, states_bytes
from endor_jax.conversion.calibration_text import calibration_blocks, described
from endor_jax.conversion.estimate import parsed_config
from endor_jax.conversion.methods import Stored
from endor_jax.conversion.paths import check_apart
from endor_jax.conversion.prepare import Prepared, prepare, source_digest
from endor_jax.conversion.settings import CALIBRATED, ConvertSettings
from endor_jax.conversion.survey import Progress, Survey, survey
from endor_jax.errors import ResumeError
from endor_jax.format.decode import decode
from endor_jax.format.layout import RecordLayout
from endor_jax.location import Location, ObjectPath, local_path, locate
from endor_jax.memory import give_back, peak_host_bytes
from endor_jax.processors import usable_cpus
from endor_jax.sources.mapping import Place
from endor_jax.sources.opening import open_source
from endor_jax.sources.source import Source
from endor_jax.store.destination import check_room, taken_bytes
from endor_jax.store.digest import digest_bytes
from endor_jax.store.manifest import Manifest
from endor_jax.store.writable import check_job_at, check_place
from endor_jax.store.writer import CheckpointWriter, disk_bytes
from endor_jax.version import VERSION


@dataclass(frozen=True)
class Conversion:
    """What a conversion did. dense_bytes: all tensors in the dtype they are stored in.

    resumed_parts: parts that were there already. expected_peak_host_bytes, peak_host_bytes: resident memory
    of the process as it was said beforehand, and as it was.
    """

    path: Location
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
    with open_source(local_path(source, "source")) as opened:
        return _prepared(opened, locate(destination), settings, resume, progress or _silent).plan


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
    with open_source(local_path(source, "source")) as opened:
        task = _prepared(opened, locate(destination), settings, resume, report)
        if announce is not None:
            announce(task.plan)
        with CheckpointWriter(destination, job=task.job, resume=resume) as writer:
            resumed = writer.finished_parts
            for name, data in task.files.items():
                writer.write_file(name, data)
            negative_zeros = _write_records(opened, task, writer, report)
            made = {
                "by": f"endor_jax {VERSION}",
                "source": str(opened.path.resolve()),
                "settings": asdict(settings),
                "negative_zeros": negative_zeros,
            }
            if task.blocks is not None:
                made["calibration"] = described(settings.calibration, task.blocks)
                made["sparsities"] = task.plan.sparsities
            manifest = writer.finish(model=_config(opened, settings), made=made)
    return Conversion(
        locate(destination),
        manifest,
        task.plan.dense_bytes,
        negative_zeros,
        resumed,
        task.plan.expected_peak_host_bytes,
        peak_host_bytes(),
    )


@dataclass(frozen=True)
class _Task:
    """All that is settled before anything is written. files: kept beside the weights. job: for the journal.
    blocks: of the calibration text."""

    settings: ConvertSettings
    plan: Survey
    files: dict[str, bytes]
    job: dict[str, Any]
    blocks: Int[np.ndarray, "blocks length"] | None


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def _prepared(
    source: Source, destination: Location, settings: ConvertSettings, resume: bool, report: Progress
) -> _Task:
    """What is to be done, once the destination can take it."""
    if isinstance(destination, Path):
        check_apart(source.path, destination)
    check_place(destination, resume=resume)
    blocks = None
    if settings.calibrated:
        blocks = calibration_blocks(source, parsed_config(source.config), settings.calibration)
    plan = survey(source, settings, report, blocks)
    if isinstance(destination, ObjectPath):  # what is sent, and TensorStore's copy of it
        largest = max(part.length_bytes for part in plan.expected.parts)
        plan = replace(plan, expected_peak_host_bytes=plan.expected_peak_host_bytes + 2 * largest)
    files = source.files() | {"config.json": json.dumps(_config(source, settings), indent=2).encode()}
    task = _Task(settings, plan, files, _job(plan, files, settings, blocks), blocks)
    check_job_at(destination, task.job)
    need = 0
    if blocks is not None and settings.prune in CALIBRATED:
        need = states_bytes(parsed_config(source.config), blocks.size, settings=settings)
    if isinstance(destination, Path):
        # What an interrupted conversion left is either kept or removed first.
        need += disk_bytes(plan.expected) + sum(map(len, files.values())) - taken_bytes(destination)
    check_room(_beside(destination), need)
    return task


def _beside(destination: Location) -> Path:
    """The directory of what is kept on a disk only until the conversion ends."""
    return destination if isinstance(destination, Path) else Path(tempfile.gettempdir())


def _job(
    plan: Survey,
    files: Mapping[str, bytes],
    settings: ConvertSettings,
    blocks: Int[np.ndarray, "blocks length"] | None,
) -> dict[str, Any]:
    """What must be the same for an interrupted conversion to be gone on with; the tensors' own bytes are
    compared record by record."""
    job = {
        "by": "conversion",
        "version": VERSION,
        "settings": asdict(settings),
        "files": {name: digest_bytes(data) for name, data in files.items()},
        "layouts": {name: _described(layout) for name, layout in plan.layouts.items()},
    }
    if blocks is not None:
        job |= {
            "calibration": described(settings.calibration, blocks),
            "sparsities": plan.sparsities,
            # Sums are the same to the bit only where they are computed alike.
            "computed by": {
                "jax": jax.__version__,
                "platform": jax.default_backend(),
                "processors": len(usable_cpus()),
            },
        }
    return job


def _described(layout: RecordLayout) -> dict[str, str]:
    """A layout in words: for the journal, and for whoever reads where it differs."""
    return {"parts": str(layout.parts)} | {
        name: f"{tensor.dtype} {tensor.shape} {getattr(getattr(tensor, 'codec', None), 'name', 'dense')}"
        for name, tensor in layout.tensors
    }


def _write_records(source: Source, task: _Task, writer: CheckpointWriter, report: Progress) -> int:
    """Writes every record, or keeps what is there of it; how many −0.0 were changed."""
    plan, done, negative_zeros = task.plan, 0, 0
    work = _work(task)
    total = sum(work.values())
    with ExitStack() as stack:
        calibration, last = None, 0
        if task.settings.prune in CALIBRATED:

            def note(record: str, what: str, share: float) -> None:
                report(f"{what} {record}", done + int(share * work[record]), total)

            calibration = stack.enter_context(_calibration(source, task, writer, note))
            # The text need not go further than to the last layer that is still to be pruned.
            to_prune = [r in plan.sparsities and bool(writer.missing(r, plan.layouts[r])) for r in plan.names]
            last = max((i for i, its in enumerate(to_prune) if its), default=0)
        for i, record in enumerate(plan.names):
            layout = plan.layouts[record]
            report(f"encoding {record}", done, total)
            if writer.missing(record, layout):
                done_with = _write_record(source, task, writer, record, calibration)
            else:
                done_with = _keep_record(source, task, writer, record, decoded=i < last)
            if calibration is not None and i < last:
                calibration.advance(record, done_with.stored, done_with.unpruned)
            negative_zeros += done_with.note["negative_zeros"]
            del done_with  # or its arrays would still be here while the next record is read
            done += work[record]
            give_back()
    report("done", done, total)
    return negative_zeros


def _work(task: _Task) -> dict[str, int]:
    """What counts as progress: dense bytes by record; where calibrating takes the time, of what it prunes."""
    layouts, pruned = task.plan.layouts, task.plan.sparsities
    calibrated = task.settings.prune in CALIBRATED
    return {r: it.dense_bytes if r in pruned or not calibrated else 0 for r, it in layouts.items()}


@dataclass(frozen=True)
class _Record:
    """A record that is on disk. note: of the journal. stored, unpruned: its tensors, if in memory."""

    note: Mapping[str, Any]
    stored: Mapping[str, Stored]
    unpruned: Mapping[str, np.ndarray]


def _calibration(source: Source, task: _Task, writer: CheckpointWriter, note: Note) -> Calibration:
    """The text before the first record."""
    assert task.blocks is not None
    decoder = models.decoder(parsed_config(source.config))
    return Calibration(
        decoder, task.blocks, directory=_beside(writer.path), settings=task.settings, note=note
    )


def _write_record(
    source: Source, task: _Task, writer: CheckpointWriter, record: str, calibration: Calibration | None
) -> _Record:
    """Prepares, prunes and writes a record of which something is missing."""
    plan, tensors = task.plan, task.plan.names[record]
    layout, sparsity = plan.layouts[record], plan.sparsities.get(record)
    prepared = {
        tensor: prepare(source, name, Place(record, tensor), settings=task.settings, sparsity=sparsity)
        for tensor, name in tensors.items()
    }
    note = _note(prepared)
    _check_source(source, tensors, writer.notes(record, layout), note["source"])
    dense = {tensor: it.array for tensor, it in prepared.items()}
    del prepared
    arrays: Mapping[str, Stored] = dense
    if calibration is not None and sparsity is not None:
        arrays = calibration.prune(record, layout, dense, sparsity=sparsity)
    writer.write_record(record, layout, arrays, note=note)
    return _Record(note, arrays, dense if task.settings.target == "model" else {})


def _keep_record(
    source: Source, task: _Task, writer: CheckpointWriter, record: str, *, decoded: bool
) -> _Record:
    """Keeps a record that is finished, if it was made of what the source has.

    decoded: its tensors are wanted, as they are stored and as they were.
    """
    tensors, layout = task.plan.names[record], task.plan.layouts[record]
    notes = writer.notes(record, layout)
    stored: dict[str, Stored] = {}
    unpruned: dict[str, np.ndarray] = {}
    if decoded:
        prepared = {
            tensor: prepare(source, name, Place(record, tensor), settings=task.settings)
            for tensor, name in tensors.items()
        }
        digests = {tensor: it.digest for tensor, it in prepared.items()}
        if task.settings.target == "model":
            unpruned = {tensor: it.array for tensor, it in prepared.items()}
        del prepared
    else:
        digests = {tensor: source_digest(source.read(name)) for tensor, name in tensors.items()}
    _check_source(source, tensors, notes, digests)
    writer.write_record(record, layout, {})
    if decoded:
        held = writer.read_record(record, layout)
        stored = {tensor: decode(held[tensor]) for tensor in tensors}
    return _Record(notes[0], stored, unpruned)


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
