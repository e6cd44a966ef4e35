"""Pruned random matrices to measure with, and enough copies of them that no cache holds what is read next."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, dtype_from_name
from endor_jax.errors import OptionError
from endor_jax.format.tensor import SparseTensor
from endor_jax.prune.magnitude import apply_mask, magnitude_mask

BLOCK_ELEMENTS = 1 << 22
"""Random numbers drawn at a time: 16 MiB of float32."""
CACHES = 4
"""Distinct matrices total at least this many times the last-level cache."""

Shape = tuple[int, int]
"""(outputs, inputs), as the weight of a linear layer is stored."""


def parse_shape(text: str) -> Shape:
    """The shape called "4096x11008": outputs, then inputs. Raises OptionError for any other text."""
    numbers = text.replace("×", "x").split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise OptionError(
            "shape", got=repr(text), expected="outputs x inputs, such as 4096x11008", fix="write it like this"
        )
    return int(numbers[0]), int(numbers[1])


def shape_name(shape: Shape) -> str:
    """What `parse_shape` reads."""
    return "x".join(map(str, shape))


def pruned_weights(shape: Shape, *, sparsity: float, dtype: str, seed: int = 0) -> np.ndarray:
    """Normal weights with the spread of trained ones, every row pruned by magnitude to `sparsity` exactly.

    Raises OptionError for a dtype that no codec is for, InvalidInputError for a sparsity that cannot be.
    """
    if dtype not in FLOAT_FORMATS:
        raise OptionError(
            "dtype", got=repr(dtype), expected=", ".join(FLOAT_FORMATS), fix="choose one of these"
        )
    random = np.random.default_rng(seed)
    weights = np.empty(shape, dtype_from_name(dtype))
    step = max(1, BLOCK_ELEMENTS // shape[1])
    for row in range(0, shape[0], step):
        block = weights[row : row + step]
        block[:] = np.float32(shape[1] ** -0.5) * random.standard_normal(block.shape, np.float32)
        block[:] = apply_mask(block, magnitude_mask(block, sparsity))
    return weights


def copies_beyond(cache_bytes: int, matrix_bytes: int) -> int:
    """How many matrices of this size total CACHES times the cache: two at least."""
    return max(2, -(-CACHES * cache_bytes // matrix_bytes))


def copies(array: np.ndarray, cache_bytes: int) -> list[jax.Array]:
    """So many copies of an array on the device: each has memory of its own, which is what a cache sees."""
    return [jnp.array(array, copy=True) for _ in range(copies_beyond(cache_bytes, array.nbytes))]


def sparse_copies(tensor: SparseTensor, cache_bytes: int) -> list[SparseTensor]:
    """So many copies of a compressed matrix of one part on the device."""
    (words,) = tensor.parts
    return [SparseTensor((held,), tensor.layout) for held in copies(np.asarray(words), cache_bytes)]


def stored_bytes(tensor: SparseTensor) -> int:
    """Bytes of its words."""
    return sum(4 * np.asarray(words).size for words in tensor.parts)
