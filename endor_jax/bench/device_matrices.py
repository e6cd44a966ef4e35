"""Matrices to measure a device with: layer shapes of large models, random weights, copies on the device.

A device reads every matrix from its own addresses, so what is in it only has to be as random as weights are:
random rows are made once, and repeated until the matrix is full. The codecs see one row at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from endor_jax.arrays import array_bytes
from endor_jax.bench.device_timing import matrices_of
from endor_jax.bench.matrices import BLOCK_ELEMENTS, Shape, pruned_weights, stored_bytes
from endor_jax.format.encode import encode_array
from endor_jax.format.quantise import Quantised, dequantise, quantise
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import INTEGER_BITS, parse_codec

MODEL_SHAPES: Mapping[str, tuple[Shape, ...]] = {
    "Llama-2-7B": ((4096, 4096), (11008, 4096), (4096, 11008)),
    "Llama-2-70B": ((8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672)),
    "OPT-66B": ((9216, 9216), (36864, 9216), (9216, 36864)),
}
"""Distinct shapes of the matrices in one layer: attention, then up and down."""
ALL_SHAPES: tuple[Shape, ...] = tuple(shape for shapes in MODEL_SHAPES.values() for shape in shapes)


@dataclass(frozen=True)
class DeviceMatrix:
    """A compressed matrix as the device holds it, and what it expands to on the host.

    words: the one part, uint32. dense: (outputs, inputs), with the bits that expanding must give.
    """

    words: np.ndarray
    dense: np.ndarray
    tensor: SparseTensor

    @property
    def stored_bytes(self) -> int:
        """Bytes of its words."""
        return stored_bytes(self.tensor)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense matrix."""
        return array_bytes(self.tensor.shape, self.tensor.dtype)


def device_matrix(shape: Shape, *, codec: str, sparsity: float, dtype: str) -> DeviceMatrix:
    """A matrix of random weights, every row pruned to `sparsity`, under a codec. Raises as `encode` does."""
    rows = max(1, min(shape[0], BLOCK_ELEMENTS // shape[1]))
    block = pruned_weights((rows, shape[1]), sparsity=sparsity, dtype=dtype)
    bits = INTEGER_BITS.get(parse_codec(codec).kind)
    if bits is None:
        dense = _repeated(block, shape[0])
        tensor = encode_array(dense, codec)
    else:
        few = quantise(block, bits)
        values, scales = _repeated(few.values, shape[0]), _repeated(few.scales, shape[0])
        tensor = encode_array(Quantised(values, scales, shape, dtype), codec)
        dense = _repeated(dequantise(few), shape[0])
    (words,) = tensor.parts
    return DeviceMatrix(np.asarray(words), dense, tensor)


def _repeated(block: np.ndarray, rows: int) -> np.ndarray:
    """So many rows: those of the block, again and again."""
    return np.resize(block, (rows, *block.shape[1:]))


def words_on_device(matrix: DeviceMatrix, cache_bytes: int, *, moved_bytes: int) -> tuple[jax.Array, ...]:
    """Copies of a compressed matrix, as many as a program works on (`matrices_of`)."""
    count = matrices_of(cache_bytes, matrix_bytes=matrix.stored_bytes, moved_bytes=moved_bytes)
    return copies_on_device(jnp.asarray(matrix.words), count)


def copies_on_device(array: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """So many arrays with the same elements, each with memory of its own."""
    return tuple(jnp.array(array, copy=True) for _ in range(count))


def measured_sparsity(codec: str, sparsity: float) -> float:
    """That a codec is measured at: one without a bitmap stores every zero, and is for unpruned weights."""
    return sparsity if parse_codec(codec).bitmap else 0.0
