"""Encoding integers with scales: the pieces of a matrix under `int8` and `int4`, by NumPy."""

from __future__ import annotations

import numpy as np

from endor_jax.arrays import FLOAT_FORMATS
from endor_jax.format import bitmap, fields
from endor_jax.format.encoded_matrix import EncodedMatrix
from endor_jax.format.layout import GROUP, SEGMENT
from endor_jax.format.quantise import Quantised
from endor_jax.format.values import INTEGER_BITS, Codec

_BLOCK_ELEMENTS = 1 << 16
"""Elements taken at a time: their masks stay in the second-level cache."""


def encode_quantised(quantised: Quantised, codec: Codec) -> EncodedMatrix:
    """Encodes integers that `check_quantised` has let through. Beside the pieces one byte per field is held.

    A group without anything but zeros gets scale 0, whatever its scale was.
    """
    values = quantised.values
    rows, columns = values.shape
    segment = min(SEGMENT, columns)
    starts, groups = np.arange(0, columns, segment), np.arange(0, columns, GROUP)
    stored, counts, scales, taken = [], [], [], []
    step = max(1, _BLOCK_ELEMENTS // columns)
    for row in range(0, rows, step):
        block = values[row : row + step]
        nonzero = block != 0
        used = np.logical_or.reduceat(nonzero, groups, axis=1)
        scales.append(np.where(used, quantised.scales[row : row + step], np.float16(0)))
        if codec.bitmap:
            stored.append(bitmap.pack(nonzero))
            counts.append(np.add.reduceat(nonzero, starts, axis=1, dtype=np.int64))
            taken.append(block[nonzero])
        else:
            counts.append(np.broadcast_to(np.diff(np.append(starts, columns)), (len(block), len(starts))))
            taken.append(block.reshape(-1))
    held = np.concatenate(taken)
    return EncodedMatrix(
        bitmap=np.concatenate(stored) if codec.bitmap else None,
        counts=np.concatenate(counts),
        bases=None,
        scales=np.concatenate(scales),
        stream=fields.pack_signed(held, INTEGER_BITS[codec.kind]),
        escape_index=np.zeros(0, np.uint32),
        escape_bits=np.zeros(0, FLOAT_FORMATS[quantised.dtype].unsigned),
        nonzero=int(np.count_nonzero(held)),
    )
