"""One tensor of a source, as it will be stored: cast, pruned, without −0.0. Pure but for the reading."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, bits_of, dtype_from_name
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import InvalidInputError
from endor_jax.prune.magnitude import apply_mask, magnitude_mask
from endor_jax.sources.mapping import Place
from endor_jax.sources.source import Source


@dataclass(frozen=True)
class Prepared:
    """The array to store, and how many −0.0 became +0.0 in it."""

    array: np.ndarray
    negative_zeros: int


def prepare(source: Source, name: str, place: Place, *, settings: ConvertSettings) -> Prepared:
    """Reads a tensor and applies the settings that concern it.

    Raises InvalidInputError if the cast would turn a finite value into an infinity.
    """
    array = cast(source.read(name), name, settings.dtype)
    if prunable(place, array.shape) and settings.sparsity is not None:
        array = apply_mask(array, magnitude_mask(array, settings.sparsity))
    if settings.keep_negative_zero or array.dtype.name not in FLOAT_FORMATS:
        return Prepared(array, 0)
    bits = bits_of(array)
    negative = bits == bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    count = int(np.count_nonzero(negative))
    return Prepared(np.where(negative, bits.dtype.type(0), bits).view(array.dtype) if count else array, count)


def prunable(place: Place, shape: tuple[int, ...]) -> bool:
    """Matrices of the layers are pruned; embeddings, head, norms and biases are not."""
    return place.record.startswith("layers.") and len(shape) == 2


def cast(array: np.ndarray, name: str, dtype: str | None) -> np.ndarray:
    """The array in another float format, rounded to nearest even; as it is for None or a non-float array."""
    if dtype is None or array.dtype.name == dtype or array.dtype.name not in FLOAT_FORMATS:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype_from_name(dtype))
    overflowed = np.isinf(result.astype(np.float32)) & np.isfinite(array.astype(np.float32))
    if overflowed.any():
        raise InvalidInputError(
            f"tensor {name!r}",
            got=f"{int(overflowed.sum())} values too large for {dtype}",
            expected="finite values",
            fix="use --dtype bfloat16 or float32",
        )
    return result
