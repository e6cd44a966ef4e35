"""Quantised weights: signed integers with a scale per row and group of columns, and how they are chosen.

An element is float32(integer) · float32(scale), exact, rounded to the dtype once (docs/format.md, "Codecs").
The scale of a group is a clipping search: the largest magnitude shrunk by one of a few ratios, whichever
leaves the smallest squared error. Whoever decides integers and scales in another way makes a `Quantised`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, FloatFormat, dtype_from_name
from endor_jax.errors import InvalidInputError
from endor_jax.format.layout import GROUP, matrix_shape

RATIOS = {8: (1.0, 0.98), 4: (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)}
"""Shares of a group's largest magnitude that are tried as the largest value, by bits of the integers.

Error of SmolLM2's matrices at 50 % zeros, relative to their norm: 4 bits 0.091 with 1.0 alone, 0.081 with
these, 0.0805 with fifty ratios down to 0.5; 8 bits 0.0053 with any. (0.98 is for float16 near its end.)
"""
SMALLEST_SCALE = 2.0**-24
"""The smallest float16 above 0: what is below half of it becomes 0."""
_BLOCK_ELEMENTS = 1 << 16
"""Elements quantised at a time: float32 temporaries of them stay in the second-level cache."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """A float array as integers and scales.

    values: (rows, columns) int8, within ±127 or ±7. scales: (rows, groups) float16, finite, at least 0; group
    g holds columns 128·g on. shape and dtype: those of the array that `dequantise` gives; rows are the
    product of all axes but the last. Raises InvalidInputError if shapes or dtypes do not agree.
    """

    values: np.ndarray
    scales: np.ndarray
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.shape)
        for name, dtype, array, shape in (
            ("values", "int8", self.values, (rows, columns)),
            ("scales", "float16", self.scales, (rows, -(-columns // GROUP))),
        ):
            if array.shape != shape or array.dtype != dtype:
                raise InvalidInputError(
                    f"quantised array of shape {self.shape}",
                    got=f"{name} of {array.dtype} and shape {array.shape}",
                    expected=f"{dtype} and {shape}",
                    fix=f"give one value per element, and one scale per row and {GROUP} columns",
                )

    def rows(self, first: int, last: int) -> Quantised:
        """Rows first, ..., last − 1 as a matrix, uncopied."""
        values = self.values[first:last]
        return Quantised(values, self.scales[first:last], values.shape, self.dtype)


def largest_value(bits: int) -> int:
    """The largest integer of so many bits that is used: its negative is the smallest."""
    return (1 << (bits - 1)) - 1


def quantise(
    array: np.ndarray, bits: int, *, importance: np.ndarray | None = None, where: str = "array"
) -> Quantised:
    """The integers of 8 or 4 bits and the scales that are nearest to an array.

    array: bfloat16, float16 or float32, rank 2 or more. Per row and group of 128 columns the scale minimises
    Σ importance_c · (w − element)² over RATIOS; of several the largest. importance: (columns,) float32, 0 or
    more; None weighs all alike. The sign of a zero is not kept. One thread, deterministic. where: what to
    call the array. Raises InvalidInputError for elements that are infinite, NaN or too large for any scale.
    """
    number = FLOAT_FORMATS[array.dtype.name]
    rows, columns = matrix_shape(array.shape)
    matrix, groups = array.reshape(rows, columns), -(-columns // GROUP)
    weights = None
    if importance is not None:
        weights = np.zeros(groups * GROUP, np.float32)
        weights[:columns] = importance
        weights = weights.reshape(groups, GROUP)
    values, scales = np.empty((rows, columns), np.int8), np.empty((rows, groups), np.float16)
    step = max(1, _BLOCK_ELEMENTS // columns)
    for row in range(0, rows, step):
        block = matrix[row : row + step]
        held = np.zeros((block.shape[0], groups * GROUP), np.float32)
        held[:, :columns] = block
        held = held.reshape(-1, groups, GROUP)
        largest = _largest(held, bits, where)
        found = _search(held, largest, bits, weights, number)
        integers = _nearest(held, found, bits).reshape(block.shape[0], -1)
        values[row : row + step] = integers[:, :columns]
        # A group that nothing is left of has scale 0: every matrix has one encoding.
        used = np.abs(integers.reshape(held.shape)).max(axis=2) > 0
        scales[row : row + step] = np.where(used, found, np.float16(0))
    return Quantised(values, scales, array.shape, array.dtype.name)


def dequantise(quantised: Quantised) -> np.ndarray:
    """The array of shape `quantised.shape` and dtype `quantised.dtype` that these integers stand for."""
    rows, columns = quantised.values.shape
    elements = np.empty((rows, columns), dtype_from_name(quantised.dtype))
    step = max(1, _BLOCK_ELEMENTS // columns)
    for row in range(0, rows, step):
        here = slice(row, row + step)
        elements[here] = elements_of(quantised.values[here], quantised.scales[here], quantised.dtype)
    return elements.reshape(quantised.shape)


def elements_of(values: np.ndarray, scales: np.ndarray, dtype: str) -> np.ndarray:
    """(n, columns) int8 and (n, groups) float16 -> elements (n, columns) of a float format."""
    with np.errstate(invalid="ignore", over="ignore"):  # scales of a damaged part
        spread = np.repeat(scales.astype(np.float32), GROUP, axis=1)[:, : values.shape[1]]
        return (values.astype(np.float32) * spread).astype(dtype_from_name(dtype))


def check_quantised(quantised: Quantised, bits: int, *, where: str) -> None:
    """Raises InvalidInputError unless the format can hold these values under a codec of so many bits."""
    most, groups = largest_value(bits), np.arange(0, quantised.values.shape[1], GROUP)
    magnitudes = np.maximum.reduceat(np.abs(quantised.values.astype(np.int16)), groups, axis=1)
    scales = quantised.scales.astype(np.float32)
    largest = magnitudes * scales
    for bad, got, expected in (
        (magnitudes > most, f"a value of ±{magnitudes.max()}", f"values within ±{most}"),
        (~np.isfinite(scales) | (scales < 0), "a scale that is negative or not finite", "0 or more"),
        ((scales == 0) & (magnitudes > 0), "values in a group of scale 0", "a scale above 0"),
        (overflows(largest, FLOAT_FORMATS[quantised.dtype]), "an element that overflows", quantised.dtype),
    ):
        if np.any(bad):
            row, group = (int(i) for i in np.argwhere(bad)[0])
            place = f"row {row}, columns from {group * GROUP} on"
            raise InvalidInputError(where, got=f"{got} ({place})", expected=expected, fix="quantise it again")


def overflows(largest: np.ndarray, number: FloatFormat) -> np.ndarray:
    """Which float32 products of integers and scales are infinite once rounded: only float16 is so narrow."""
    return largest >= 65520 if number.name == "float16" else np.zeros(largest.shape, bool)


def _largest(weights: np.ndarray, bits: int, where: str) -> np.ndarray:
    """Largest magnitude of each group, (n, groups, GROUP) -> (n, groups); refuses what no scale reaches."""
    largest = np.maximum(weights.max(axis=2), -weights.min(axis=2))
    limit = largest_value(bits) * float(np.finfo(np.float16).max)
    if not np.all(largest <= limit):  # NaN is not
        worst = largest[~(largest <= limit)][0]
        raise InvalidInputError(
            where,
            got=f"an element of magnitude {worst:g}",
            expected=f"finite ones of at most {limit:,.0f}, {largest_value(bits)} times the largest scale",
            fix="store it under a codec without loss (values='auto'), or repair it first",
        )
    return largest


def _search(
    weights: np.ndarray, largest: np.ndarray, bits: int, importance: np.ndarray | None, number: FloatFormat
) -> np.ndarray:
    """The scale of each group, (n, groups) float16: of the tried ones that with the smallest error."""
    best = np.zeros(largest.shape, np.float16)
    smallest = np.full(largest.shape, np.inf, np.float32)
    error = np.empty(weights.shape, np.float32)
    for ratio in RATIOS[bits]:
        scale = _scale(largest, ratio, bits)
        wide = scale.astype(np.float32)[:, :, None]
        _integers(weights, wide, bits, out=error)
        np.multiply(error, wide, out=error)
        _round(error, number)
        np.subtract(error, weights, out=error)
        np.square(error, out=error)
        if importance is not None:
            np.multiply(error, importance, out=error)
        total = error.sum(axis=2)
        total[overflows(largest_value(bits) * wide[:, :, 0], number)] = np.inf
        better = total < smallest
        smallest[better], best[better] = total[better], scale[better]
    return best


def _scale(largest: np.ndarray, ratio: float, bits: int) -> np.ndarray:
    """float16 scales at which the largest value stands for `ratio` of the largest magnitude."""
    wide = np.maximum(largest * np.float32(ratio / largest_value(bits)), np.float32(SMALLEST_SCALE))
    return wide.astype(np.float16)


def _nearest(weights: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The integers of (n, groups, GROUP) weights, int8, under scales (n, groups)."""
    found = np.empty(weights.shape, np.float32)
    _integers(weights, scales.astype(np.float32)[:, :, None], bits, out=found)
    return found.astype(np.int8)


def _integers(weights: np.ndarray, scales: np.ndarray, bits: int, *, out: np.ndarray) -> None:
    most = np.float32(largest_value(bits))
    np.divide(weights, scales, out=out)
    np.rint(out, out=out)
    np.minimum(out, most, out=out)
    np.maximum(out, -most, out=out)


def _round(values: np.ndarray, number: FloatFormat) -> None:
    """Rounds finite float32 values to a narrower format, to nearest even, in place."""
    if number.name == "float16":
        with np.errstate(over="ignore"):
            values[...] = values.astype(np.float16)
    elif number.name == "bfloat16":
        bits = values.view(np.uint32)
        last = bits >> np.uint32(16)
        last &= np.uint32(1)
        last += np.uint32(0x7FFF)
        bits += last
        bits &= np.uint32(0xFFFF0000)
