"""Magnitude pruning: keep the elements of largest absolute value (Han et al., arXiv 1506.02626).

By default per row, so that every output keeps the same number of inputs; ties go to the element further left
(of a whole matrix: the earlier row first), so that the result does not depend on a sort's whims. NumPy: it
needs no calibration, and a conversion without any prunes a block of rows at a time.
"""

from __future__ import annotations

import numpy as np

from endor_jax.errors import InvalidInputError
from endor_jax.prune.structure import ROW, Structure, drop_count, dropped_of_group


def magnitude_mask(
    weight: np.ndarray, sparsity: float | None = None, *, structure: Structure = ROW
) -> np.ndarray:
    """Which elements to keep: (rows, columns) float -> (rows, columns) bool.

    Every row loses exactly dropped(sparsity, columns) elements, natural zeros among them first; the whole
    matrix dropped(sparsity, rows · columns) with structure MATRIX; every group what the structure says.
    `sparsity` may be left out where the structure fixes it. Raises InvalidInputError unless
    0 <= sparsity < 1, and for NaN, which has no magnitude.
    """
    rows, columns = weight.shape
    drop = drop_count(structure, sparsity, (rows, columns))
    size = np.abs(weight.astype(np.float32))
    if np.isnan(size).any():
        raise InvalidInputError(
            "pruning", got="NaN among the weights", expected="numbers", fix="check the source checkpoint"
        )
    if structure.scope == "row":
        return _highest(size, drop)
    if structure.scope == "matrix":
        return _highest(size.reshape(1, -1), drop).reshape(rows, columns)
    whole = columns - columns % structure.of
    groups = size[:, :whole].reshape(-1, structure.of)
    mask = np.empty(size.shape, bool)
    mask[:, :whole] = _highest(groups, structure.of - structure.kept).reshape(rows, whole)
    mask[:, whole:] = _highest(size[:, whole:], dropped_of_group(structure, columns - whole))
    return mask


def apply_mask(weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`weight` with +0.0 wherever the mask is false; a product would leave −0.0 behind."""
    return np.where(mask, weight, weight.dtype.type(0))


def _highest(size: np.ndarray, drop: int) -> np.ndarray:
    """Which elements of every row are left when the `drop` smallest, of equals the rightmost, are gone."""
    columns = size.shape[1]
    if drop == columns:
        return np.zeros(size.shape, bool)
    smallest_kept = np.partition(size, drop, axis=1)[:, drop : drop + 1]
    above, ties = size > smallest_kept, size == smallest_kept
    wanted = columns - drop - np.count_nonzero(above, axis=1, keepdims=True)
    return above | (ties & (np.cumsum(ties, axis=1) <= wanted))
