"""Rows of a stored matrix as the pieces of another part: nothing is decoded, every bit moves as it is.

Bitmap, bases and scales belong to rows or to segments of one row, so they are copied; so are the fields,
which are a run of bits of the stream; escapes count from another row. An encoder would make the same pieces
of the decoded rows (docs/format.md leaves it no choice), and the integers of a quantised matrix stay what
they are.
"""

from __future__ import annotations

import numpy as np

from endor_jax.arrays import array_bytes, dtype_from_name
from endor_jax.format import bitmap, fields
from endor_jax.format.decode import read_escapes
from endor_jax.format.encoded_matrix import EncodedMatrix
from endor_jax.format.layout import FieldLayout, Section, matrix_shape
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec


def cut_rows(tensor: SparseTensor, first: int, last: int) -> EncodedMatrix:
    """Rows first, ..., last − 1 (one at least) of a matrix of fields, from the parts that hold them."""
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    pieces, before = [], []
    for index, words in enumerate(tensor.parts):
        start = index * layout.rows
        low, high = max(first - start, 0), min(last - start, layout.rows)
        if low < high:
            pieces.append(_rows_of(np.asarray(words), layout, low, high))
            before.append(start + low - first)
    return pieces[0] if len(pieces) == 1 else _joined(pieces, before, layout)


def own_bytes(tensor: SparseTensor) -> np.ndarray:
    """The array of a matrix under `dense-raw`, whose fields are its own bytes: what `decode` gives."""
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    assert layout.codec == Codec("raw", bitmap=False)
    rows, _ = matrix_shape(layout.shape)
    held = cut_rows(tensor, 0, rows).stream.view(np.uint8)[: array_bytes(layout.shape, layout.dtype)]
    return held.view(dtype_from_name(layout.dtype)).reshape(layout.shape)


def _rows_of(part: np.ndarray, layout: FieldLayout, low: int, high: int) -> EncodedMatrix:
    """Rows low, ..., high − 1 of one part."""
    rows, columns, codec = high - low, layout.columns, layout.codec
    stored = bases = scales = None
    if layout.bitmap is not None:
        width = bitmap.words_per_row(columns)
        stored = _section(part, layout.bitmap)[low * width : high * width].reshape(rows, width)
    if layout.bases is not None:
        held = _section(part, layout.bases).view(np.uint8)[: layout.rows * layout.segments]
        bases = held.reshape(layout.rows, layout.segments)[low:high]
    if layout.scales is not None:
        held = _section(part, layout.scales).view(np.float16)[: layout.rows * layout.groups]
        scales = held.reshape(layout.rows, layout.groups)[low:high]
    counts = _counts(stored, layout, rows)
    start = int(_section(part, layout.offsets)[low * layout.segments])
    stream = fields.cut(part, start, int(counts.sum()) * layout.field_bits)
    index, values = read_escapes(part, layout)
    begin, end = np.searchsorted(index, np.array([low * columns, high * columns], index.dtype))
    escaped = values[begin:end]
    return EncodedMatrix(
        bitmap=stored if codec.bitmap else None,
        counts=counts,
        bases=bases,
        scales=scales,
        stream=stream,
        escape_index=index[begin:end] - index.dtype.type(low * columns),
        escape_bits=escaped,
        nonzero=_nonzero(layout, stream, int(counts.sum()), escaped),
    )


def _section(part: np.ndarray, section: Section) -> np.ndarray:
    return part[section.start : section.stop]


def _counts(stored: np.ndarray | None, layout: FieldLayout, rows: int) -> np.ndarray:
    """Fields per segment, (rows, segments): what the bitmap says, or every column."""
    starts = np.arange(0, layout.columns, layout.segment)
    if stored is None:
        return np.broadcast_to(np.diff(np.append(starts, layout.columns)), (rows, layout.segments))
    words = starts // bitmap.WORD_BITS  # segments of a longer row are whole words
    return np.add.reduceat(np.bitwise_count(stored), words, axis=1, dtype=np.int64)


def _nonzero(layout: FieldLayout, stream: np.ndarray, count: int, escaped: np.ndarray) -> int:
    """Elements (of integers, integers) that are not +0.0: `count` fields of a stream, and the escapes."""
    codec, number = layout.codec, layout.number
    if codec.bitmap:
        return count + escaped.shape[0]
    if codec.kind == "packed":  # zeros are escapes
        return count - int(np.count_nonzero(escaped == 0))
    if codec.kind == "int4":
        pairs = stream.view(np.uint8)
        return int(np.count_nonzero(pairs & 15) + np.count_nonzero(pairs >> 4))
    return int(np.count_nonzero(stream.view(np.uint8 if codec.kind == "int8" else number.unsigned)))


def _joined(pieces: list[EncodedMatrix], before: list[int], layout: FieldLayout) -> EncodedMatrix:
    """Pieces one below the other; before: the row that each starts with."""

    def stacked(name: str) -> np.ndarray | None:
        held = [getattr(piece, name) for piece in pieces]
        return None if held[0] is None else np.concatenate(held)

    bits = [int(piece.counts.sum()) * layout.field_bits for piece in pieces]
    return EncodedMatrix(
        bitmap=stacked("bitmap"),
        counts=np.concatenate([piece.counts for piece in pieces]),
        bases=stacked("bases"),
        scales=stacked("scales"),
        stream=fields.join([piece.stream for piece in pieces], bits),
        escape_index=np.concatenate(
            [
                piece.escape_index + np.uint32(row * layout.columns)
                for piece, row in zip(pieces, before, strict=True)
            ]
        ),
        escape_bits=np.concatenate([piece.escape_bits for piece in pieces]),
        nonzero=sum(piece.nonzero for piece in pieces),
    )
