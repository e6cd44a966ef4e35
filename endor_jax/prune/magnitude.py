"""Magnitude pruning: in every row keep the elements of largest absolute value (Han et al., arXiv 1506.02626).

Per row, so that every output keeps the same number of inputs; ties go to the element further left, so that
the result does not depend on a sort's whims.
"""

from __future__ import annotations

import numpy as np

from endor_jax.errors import InvalidInputError


def magnitude_mask(weight: np.ndarray, sparsity: float) -> np.ndarray:
    """Which elements to keep: (rows, columns) float -> (rows, columns) bool.

    Every row loses exactly round(sparsity · columns) elements, natural zeros among them first. Raises
    InvalidInputError unless 0 <= sparsity < 1, and for NaN, which has no magnitude.
    """
    if not 0 <= sparsity < 1:
        raise InvalidInputError(
            "pruning", got=f"sparsity {sparsity}", expected="0 or more and below 1", fix="0.5 drops half"
        )
    size = np.abs(weight.astype(np.float32))
    if np.isnan(size).any():
        raise InvalidInputError(
            "pruning", got="NaN among the weights", expected="numbers", fix="check the source checkpoint"
        )
    columns = weight.shape[1]
    dropped = round(sparsity * columns)
    smallest_kept = (
        np.partition(size, dropped, axis=1)[:, dropped : dropped + 1] if dropped < columns else np.inf
    )
    above, ties = size > smallest_kept, size == smallest_kept
    wanted = columns - dropped - np.count_nonzero(above, axis=1, keepdims=True)
    return above | (ties & (np.cumsum(ties, axis=1) <= wanted))


def apply_mask(weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`weight` with +0.0 wherever the mask is false; a product would leave −0.0 behind."""
    return np.where(mask, weight, weight.dtype.type(0))
