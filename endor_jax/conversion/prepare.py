"""One tensor of a source, as it will be stored: cast, pruned by magnitude, without −0.0.

A block of rows at a time, where the pruning lets rows be treated one by one.

What a source reads is memory of our own, so it is worked on in place; only a cast needs a second array.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, bits_of, dtype_from_name
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import InvalidInputError, about
from endor_jax.prune.magnitude import apply_mask, magnitude_mask
from endor_jax.sources.mapping import Place
from endor_jax.sources.source import Source
from endor_jax.store.digest import digest_bytes

BLOCK_ELEMENTS = 1 << 18
"""Elements worked on at a time; the temporaries of pruning take about 24 bytes for each."""


@dataclass(frozen=True)
class Prepared:
    """The array to store, how many −0.0 became +0.0 in it, and the digest of the bytes that were read."""

    array: np.ndarray
    negative_zeros: int
    digest: str


def prepare(
    source: Source, name: str, place: Place, *, settings: ConvertSettings, sparsity: float | None = None
) -> Prepared:
    """Reads a tensor and applies the settings that concern it, but for methods that are calibrated.

    sparsity: of its layer, None takes that of the settings.
    Raises InvalidInputError if the cast would turn a finite value into an infinity, or if NaN would be
    pruned.
    """
    read = source.read(name)
    digest = source_digest(read)
    array = np.require(cast(read, name, settings.dtype), requirements=["C", "W"])
    del read
    if prunable(place, array.shape) and settings.prune == "magnitude":
        asked, structure = settings.target_sparsity if sparsity is None else sparsity, settings.mask_structure
        with about(f"tensor {name!r}"):
            for block in [array] if structure.scope == "matrix" else _blocks(array):
                block[:] = apply_mask(block, magnitude_mask(block, asked, structure=structure))
    if settings.keep_negative_zero or array.dtype.name not in FLOAT_FORMATS:
        return Prepared(array, 0, digest)
    count = 0
    for block in _blocks(bits_of(array)):
        negative = block == block.dtype.type(1 << (8 * block.dtype.itemsize - 1))
        count += int(np.count_nonzero(negative))
        block[negative] = 0
    return Prepared(array, count, digest)


def source_digest(array: np.ndarray) -> str:
    """The digest of a tensor's bytes as it was read."""
    return digest_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def prunable(place: Place, shape: tuple[int, ...]) -> bool:
    """Matrices of the layers are pruned; embeddings, head, norms and biases are not."""
    return place.record.startswith("layers.") and len(shape) == 2


def cast(array: np.ndarray, name: str, dtype: str | None) -> np.ndarray:
    """The array in another float format, rounded to nearest even; as it is for None or a non-float array."""
    if dtype is None or array.dtype.name == dtype or array.dtype.name not in (*FLOAT_FORMATS, "float64"):
        return array
    result = np.empty(array.shape, dtype_from_name(dtype))
    overflowed = 0
    with np.errstate(over="ignore"):
        for block, before in zip(_blocks(result), _blocks(array), strict=True):
            block[...] = before.astype(block.dtype)
            wide = before.astype(np.promote_types(before.dtype, np.float32))
            infinite = np.isinf(block.astype(np.float32)) & np.isfinite(wide)
            overflowed += int(np.count_nonzero(infinite))
    if overflowed:
        raise InvalidInputError(
            f"tensor {name!r}",
            got=f"{overflowed} values too large for {dtype}",
            expected="finite values",
            fix="use --dtype bfloat16 or float32",
        )
    return result


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Views of whole rows of an array, about BLOCK_ELEMENTS each; a scalar or an empty array as it is."""
    if array.ndim == 0 or array.size == 0:
        yield array
        return
    step = max(1, BLOCK_ELEMENTS * array.shape[0] // array.size)
    for row in range(0, array.shape[0], step):
        yield array[row : row + step]
