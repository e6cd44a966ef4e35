"""Encoding on the host: arrays to the words of a part, and the parts of a record.

Two steps: one matrix becomes its pieces (bitmap, field counts, bases or scales, stream, escapes), a block of
rows at a time (`encode_matrix.py`, `encode_quantised.py`); `encode_record` lays the pieces of all tensors of
a layer out in its parts (docs/format.md, "Part"). Without loss the first step is the compiled extension's
where it was built (`encode_native.py`): the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from endor_jax import native
from endor_jax.arrays import bits_of, round_up
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.cut import cut_rows
from endor_jax.format.encode_matrix import encode_matrix
from endor_jax.format.encode_native import encode_matrix_natively
from endor_jax.format.encode_quantised import encode_quantised
from endor_jax.format.encoded_matrix import EncodedMatrix
from endor_jax.format.layout import (
    PART_LIMIT_WORDS,
    STREAM_WORDS,
    DenseLayout,
    FieldLayout,
    RecordLayout,
    Section,
    TensorSpec,
    matrix_shape,
    padding_words,
    plan_layout,
)
from endor_jax.format.quantise import Quantised, check_quantised, quantise
from endor_jax.format.stats import TensorStats
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import INTEGER_BITS, Codec, parse_codec


@dataclass(frozen=True)
class EncodedPart:
    """One part of a record, (words,) uint32, and what was counted in it: tensor name -> TensorStats.

    escapes: length of the escape list of every tensor stored as fields.
    """

    words: np.ndarray
    stats: dict[str, TensorStats]
    escapes: dict[str, int]


@dataclass(frozen=True)
class EncodedRecord:
    """The parts of one record, each (words,) uint32, and what was counted: tensor name -> TensorStats."""

    parts: tuple[np.ndarray, ...]
    stats: dict[str, TensorStats]
    escapes: dict[str, int]
    """Longest escape list of any part, per tensor stored as fields: bounds `escape_capacity`."""


Encodable = np.ndarray | Quantised | SparseTensor
"""What a tensor is encoded from: an array, its integers and scales where its codec quantises, or what is
stored of it under the same codec, to be cut into other parts."""


def encode_record(layout: RecordLayout, arrays: Mapping[str, Encodable]) -> EncodedRecord:
    """Encodes the tensors of one layer into parts of this layout.

    arrays: by tensor; under a codec that quantises, an array is quantised (`quantise`, unweighted), and a
    `Quantised` is stored as it is; of a `SparseTensor` the stored bits are taken (`cut.py`). Raises
    UnsupportedError if a part would reach 2^32 bits, InvalidInputError for a `Quantised` or a `SparseTensor`
    that its codec cannot hold, or an array that cannot be quantised.
    """
    parts = [encode_part(layout, arrays, part) for part in range(layout.parts)]
    stats, escapes = counts_of([(part.stats, part.escapes) for part in parts])
    return EncodedRecord(tuple(part.words for part in parts), stats, escapes)


Counts = tuple[Mapping[str, TensorStats], Mapping[str, int]]
"""What was counted in a part: statistics and escapes by tensor."""


def counts_of(parts: Sequence[Counts]) -> tuple[dict[str, TensorStats], dict[str, int]]:
    """What was counted in a record: the sums of its parts' statistics, their longest escape lists."""
    stats: dict[str, TensorStats] = {}
    escapes: dict[str, int] = {}
    for counted, listed in parts:
        for name, its in counted.items():
            stats[name] = stats[name] + its if name in stats else its
        for name, count in listed.items():
            escapes[name] = max(escapes.get(name, 0), count)
    return stats, escapes


