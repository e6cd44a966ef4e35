"""What a method makes of a matrix: the weights that stay, and where."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Bool, Float16, Float32, Int8


class Pruned(NamedTuple):
    """What is left of a matrix.

    weight: float32, +0.0 where the mask is false. mask: where the weight is not zero. values, scales: None
    unless it was quantised; then weight = values · scales in float32, values within ±127 or ±7, one scale for
    128 columns of a row, 0 where all of them are zero.
    """

    weight: Float32[Array, "rows columns"]
    mask: Bool[Array, "rows columns"]
    values: Int8[Array, "rows columns"] | None = None
    scales: Float16[Array, "rows groups"] | None = None
