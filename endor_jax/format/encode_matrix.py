"""Encoding one matrix without loss, by NumPy: the oracle whose bytes the compiled extension gives."""

from __future__ import annotations

import numpy as np

from endor_jax.arrays import FloatFormat
from endor_jax.format import bitmap, fields
from endor_jax.format.encoded_matrix import EncodedMatrix
from endor_jax.format.layout import SEGMENT
from endor_jax.format.values import Codec, best_windows, exponent_histogram, exponents_of, pack_fields

BLOCK_ELEMENTS = 1 << 16
"""Elements encoded at a time: their temporaries stay in the second-level cache."""
BLOCK_SEGMENTS = 1 << 12
"""Segments encoded at a time: each has a histogram of 256 counts."""


def encode_matrix(bits: np.ndarray, codec: Codec, number: FloatFormat) -> EncodedMatrix:
    """Encodes (rows, columns) element bits, in the unsigned dtype of `number`.

    Fields are packed as they come: what is held besides the pieces themselves is one block.
    """
    rows, columns = bits.shape
    step, width = block_rows(columns), codec.field_bits(number)
    stored, counts, bases, stream, escaped = [], [], [], [], []
    rest = np.zeros(0, number.unsigned)
    for row in range(0, rows, step):
        words, count, base, values, index = _encode_rows(bits[row : row + step], codec, number)
        stored.append(words)
        counts.append(count)
        bases.append(base)
        escaped.append((index + row * columns).astype(np.uint32))
        values = np.concatenate([rest, values])
        whole = values.shape[0] - values.shape[0] % fields.WORD_BITS  # 32 fields end on a whole word
        stream.append(fields.pack(values[:whole], width))
        rest = values[whole:].copy()
    stream.append(fields.pack(rest, width))
    escape_index = np.concatenate(escaped)
    return EncodedMatrix(
        bitmap=np.concatenate(stored) if codec.bitmap else None,
        counts=np.concatenate(counts),
        bases=np.concatenate(bases) if codec.kind == "packed" else None,
        scales=None,
        stream=np.concatenate(stream),
        escape_index=escape_index,
        escape_bits=bits.reshape(-1)[escape_index],
        nonzero=int(np.count_nonzero(bits)),
    )


def block_rows(columns: int) -> int:
    """Rows of this many columns that are encoded at a time."""
    return max(1, min(BLOCK_ELEMENTS // columns, BLOCK_SEGMENTS))


def _encode_rows(bits: np.ndarray, codec: Codec, number: FloatFormat) -> tuple[np.ndarray, ...]:
    """One block of rows: bitmap words, counts, bases, fields (n,), escape indices (m,) within the block."""
    rows, columns = bits.shape
    segment = min(SEGMENT, columns)
    segments = -(-columns // segment)
    if columns % segment:
        bits = np.pad(bits, ((0, 0), (0, segments * segment - columns)))
    cut = bits.reshape(-1, segment)
    bases = np.zeros(cut.shape[0], np.uint8)
    if codec.kind == "packed":
        exponents = exponents_of(cut, number)
        bases, _ = best_windows(exponent_histogram(exponents, number), codec.exponent_bits)
        fits, values = pack_fields(cut, exponents, bases, codec, number)
    else:
        fits, values = (cut != 0) if codec.bitmap else np.ones(cut.shape, bool), cut
    whole = (rows, segments * segment)
    fits, values = fits.reshape(whole)[:, :columns], values.reshape(whole)[:, :columns]
    bits = bits[:, :columns]
    if codec.bitmap:
        escaped = np.flatnonzero((bits != 0) & ~fits)
        words = bitmap.pack(fits)
        starts = np.arange(0, columns, segment)
        counts = np.add.reduceat(fits, starts, axis=1, dtype=np.int64)
        return words, counts, bases.reshape(rows, segments), values[fits], escaped
    escaped = np.flatnonzero(~fits)
    widths = np.diff(np.append(np.arange(0, columns, segment), columns))
    counts = np.broadcast_to(widths, (rows, segments))
    values = np.where(fits, values, values.dtype.type(0))
    return np.zeros((0, 0), np.uint32), counts, bases.reshape(rows, segments), values.reshape(-1), escaped
