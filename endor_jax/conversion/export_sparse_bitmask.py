"""`export --to sparse-bitmask`: the files that compressed-tensors 0.14.0 writes for the same weights.

Compressed are the matrices of the layers; embeddings, norms, biases and the head are stored as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from endor_jax.conversion.export_model import ExportModel
from endor_jax.sources.safetensors_writer import write_safetensors
from endor_jax.sources.source import TensorInfo
from endor_jax.sources.sparse_bitmask_config import with_storage
from endor_jax.sources.sparse_bitmask_layout import compress, compressed_infos

_WEIGHT = ".weight"
_HEAD = "lm_head"


def write_sparse_bitmask(model: ExportModel, directory: Path) -> None:
    """Writes safetensors and config.json, one record and one compressed matrix in memory at a time.

    Raises what reading the checkpoint raises, and as `write_safetensors` does.
    """
    infos: dict[str, TensorInfo] = {}
    for name, info in model.infos.items():
        if _is_compressed(model, name):
            pieces = compressed_infos(info.shape, info.dtype, nonzero=model.nonzero[name])
            infos |= {_piece(name, suffix): piece for suffix, piece in pieces.items()}
        else:
            infos[name] = info

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, array in model.tensors():
            if _is_compressed(model, name):
                yield from ((_piece(name, suffix), piece) for suffix, piece in compress(array).items())
            else:
                yield name, array

    config = with_storage(model.checkpoint.model_config(), ignore=_ignored(model), sparsity=model.sparsity)
    text = json.dumps(config, indent=2, sort_keys=True).encode()
    # By name, which is how the safetensors library orders tensors whose elements are equally wide.
    ordered = {name: infos[name] for name in sorted(infos)}
    write_safetensors(directory, tensors(), infos=ordered, files=model.files() | {"config.json": text})


def _piece(name: str, suffix: str) -> str:
    return f"{name.removesuffix(_WEIGHT)}.{suffix}"


def _is_compressed(model: ExportModel, name: str) -> bool:
    inside = model.places[name].record.startswith("layers.")
    return inside and name.endswith(_WEIGHT) and len(model.infos[name].shape) == 2


def _ignored(model: ExportModel) -> list[str]:
    """The linear modules that are stored dense: the head (a module of its own even when tied), and what
    projects into and out of the layers. Embeddings are no linear modules."""
    others = [
        name.removesuffix(_WEIGHT)
        for name, info in model.infos.items()
        if len(info.shape) == 2 and not _is_compressed(model, name) and "embed" not in name
    ]
    return [_HEAD, *(name for name in others if name != _HEAD)]
