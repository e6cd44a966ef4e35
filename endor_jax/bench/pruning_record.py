"""The record of the pruning suite: a file that grows by a cell at a time, so that a run can go on later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.bench.pruning_cells import Cell
from endor_jax.errors import ResumeError


@dataclass(frozen=True)
class MeasuredCell:
    """What became of a model in one cell.

    perplexity and standard_error: of all scored blocks, tokens taken as independent. ratio and
    ratio_standard_error: to the dense model, from losses of both token by token. divergence: mean
    KL(dense ‖ pruned) per token in nats, agreement: share of tokens with the same likeliest one, both of the
    first blocks only. sparsity and bytes_per_weight: of the layers' matrices as they are stored.
    stored_bytes: of all files. convert_seconds, stated_peak_bytes, peak_bytes: of the process that converted;
    seconds are those of a machine that may have done something else besides. commit, versions: of the code.
    """

    cell: Cell
    perplexity: float
    standard_error: float
    ratio: float
    ratio_standard_error: float
    divergence: float
    divergence_standard_error: float
    agreement: float
    sparsity: float
    bytes_per_weight: float
    stored_bytes: int
    convert_seconds: float
    stated_peak_bytes: int
    peak_bytes: int
    commit: str | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class PruningRecord:
    """settings: what the cells share, as JSON, with the digest of the scored blocks. machine: of the run that
    measured the last one. cells: in the order in which they were measured."""

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    cells: tuple[MeasuredCell, ...]

    @property
    def measured(self) -> frozenset[Cell]:
        """The cells that need not be measured again."""
        return frozenset(each.cell for each in self.cells)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "benchmark": "pruning",
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "cells": [asdict(cell) for cell in self.cells],
        }


def read_record(path: Path) -> PruningRecord | None:
    """The record in a file; None if there is none yet, or an empty file.

    Raises ResumeError for a file that holds something else.
    """
    text = path.read_text() if path.exists() else ""
    if not text:
        return None
    try:
        values = json.loads(text)
        cells = tuple(_cell(each) for each in values["cells"])
        return PruningRecord(values["settings"], values["machine"], cells)
    except (ValueError, TypeError, KeyError) as error:
        raise ResumeError(
            f"record {path}",
            got=f"something else ({type(error).__name__}: {error})",
            expected="a record of this suite, to add to",
            fix="name another file",
        ) from error


def check_same(path: Path, record: PruningRecord, settings: Mapping[str, Any]) -> None:
    """Raises ResumeError unless a record was measured with these settings."""
    names = sorted(name for name in settings if record.settings.get(name) != settings[name])
    if names:
        raise ResumeError(
            f"record {path}",
            got=", ".join(f"{name} {record.settings.get(name)!r}" for name in names),
            expected=", ".join(f"{name} {settings[name]!r}" for name in names),
            fix="name another file, or ask for what this one has: cells of one record must be comparable",
        )


def _cell(values: Mapping[str, Any]) -> MeasuredCell:
    whole: dict[str, Any] = {**values, "cell": Cell(**values["cell"])}
    return MeasuredCell(**whole)
