"""Stacks of small layers for streaming tests: a checkpoint, its layer function, and what it must compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import endor_jax as endor
from endor_jax.format.layout import TensorSpec
from endor_jax.format.tree import named_leaves, tree_shape
from endor_jax.store.manifest import Manifest
from endor_jax.store.save import codec_for, layout_for
from endor_jax.store.writer import CheckpointWriter

WIDTH = 64
Layer = dict[str, np.ndarray]


def stack(count: int, *, hidden: int = 96, seed: int = 0) -> list[Layer]:
    """Residual MLP layers, half pruned."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        dense = random.normal(0, 0.2, shape).astype(np.float32)
        return np.where(random.random(shape) < 0.5, dense, np.float32(0))

    return [
        {"up": matrix(hidden, WIDTH), "down": matrix(WIDTH, hidden), "bias": matrix(WIDTH)}
        for _ in range(count)
    ]


def apply(params: Any, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """x and a running sum through one layer."""
    x = x + jnp.tanh(x @ params["up"].T) @ params["down"].T + params["bias"].reshape(1, -1)
    return x, None if state is None else state + x.sum()


def inputs() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(2, WIDTH)).astype(np.float32)


def save_in_parts(path: Path, layers: Sequence[Layer], parts: int) -> Manifest:
    """`endor.save`, with every record cut into several parts."""
    writer = CheckpointWriter(path)
    for i, layer in enumerate(layers):
        arrays = named_leaves(layer)
        specs = {
            name: TensorSpec(array.shape, array.dtype.name, codec_for([array], "raw"))
            for name, array in arrays.items()
        }
        words = sum(33 * array.size // 32 for name, array in arrays.items() if specs[name].codec)
        layout = layout_for(specs, most_words=-(-words // parts))
        assert layout.parts == parts
        writer.write_record(f"layers.{i}", layout, arrays, tree=tree_shape(layer))
    return writer.finish(made={})


def sizes(manifest: Manifest) -> tuple[int, int]:
    """Bytes of one buffer, of one expanded layer."""
    buffer = max(record.buffer_bytes for record in manifest.records)
    return buffer, max(signature.layout.dense_bytes for signature in manifest.signatures)


def device_budget(path: Path, residents: int) -> int:
    """The expanded layer and so many records. Those that are streamed take none here: memory is shared."""
    buffer, dense = sizes(endor.open(path).manifest)
    return dense + residents * buffer


def host_budget(path: Path, buffers: int) -> int:
    """So many records, in the ring or kept."""
    return buffers * sizes(endor.open(path).manifest)[0]
