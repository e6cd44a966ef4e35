"""The bitmap: one bit per element, row by row, little-endian in uint32 words.

Bit j of word k of row r says whether element (r, 32k + j) is in the value stream. Each row starts on a word
of its own; bits past the last column are 0. When the column count is a multiple of 32 the bytes are those of
the `sparse-bitmask` layout of compressed-tensors.
"""

from __future__ import annotations

import numpy as np

WORD_BITS = 32


def words_per_row(columns: int) -> int:
    """How many uint32 words a row of this many columns takes."""
    return -(-columns // WORD_BITS)


def pack(mask: np.ndarray) -> np.ndarray:
    """(rows, columns) bool -> (rows, words_per_row) uint32."""
    rows, columns = mask.shape
    width = 4 * words_per_row(columns)
    packed = np.packbits(mask, axis=1, bitorder="little")
    if packed.shape[1] != width:
        packed = np.pad(packed, ((0, 0), (0, width - packed.shape[1])))
    return packed.view("<u4").reshape(rows, -1)


def unpack(words: np.ndarray, columns: int) -> np.ndarray:
    """(rows, words_per_row) uint32 -> (rows, columns) bool."""
    held = np.ascontiguousarray(words).view(np.uint8)
    return np.unpackbits(held, axis=1, count=columns, bitorder="little").view(bool)
