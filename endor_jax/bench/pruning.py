"""What pruning costs: a model converted in many ways, each scored beside the dense one and then removed.

Every conversion is a process of the command line, so that its peak memory is its own. The record grows by a
cell at a time: cells that it has are not measured again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.pruning_cells import DENSE, Cell, PruningSettings
from endor_jax.bench.pruning_record import (
    MeasuredCell,
    PruningRecord,
    check_same,
    read_record,
)
from endor_jax.bench.pruning_scores import Dense, dense_model, score
from endor_jax.bench.pruning_text import PruningText, pruning_text
from endor_jax.bench.record_file import write_record
from endor_jax.bench.verb import run_verb
from endor_jax.bench.workloads import make_whole
from endor_jax.store.digest import digest_json
from endor_jax.store.manifest import read_manifest


def measure_pruning(
    cells: Sequence[Cell],
    work_directory: Path,
    *,
    settings: PruningSettings,
    path: Path,
    report: Callable[[str], None] = lambda what: None,
) -> PruningRecord:
    """Measures the cells that the record at `path` has not, and adds them one after another.

    The dense checkpoint, its losses and a text of the model's own stay in `work_directory`. report: called
    with what is being done. Raises ResumeError if the record is one of other settings or another text,
    EndorError if a conversion fails, and what `pruning_text` raises.
    """
    work_directory.mkdir(parents=True, exist_ok=True)
    known = read_record(path)
    kept = f"{_source_name(settings)}-{settings.dtype}-{_stamp(Path(settings.model))}"
    dense = work_directory / f"{kept}-dense.endor"
    if not dense.exists():
        report("dense")
        make_whole(dense, lambda making: run_verb(_arguments(DENSE, making, settings)))
    if settings.own_text:
        report("text of the model's own")
    text = pruning_text(settings, dense)
    shared = settings.to_json() | _described(settings, text) | {"weights_digest": _weights_digest(dense)}
    if known is not None:
        check_same(path, known, shared)
    made_on = environment()
    record = known or PruningRecord(shared, made_on.machine, ())
    missing = [cell for cell in dict.fromkeys(cells) if cell not in record.measured]
    if not missing:
        return record
    report("scoring the dense model")
    beside = dense_model(dense, text, divergence_blocks=settings.divergence_blocks)
    for number, cell in enumerate(missing, 1):
        report(f"{cell} ({number} of {len(missing)})")
        measured = _measure(
            cell, work_directory / f"{kept}-cell-{os.getpid()}.endor", beside, settings, made_on
        )
        latest = read_record(path) or record  # somebody else may have measured other cells meanwhile
        check_same(path, latest, shared)
        record = replace(latest, machine=made_on.machine, cells=(*latest.cells, measured))
        write_record(record, path)
        report(
            f"{cell}: perplexity {measured.perplexity:.3f}, {measured.ratio:.4f} × dense, "
            f"{measured.convert_seconds:.0f} s"
        )
    return record


def _measure(
    cell: Cell, checkpoint: Path, dense: Dense, settings: PruningSettings, made_on: Environment
) -> MeasuredCell:
    """Converts, scores and removes one cell."""
    shutil.rmtree(checkpoint, ignore_errors=True)  # of a run that was killed: its seconds are not known
    try:
        converted, seconds = run_verb(_arguments(cell, checkpoint, settings, dense.text))
        scores = score(checkpoint, dense)
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)
    side, divergence = scores.first.b, scores.first.divergence
    return MeasuredCell(
        cell=cell,
        perplexity=scores.perplexity.value,
        standard_error=scores.perplexity.standard_error,
        ratio=scores.ratio,
        ratio_standard_error=scores.ratio_standard_error,
        divergence=divergence.mean,
        divergence_standard_error=divergence.standard_error,
        agreement=scores.first.agreement,
        sparsity=side.sparsity,
        bytes_per_weight=side.bytes_per_weight,
        stored_bytes=side.stored_bytes,
        convert_seconds=seconds,
        stated_peak_bytes=converted["expected_peak_host_bytes"],
        peak_bytes=converted["peak_host_bytes"],
        commit=made_on.commit,
        versions=made_on.versions,
    )


def _arguments(
    cell: Cell, checkpoint: Path, settings: PruningSettings, text: PruningText | None = None
) -> tuple[str, ...]:
    """Of `endor`. text: what a calibrated cell looks at."""
    arguments = ["convert", settings.model, str(checkpoint), *cell.options, "--dtype", settings.dtype]
    if text is not None and cell.calibrated:
        arguments += ["--calibration-blocks", str(settings.calibration_blocks)]
        arguments += ["--calibration-length", str(text.scored.shape[1]), "--seed", str(settings.seed)]
        arguments += [] if text.path is None else ["--calibration", text.path]
    return tuple(arguments)


def _source_name(settings: PruningSettings) -> str:
    """The model without the directories it lies in, which say nothing to others."""
    path = Path(settings.model)
    return path.stem if path.suffix == ".gguf" else path.name


def _stamp(model: Path) -> str:
    """Of the files of a model, by name, size and time: others of the same name have another."""
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    found = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    return digest_json(found)


def _weights_digest(dense: Path) -> str:
    """Of all stored bytes of the dense checkpoint, wherever it lies and whenever it was made."""
    records = read_manifest(dense).records
    return digest_json({record.name: [part.digests for part in record.parts] for record in records})


def _described(settings: PruningSettings, text: PruningText) -> dict[str, Any]:
    """What a record says of model and text: the length as it was settled, and no paths of this machine."""
    data = Path(settings.data).name if settings.data is not None else "pydoc_data.topics"
    return {
        "model": _source_name(settings),
        "data": "the model's own" if settings.own_text else data,
        "length": text.scored.shape[1],
        "scored_digest": text.digest,
    }