def encode_part(layout: RecordLayout, arrays: Mapping[str, Encodable], part: int) -> EncodedPart:
    """Encodes part number `part` of a layer. Raises what `encode_record` does."""
    dense = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    stats: dict[str, TensorStats] = {}
    pieces: dict[str, EncodedMatrix] = {}
    for name, tensor in layout.tensors:
        if isinstance(tensor, DenseLayout):
            if part == 0:
                stats[name] = _dense_stats(dense[name], tensor)
            continue
        rows, columns = matrix_shape(tensor.shape)
        first, last = min(part * tensor.rows, rows), min((part + 1) * tensor.rows, rows)
        share = _Share(name, tensor, first, last)
        pieces[name] = _encode_share(arrays[name], share)
        stats[name] = _field_stats(pieces[name], tensor, (last - first) * columns)
    escapes = {name: piece.escape_index.shape[0] for name, piece in pieces.items()}
    return EncodedPart(_assemble(layout, pieces, dense), stats, escapes)


@dataclass(frozen=True)
class _Share:
    """Rows first, ..., last − 1 of a tensor: what one part holds of it."""

    name: str
    layout: FieldLayout
    first: int
    last: int

    @property
    def missing(self) -> int:
        """Rows of the part that are padding."""
        return self.layout.rows - (self.last - self.first)

    def of(self, matrix: np.ndarray) -> np.ndarray:
        """These rows of an array that has the tensor's elements."""
        return matrix.reshape(matrix_shape(self.layout.shape))[self.first : self.last]


def _encode_share(array: Encodable, share: _Share) -> EncodedMatrix:
    """Encodes one part's rows; missing rows at the end become rows without fields (never expanded)."""
    layout, missing = share.layout, share.missing
    if missing == layout.rows:
        bits, missing = np.zeros((1, layout.columns), layout.number.unsigned), missing - 1
        encoded = encode_matrix(bits, Codec("raw"), layout.number)
    elif isinstance(array, SparseTensor):
        _check_stored(array, share)
        encoded = cut_rows(array, share.first, share.last)
    elif layout.codec.quantised:
        encoded = encode_quantised(_quantised_share(array, share), layout.codec)
    elif isinstance(array, Quantised):
        raise InvalidInputError(
            f"tensor {share.name!r}",
            got=f"a quantised array for the codec {layout.codec.name}",
            expected="int8 or int4",
            fix="give the array itself, or another codec",
        )
    else:
        encode = encode_matrix_natively if native.available() else encode_matrix
        encoded = encode(share.of(bits_of(array)), layout.codec, layout.number)
    extended = {
        piece: np.pad(rows, ((0, missing), (0, 0)))
        for piece in ("bitmap", "counts", "bases", "scales")
        if (rows := getattr(encoded, piece)) is not None
    }
    return replace(encoded, **extended)


def _check_stored(tensor: SparseTensor, share: _Share) -> None:
    """Raises InvalidInputError unless a tensor is stored as it is to be."""
    stored, layout = tensor.layout, share.layout
    wanted = layout.codec, layout.shape, layout.dtype
    if not isinstance(stored, FieldLayout) or (stored.codec, stored.shape, stored.dtype) != wanted:
        raise InvalidInputError(
            f"tensor {share.name!r}",
            got=repr(tensor),
            expected=f"{layout.dtype}{list(layout.shape)}, {layout.codec.name}, as its layout says",
            fix="decode it, and give the array",
        )


def _quantised_share(array: np.ndarray | Quantised, share: _Share) -> Quantised:
    """Rows of a tensor as integers and scales that the format can hold."""
    layout, where = share.layout, f"tensor {share.name!r}"
    bits = INTEGER_BITS[layout.codec.kind]
    if not isinstance(array, Quantised):
        return quantise(share.of(array), bits, where=where)
    if (array.shape, array.dtype) != (layout.shape, layout.dtype):
        raise InvalidInputError(
            where,
            got=f"a quantised {array.dtype}{list(array.shape)}",
            expected=f"{layout.dtype}{list(layout.shape)}, as its layout says",
            fix="quantise the array that the layout was planned for",
        )
    rows = array.rows(share.first, share.last)
    check_quantised(rows, bits, where=where)
    return rows


