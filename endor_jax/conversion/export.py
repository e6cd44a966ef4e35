"""`export`: a checkpoint back to files that others read, one record in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from endor_jax.conversion.export_model import ExportModel, export_model
from endor_jax.conversion.export_orbax import write_orbax
from endor_jax.conversion.export_sparse_bitmask import write_sparse_bitmask
from endor_jax.conversion.paths import check_apart
from endor_jax.conversion.survey import Progress
from endor_jax.errors import OptionError
from endor_jax.location import local_path
from endor_jax.sources.safetensors_writer import write_safetensors
from endor_jax.store.reader import Checkpoint


def _write_dense(model: ExportModel, directory: Path) -> None:
    write_safetensors(directory, model.tensors(), infos=model.infos, files=model.files())


FORMATS: Mapping[str, Callable[[ExportModel, Path], None]] = {
    "safetensors": _write_dense,
    "sparse-bitmask": write_sparse_bitmask,
    "orbax": write_orbax,
}
"""What `to` can be, and who writes it."""


def export(
    checkpoint: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str = "safetensors",
    progress: Progress | None = None,
) -> Path:
    """Writes a converted model as files that others load; returns the directory.

    to: "safetensors" (dense, as transformers writes them), "sparse-bitmask" (as compressed-tensors did) or
    "orbax" (a tree of dense arrays, for Flax). Tensors have the dtype, the zeros and every bit they are
    stored with. A tied head is not written twice. Raises what opening and reading the checkpoint raises,
    InvalidInputError for a checkpoint that is not a model or lies in the same place, OptionError for another
    `to`, and as `write_safetensors` does.
    """
    if to not in FORMATS:
        raise OptionError(
            "export: to", got=repr(to), expected=f"one of {', '.join(FORMATS)}", fix="choose one"
        )
    report = progress or (lambda what, done, total: None)
    target = local_path(destination, "destination of export")
    with Checkpoint(checkpoint) as opened:
        model = export_model(opened, report)
        if isinstance(opened.path, Path):
            check_apart(opened.path, target)
        FORMATS[to](model, target)
        return target
