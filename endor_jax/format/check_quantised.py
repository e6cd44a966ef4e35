"""The invariants of integers and scales in a part (docs/format.md, "Scales"), checked on its words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from endor_jax.format import bitmap, fields
from endor_jax.format.layout import GROUP, FieldLayout
from endor_jax.format.quantise import largest_value, overflows

_BLOCK_ELEMENTS = 1 << 18
"""Elements looked at together."""


def check_integers(
    stream: np.ndarray, words: np.ndarray, layout: FieldLayout, counts: np.ndarray
) -> Iterator[tuple[str, str]]:
    """What is wrong with the integers and scales of a tensor, as (got, expected), the first of each kind.

    stream: words of the part from the first field on; words: all of the part. counts: (rows, segments) fields
    per segment, as the bitmap says.
    """
    seen = set()
    step, before = max(1, _BLOCK_ELEMENTS // layout.columns), 0
    for row in range(0, layout.rows, step):
        last = min(row + step, layout.rows)
        count = int(counts[row:last].sum())
        held = fields.read_signed(stream, before, count, layout.field_bits)
        before += count
        for kind, got, expected in _violations(held, words, layout=layout, rows=slice(row, last)):
            if kind not in seen:
                seen.add(kind)
                yield got, expected


def _violations(
    held: np.ndarray, words: np.ndarray, *, layout: FieldLayout, rows: slice
) -> Iterator[tuple[str, str, str]]:
    """(kind, got, expected) of what is wrong in some rows, whose fields are `held`, int8."""
    lowest = -largest_value(layout.field_bits) - 1
    if np.any(held == lowest):
        yield "lowest", f"a field of {lowest}", f"values within ±{-lowest - 1}"
    values = _matrix(held, words, layout=layout, rows=rows)
    if values is None:  # bitmap bits past the last column, which are a violation of their own
        return
    if layout.bitmap is not None and not np.all(held):
        yield "zero", "a field that is 0", "a zero that is stored nowhere"
    assert layout.scales is not None
    section = words[layout.scales.start : layout.scales.stop].view(np.float16)
    wide = section[: layout.rows * layout.groups].reshape(-1, layout.groups)[rows].astype(np.float32)
    magnitudes = np.abs(values.astype(np.int16))
    largest = np.maximum.reduceat(magnitudes, np.arange(0, layout.columns, GROUP), axis=1)
    finite = np.isfinite(wide)
    for kind, bad, got, expected in (
        ("finite", ~finite, "that is not finite", "a finite scale"),
        ("sign", np.signbit(wide) & finite, "with a sign", "a scale of 0 or more"),
        ("empty", (largest == 0) & (wide != 0), "for a group of zeros", "0"),
        ("used", (largest > 0) & (wide == 0), "0 for a group with values", "more than 0"),
        (
            "overflow",
            overflows(largest * np.where(finite, wide, 0), layout.number),
            "too large",
            "no infinity",
        ),
    ):
        if np.any(bad):
            at, group = np.argwhere(bad)[0]
            yield kind, f"a scale {got} in row {rows.start + at}, columns from {group * GROUP} on", expected


def _matrix(held: np.ndarray, words: np.ndarray, *, layout: FieldLayout, rows: slice) -> np.ndarray | None:
    """Fields in their columns, (rows, columns) int8; None if there are more of them than columns."""
    values = np.zeros((rows.stop - rows.start, layout.columns), np.int8)
    if layout.bitmap is None:
        values.reshape(-1)[: held.shape[0]] = held  # what follows is padding
        return values
    section = words[layout.bitmap.start : layout.bitmap.stop].reshape(layout.rows, -1)
    mask = bitmap.unpack(section[rows], layout.columns)
    if int(np.count_nonzero(mask)) != held.shape[0]:
        return None
    values[mask] = held
    return values
