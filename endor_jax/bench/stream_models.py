"""The checkpoints that `bench stream` reads: one as users have it, and the same weights stored dense."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from endor_jax.bench.page_cache import files_below, write_back
from endor_jax.bench.workloads import make_whole, workload, write_workload
from endor_jax.conversion.api import convert
from endor_jax.format.decode import decode
from endor_jax.format.layout import TensorSpec
from endor_jax.format.record import Record
from endor_jax.generate.placement import pass_records
from endor_jax.store.manifest import MANIFEST_FILE
from endor_jax.store.reader import Checkpoint
from endor_jax.store.save import layout_for
from endor_jax.store.writer import CheckpointWriter


@dataclass(frozen=True)
class StreamModels:
    """Directories with the same weights. dense: as `write_dense` writes them."""

    checkpoint: Path
    dense: Path


def stream_models(
    model: str, work_directory: Path, *, sparsity: float, report: Callable[[str], None]
) -> StreamModels:
    """The checkpoint at the path `model`, or the workload of that name, pruned; and its dense twin.

    What is not there yet is made in `work_directory`. Raises OptionError for a workload there is not, and
    what `convert` raises.
    """
    if (Path(model) / MANIFEST_FILE).is_file():
        checkpoint = Path(model)
        home = work_directory / checkpoint.name
    else:
        layers = workload(model).config["num_hidden_layers"]
        home = work_directory / f"{model}-{layers}-layers-{sparsity:g}"
        checkpoint = home / "checkpoint.endor"
    home.mkdir(parents=True, exist_ok=True)

    def converted(path: Path) -> None:
        source = home / "source"
        write_workload(source, model)
        convert(source, path, prune="magnitude", sparsity=sparsity)
        shutil.rmtree(source)

    made = StreamModels(checkpoint, home / "dense.endor")
    _once(made.checkpoint, f"making and converting {model}", converted, report)
    _once(made.dense, "storing it dense", functools.partial(write_dense, checkpoint), report)
    return made


def write_dense(checkpoint: Path, path: Path) -> None:
    """The records of a pass over a checkpoint, in order, with nothing compressed, not even zeros.

    They can be streamed, but make no model. Raises what reading and writing raise.
    """
    with Checkpoint(checkpoint) as opened, CheckpointWriter(path, job={"by": "bench stream"}) as writer:
        for number, record in enumerate(pass_records(opened.manifest)):
            buffers = [np.empty(part.length_bytes, np.uint8) for part in record.parts]
            for part, buffer in zip(record.parts, buffers, strict=True):
                opened.read_part(part, into=buffer)
            stored = Record(tuple(buffer.view(np.uint32) for buffer in buffers), record.layout)
            arrays = {name: decode(stored[name]) for name in stored}
            specs = {name: TensorSpec(array.shape, array.dtype.name, None) for name, array in arrays.items()}
            writer.write_record(f"layers.{number}", layout_for(specs), arrays)
        writer.finish(made={"by": "bench stream"})


def _once(path: Path, what: str, make: Callable[[Path], None], report: Callable[[str], None]) -> None:
    """What `make` makes at a path, unless it is there. Made under another name: what is there is whole."""
    if path.exists():
        return
    report(what)
    make_whole(path, make)
    write_back(files_below(path))
