"""`save`: any parameter trees, one per layer, to a checkpoint that `stream` can run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, native
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.choose import choose_codec, codec_size, sample_rows
from endor_jax.format.codec import encodable
from endor_jax.format.layout import (
    PART_LIMIT_WORDS,
    RecordLayout,
    TensorSpec,
    matrix_shape,
    plan_layout,
)
from endor_jax.format.tree import named_leaves, tree_shape
from endor_jax.format.values import Codec
from endor_jax.store.manifest import Manifest
from endor_jax.store.writer import CheckpointWriter

_Role = tuple[str, tuple[int, ...], str]
"""Name, shape and dtype of a leaf."""

_PYTHON_NUMBERS = {int: np.int32, float: np.float32}

SMALL_ELEMENTS = 4096
"""Arrays below this are stored dense: a bitmap and an offset would save nothing worth a launch."""


def save(path: str | os.PathLike[str], layers: Iterable[Any], *, values: str = "auto") -> Manifest:
    """Writes one record per parameter tree, in order, and returns the manifest.

    layers: pytrees of arrays and numbers, taken one at a time. values: "auto", "raw", "packed" or "packed:K",
    for every float leaf of rank 2 or more with at least 4096 elements; the rest is stored dense. Lossless,
    but for "int8" and "int4", which quantise.
    The codec of a role (a leaf name with its shape) is settled where it first occurs, so that equal layers
    share one compiled step; with "auto", a layer that it would inflate gets its own.
    What an interrupted `save` leaves cannot be gone on with: its layers came from a running program.
    Raises DestinationExistsError, DestinationBusyError, StorageError, UnsupportedError for leaves the format
    cannot hold, InvalidInputError for an empty sequence, or leaves with NaN or infinities that are to be
    quantised.
    """
    named = ((f"layers.{index}", layer) for index, layer in enumerate(layers))
    return save_records(path, named, values=values, by="save")


def save_records(
    path: str | os.PathLike[str], trees: Iterable[tuple[str, Any]], *, values: str, by: str
) -> Manifest:
    """`save` of trees that have names of their own, in order. by: the public function that was called.

    Raises as `save` does.
    """
    with CheckpointWriter(path, job={"by": by}) as writer:
        codecs: dict[_Role, Codec | None] = {}
        empty = True
        for record, tree in trees:
            empty = False
            arrays = {name: _array(name, leaf) for name, leaf in named_leaves(tree).items()}
            specs = {
                name: TensorSpec(array.shape, array.dtype.name, _settled(codecs, name, array, values))
                for name, array in arrays.items()
            }
            writer.write_record(record, layout_for(specs), arrays, tree=tree_shape(tree))
        if empty:
            raise InvalidInputError(
                by, got="no layers", expected="at least one", fix="pass one tree per layer"
            )
        return writer.finish(made={"by": f"endor_jax.{by}", "values": values})


def _settled(codecs: dict[_Role, Codec | None], name: str, array: np.ndarray, values: str) -> Codec | None:
    """The codec of a leaf: that of its role, noted when it first occurs."""
    role = (name, array.shape, array.dtype.name)
    if role not in codecs:
        codecs[role] = codec_for([array], values)
        return codecs[role]
    codec = codecs[role]
    if codec is not None and values == "auto" and not saves(codec, [array]):
        # Nothing like the layer that its role was settled on: better another signature.
        return codec_for([array], values)
    return codec


def _array(name: str, leaf: Any) -> np.ndarray:
    """A leaf as NumPy holds it; Python's own numbers in the 32 bits that JAX gives them by default."""
    try:
        array = native(np.asarray(leaf, _PYTHON_NUMBERS.get(type(leaf))))
    except (TypeError, OverflowError):  # a PRNG key, or an int that needs more bits
        array = np.asarray(None)
    if array.dtype.kind in "OSU":
        raise UnsupportedError(
            f"leaf {name!r}",
            got=f"{type(leaf).__name__} {' '.join(repr(leaf).split()):.60}",
            expected="an array, or a number that 32 bits hold",
            fix="leave it out of the tree, or convert it (jax.random.key_data, for a key)",
        )
    return array


def codec_for(samples: list[np.ndarray], values: str) -> Codec | None:
    """The codec of a role from samples of it; None means "store its own bytes"."""
    if not encodable(samples[0]) or samples[0].size < SMALL_ELEMENTS:
        return None
    codec = choose_codec(samples, values)
    if codec == Codec("raw", bitmap=False):  # that is the array's own bytes, and offsets
        return None
    return codec if values != "auto" or saves(codec, samples) else None


def saves(codec: Codec, samples: list[np.ndarray]) -> bool:
    """Whether a codec stores samples of a role in fewer bytes than their own; on short rows none may."""
    matrices = [sample_rows(sample.reshape(matrix_shape(sample.shape))) for sample in samples]
    stored = sum(codec_size(matrix, codec)[0] for matrix in matrices)
    return stored < sum(matrix.nbytes for matrix in matrices)


def layout_for(
    specs: Mapping[str, TensorSpec], *, most_words: int = PART_LIMIT_WORDS * 9 // 10
) -> RecordLayout:
    """The layout of a record, cut into as few parts as keep each below `most_words` with every field stored.

    The bound does not look at the values, so that layers of different sparsity are cut alike.
    """
    bits = 0
    for spec in specs.values():
        if spec.codec is not None:
            rows, columns = matrix_shape(spec.shape)
            bits += rows * columns * (1 + spec.codec.field_bits(FLOAT_FORMATS[spec.dtype]))
    return plan_layout(specs, parts=max(1, -(-bits // (32 * most_words))))