def _assemble(
    layout: RecordLayout, pieces: dict[str, EncodedMatrix], arrays: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Lays the pieces of one part out: header and sections, then streams, then escapes, then padding.

    Takes each piece out of `pieces` once it has its place.
    """
    cursor = layout.streams_start
    stream_at: dict[str, int] = {}
    escapes_at: dict[str, int] = {}
    for name, piece in pieces.items():
        stream_at[name] = cursor
        cursor = round_up(cursor + piece.stream.shape[0], STREAM_WORDS)
    for name, piece in pieces.items():
        escapes_at[name] = cursor
        cursor = round_up(
            cursor + escape_words(piece.escape_index.shape[0], piece.escape_bits.itemsize), STREAM_WORDS
        )
    cursor += padding_words(layout)
    if cursor >= PART_LIMIT_WORDS:
        raise UnsupportedError(
            "part",
            got=f"{4 * cursor:,} bytes",
            expected=f"fewer than {4 * PART_LIMIT_WORDS:,}",
            fix="cut the record into more parts",
        )
    part = np.zeros(cursor, np.uint32)
    for name, tensor in layout.tensors:
        if isinstance(tensor, DenseLayout):
            _put(part, tensor.data, arrays[name])
            continue
        piece = pieces.pop(name)
        count = piece.escape_index.shape[0]
        part[tensor.header : tensor.header + 2] = escapes_at[name], count
        if tensor.bitmap is not None and piece.bitmap is not None:
            _put(part, tensor.bitmap, piece.bitmap)
        if tensor.bases is not None and piece.bases is not None:
            _put(part, tensor.bases, piece.bases)
        if tensor.scales is not None and piece.scales is not None:
            _put(part, tensor.scales, piece.scales)
        counts = piece.counts.reshape(-1)
        before = np.cumsum(counts) - counts
        _put(part, tensor.offsets, (32 * stream_at[name] + before * tensor.field_bits).astype(np.uint32))
        part[stream_at[name] : stream_at[name] + piece.stream.shape[0]] = piece.stream
        _put(part, Section(escapes_at[name], count), piece.escape_index)
        bits_at = escapes_at[name] + count
        _put(part, Section(bits_at, -(-count * piece.escape_bits.itemsize // 4)), piece.escape_bits)
    return part


def _put(part: np.ndarray, section: Section, values: np.ndarray) -> None:
    """Copies the bytes of `values` to the start of a section."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    part.view(np.uint8)[4 * section.start : 4 * section.start + data.shape[0]] = data


def escape_words(count: int, itemsize: int) -> int:
    """Words of an escape list: indices (uint32), then the elements' bits (itemsize bytes each)."""
    return count + -(-count * itemsize // 4)


def _field_stats(piece: EncodedMatrix, layout: FieldLayout, elements: int) -> TensorStats:
    sections = [section.words for section in layout.sections]
    count = piece.escape_index.shape[0]
    words = 2 + sum(sections) + piece.stream.shape[0] + escape_words(count, piece.escape_bits.itemsize)
    return TensorStats(elements, piece.nonzero, count, 4 * words)


def _dense_stats(array: np.ndarray, layout: DenseLayout) -> TensorStats:
    nonzero = int(np.count_nonzero(bits_of(array))) if array.dtype.itemsize <= 8 else array.size
    return TensorStats(array.size, nonzero, 0, 4 * layout.data.words)


def encode_array(array: Encodable, codec: str) -> SparseTensor:
    """One array as a SparseTensor that owns its words (one part, exactly as long as needed).

    array: bfloat16, float16 or float32, rank 2 or more. Raises UnsupportedError for others, and what
    `encode_record` does.
    """
    dtype = array.dtype.name if isinstance(array, np.ndarray) else array.dtype
    layout = plan_layout({"array": TensorSpec(array.shape, dtype, parse_codec(codec))})
    encoded = encode_record(layout, {"array": array})
    return SparseTensor(encoded.parts, with_escapes(layout, encoded.escapes)["array"])


def with_escapes(layout: RecordLayout, escapes: Mapping[str, int]) -> RecordLayout:
    """The same layout with room for the given number of escapes per tensor."""
    tensors = tuple(
        (name, replace(t, escape_capacity=escapes[name]) if isinstance(t, FieldLayout) else t)
        for name, t in layout.tensors
    )
    return replace(layout, tensors=tensors)
