"""Decoding on the host: the words of a part to arrays, all of them or chosen rows. The oracle of `expand`.

Written for plainness: it follows docs/format.md sentence by sentence, and believes what it reads, clamped
into the part: damaged positions give wrong values, never a read outside (`check.py` is what finds them).
`decode_rows` also serves embeddings, of which a batch needs only a few rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.format import bitmap, fields
from endor_jax.format.layout import DenseLayout, FieldLayout, Section, matrix_shape
from endor_jax.format.quantise import Quantised, dequantise
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import unpack_fields


def decode(tensor: SparseTensor) -> np.ndarray:
    """The array that was encoded: shape `tensor.shape`, dtype `tensor.dtype`, bit for bit."""
    layout = tensor.layout
    parts = [np.asarray(words) for words in tensor.parts]
    if isinstance(layout, DenseLayout):
        return _decode_dense(parts[0], layout)
    rows, _ = matrix_shape(layout.shape)
    every = np.arange(layout.rows)
    blocks = [decode_rows(part, layout, every) for part in parts]
    return np.concatenate(blocks)[:rows].reshape(layout.shape)


def _decode_dense(part: np.ndarray, layout: DenseLayout) -> np.ndarray:
    dtype = dtype_from_name(layout.dtype)
    count = int(np.prod(layout.shape))
    data = _take(part, layout.data).view(np.uint8)[: count * dtype.itemsize]
    return data.copy().view(dtype).reshape(layout.shape)


def decode_rows(part: np.ndarray, layout: FieldLayout, rows: np.ndarray) -> np.ndarray:
    """Rows of one part's matrix: part (words,) uint32, rows (n,) integers -> (n, columns) of layout.dtype."""
    if layout.codec.quantised:
        return dequantise(quantised_rows(part, layout, rows))
    bases = np.zeros((len(rows), layout.segments), np.uint8)
    if layout.bases is not None:
        section = _take(part, layout.bases).view(np.uint8)[: layout.rows * layout.segments]
        bases = section.reshape(layout.rows, layout.segments)[rows]
    bits = np.zeros((len(rows), layout.columns), layout.number.unsigned)
    for s, (here, mask, values) in enumerate(_segments(part, layout, rows)):
        base = np.broadcast_to(bases[:, s, None], mask.shape)[mask]
        bits[:, here][mask] = unpack_fields(values, base, layout.codec, layout.number)
    _scatter_escapes(bits, part, layout, rows)
    return bits.view(dtype_from_name(layout.dtype))


def quantised_rows(part: np.ndarray, layout: FieldLayout, rows: np.ndarray) -> Quantised:
    """Rows of one part's matrix as integers and scales, under a codec that quantises. Of a damaged part the
    integers may be -128 or -8, the scales anything."""
    assert layout.scales is not None
    section = _take(part, layout.scales).view(np.float16)[: layout.rows * layout.groups]
    scales = section.reshape(layout.rows, layout.groups)[rows]
    spare = 32 - layout.field_bits
    values = np.zeros((len(rows), layout.columns), np.int8)
    for here, mask, found in _segments(part, layout, rows):
        values[:, here][mask] = (found << np.uint32(spare)).view(np.int32) >> np.int32(spare)
    return Quantised(values, scales, values.shape, layout.dtype)


def _segments(
    part: np.ndarray, layout: FieldLayout, rows: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Of some rows, segment after segment: its columns, which of the elements have a field, (n, S) bool, and
    those fields in their order, uint32."""
    columns, segment = layout.columns, layout.segment
    if layout.bitmap is None:
        stored = np.ones((len(rows), columns), bool)
    else:
        words = _take(part, layout.bitmap).reshape(layout.rows, -1)
        stored = bitmap.unpack(words[rows], columns)
    offsets = _take(part, layout.offsets).reshape(layout.rows, layout.segments)[rows]
    for s in range(layout.segments):
        here = slice(s * segment, min((s + 1) * segment, columns))
        mask = stored[:, here]
        rank = np.cumsum(mask, axis=1, dtype=np.int64) - 1
        positions = (offsets[:, s, None].astype(np.int64) + rank * layout.field_bits)[mask]
        yield here, mask, fields.read(part, positions, layout.field_bits)


def _scatter_escapes(bits: np.ndarray, part: np.ndarray, layout: FieldLayout, rows: np.ndarray) -> None:
    """Writes the escapes of the chosen rows into `bits` (n, columns): each row's are a run of the list."""
    index, values = read_escapes(part, layout)
    starts = rows.astype(index.dtype) * index.dtype.type(layout.columns)
    first = np.searchsorted(index, starts)
    last = np.searchsorted(index, starts + index.dtype.type(layout.columns))
    for place in np.flatnonzero(first < last):
        here = slice(first[place], last[place])
        columns = index[here] - starts[place]  # of a damaged list, anything
        inside = columns < layout.columns
        bits[place, columns[inside]] = values[here][inside]


def read_escapes(part: np.ndarray, layout: FieldLayout) -> tuple[np.ndarray, np.ndarray]:
    """The escape list of one tensor, as views: indices (n,) uint32 ascending, element bits (n,)."""
    start, count = (int(word) for word in part[layout.header : layout.header + 2])
    index = part[start : start + count]
    data = part[start + count :].view(layout.number.unsigned)[:count]
    count = min(index.shape[0], data.shape[0])  # less than it says in a damaged part only
    return index[:count], data[:count]


def _take(part: np.ndarray, section: Section) -> np.ndarray:
    return part[section.start : section.stop]
