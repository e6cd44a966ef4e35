"""`export`: a checkpoint back to a dense Hugging Face directory, one record in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from endor_jax.conversion.paths import check_apart
from endor_jax.conversion.survey import Progress
from endor_jax.format.decode import decode
from endor_jax.sources.mapping import Place, to_hf
from endor_jax.sources.safetensors_writer import write_safetensors
from endor_jax.sources.source import TensorInfo
from endor_jax.store.reader import Checkpoint


def export(
    checkpoint: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Path:
    """Writes a converted model as Hugging Face files that transformers loads; returns the directory.

    Tensors have the dtype, the zeros and every bit they are stored with. A tied head is not written twice.
    Raises what opening and reading the checkpoint raises, InvalidInputError for a checkpoint that is not a
    model or lies in the same place, and as `write_safetensors` does.
    """
    report = progress or (lambda what, done, total: None)
    with Checkpoint(checkpoint) as opened:
        manifest = opened.manifest
        family = opened.model_config()["model_type"]
        infos: dict[str, TensorInfo] = {}
        for record in manifest.records:
            for tensor, layout in manifest.layout(record).tensors:
                infos[to_hf(family, Place(record.name, tensor))] = TensorInfo(layout.shape, layout.dtype)
        total = sum(info.nbytes for info in infos.values())

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            done = 0
            for record in manifest.records:
                report(f"decoding {record.name}", done, total)
                words = opened.read_record(record)
                for tensor in words:
                    array = decode(words[tensor])
                    yield to_hf(family, Place(record.name, tensor)), array
                    done += array.nbytes
            report("done", total, total)

        files = {name: opened.read_file(name) for name in manifest.kept_files}
        target = Path(destination)
        check_apart(Path(checkpoint), target)
        write_safetensors(target, tensors(), infos=infos, files=files)
        return target
