"""Where everything in a part is: sections with static offsets, so that layers of one signature share a step.

A part is one uint32 array: header, sections (bitmaps, offsets, bases, scales, dense tensors), value streams,
escapes, padding. Everything in this file is static: it is hashable, compares by value and is the `layout` of
a jitted step. What differs between layers (how many elements are stored, where a stream starts) is data in
the part. Counts and positions are in uint32 words unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from endor_jax.arrays import FLOAT_FORMATS, FloatFormat, array_bytes, dtype_from_name, round_up
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format import bitmap
from endor_jax.format.values import Codec

SEGMENT = 1024
"""Columns that share an offset and a base exponent; shorter rows are one segment."""
GROUP = 128
"""Columns that share a scale, counted from column 0: a segment has whole groups."""
SECTION_WORDS = 64
"""Sections start at multiples of 256 bytes."""
STREAM_WORDS = 16
"""Streams and the escape list start at multiples of 64 bytes."""
_SUB_BYTE = ("int2", "int4", "uint2", "uint4", "float4", "float6")
TENSOR_LIMIT = 2**31
"""A tensor has fewer elements than this: element indices fit int32."""
PART_LIMIT_WORDS = 2**32 // 32
"""A part has fewer bits than 2^32: bit positions fit uint32."""


@dataclass(frozen=True)
class Section:
    """A static range of words in a part."""

    start: int
    words: int

    @property
    def stop(self) -> int:
        """The first word after the section."""
        return self.start + self.words


@dataclass(frozen=True)
class FieldLayout:
    """A matrix whose elements are fields of a value stream, as one part holds it (all its rows, or a share).

    shape is the array's own; rows and columns are the matrix it is seen as. `header` is the word that holds
    the start of the escape list, the next word holds its length. `escape_capacity` bounds that length over
    all layers of the signature: a scatter needs a static size.
    """

    shape: tuple[int, ...]
    dtype: str
    codec: Codec
    rows: int
    columns: int
    header: int
    bitmap: Section | None
    offsets: Section
    bases: Section | None
    scales: Section | None
    escape_capacity: int

    @property
    def number(self) -> FloatFormat:
        """The format of one element."""
        return FLOAT_FORMATS[self.dtype]

    @property
    def field_bits(self) -> int:
        """b, the width of one field."""
        return self.codec.field_bits(self.number)

    @property
    def segment(self) -> int:
        """Columns per segment: SEGMENT, or the whole row when it is shorter."""
        return min(SEGMENT, self.columns)

    @property
    def segments(self) -> int:
        """Segments per row."""
        return -(-self.columns // self.segment)

    @property
    def groups(self) -> int:
        """Groups per row: columns that share a scale."""
        return -(-self.columns // GROUP)

    @property
    def sections(self) -> tuple[Section, ...]:
        """Its sections, in the order in which they lie."""
        every = (self.bitmap, self.offsets, self.bases, self.scales)
        return tuple(section for section in every if section is not None)


@dataclass(frozen=True)
class DenseLayout:
    """An array stored as its own bytes, in every part of its record."""

    shape: tuple[int, ...]
    dtype: str
    data: Section


TensorLayout = FieldLayout | DenseLayout


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, before it has a place: `codec` is None for "store its own bytes"."""

    shape: tuple[int, ...]
    dtype: str
    codec: Codec | None


@dataclass(frozen=True)
class RecordLayout:
    """The layout that all parts of a record share: tensor names in storage order with their places.

    With several parts, part g holds rows g·rows ... of every matrix (`FieldLayout.rows` of them, short last
    groups padded with empty rows) and a copy of every dense array.
    """

    tensors: tuple[tuple[str, TensorLayout], ...]
    parts: int
    streams_start: int

    def __getitem__(self, name: str) -> TensorLayout:
        for known, layout in self.tensors:
            if known == name:
                return layout
        raise KeyError(f"no tensor {name!r} in this record; it has {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in storage order."""
        return tuple(name for name, _ in self.tensors)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors expanded."""
        return sum(array_bytes(tensor.shape, tensor.dtype) for _, tensor in self.tensors)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of the matrix an array is seen as: rows are all axes but the last."""
    return math.prod(shape[:-1]), shape[-1]


def dense_words(shape: tuple[int, ...], dtype: str) -> int:
    """Words that an array's own bytes take, rounded up."""
    return -(-array_bytes(shape, dtype) // 4)


def plan_layout(specs: Mapping[str, TensorSpec], *, parts: int = 1) -> RecordLayout:
    """Gives every tensor its sections, in the order of `specs`.

    Raises UnsupportedError for a tensor that the format cannot hold.
    """
    matrices = {name: i for i, name in enumerate(n for n, spec in specs.items() if spec.codec is not None)}
    cursor = round_up(2 * len(matrices), SECTION_WORDS)
    tensors: list[tuple[str, TensorLayout]] = []

    def take(words: int) -> Section:
        nonlocal cursor
        section = Section(cursor, words)
        cursor = round_up(cursor + words, SECTION_WORDS)
        return section

    for name, spec in specs.items():
        if spec.codec is None:
            check_dense(name, spec)
            dense = DenseLayout(spec.shape, spec.dtype, take(dense_words(spec.shape, spec.dtype)))
            tensors.append((name, dense))
            continue
        check_matrix(name, spec)
        rows, columns = matrix_shape(spec.shape)
        rows = -(-rows // parts)
        segments = rows * -(-columns // min(SEGMENT, columns))
        layout = FieldLayout(
            shape=spec.shape,
            dtype=spec.dtype,
            codec=spec.codec,
            rows=rows,
            columns=columns,
            header=2 * matrices[name],
            bitmap=take(rows * bitmap.words_per_row(columns)) if spec.codec.bitmap else None,
            offsets=take(segments),
            bases=take(-(-segments // 4)) if spec.codec.kind == "packed" else None,
            scales=take(-(-rows * -(-columns // GROUP) // 2)) if spec.codec.quantised else None,
            escape_capacity=0,
        )
        tensors.append((name, layout))
    return RecordLayout(tuple(tensors), parts, cursor)


def check_dense(name: str, spec: TensorSpec) -> None:
    """Raises unless the device can hold the array as it is: 8, 16 or 32 bits per element, real."""
    dtype = dtype_from_name(spec.dtype)
    if dtype.kind in "cOSUMm" or dtype.itemsize > 4 or spec.dtype.startswith(_SUB_BYTE):
        raise UnsupportedError(
            f"tensor {name!r}",
            got=f"dtype {spec.dtype}",
            expected="real elements of 8, 16 or 32 bits",
            fix="convert it first",
        )


def check_matrix(name: str, spec: TensorSpec) -> None:
    """Raises unless `spec` can be stored as fields: a float format, rank at least 2, not empty, not huge."""
    where = f"tensor {name!r}"
    if spec.dtype not in FLOAT_FORMATS:
        raise UnsupportedError(
            where,
            got=f"dtype {spec.dtype}",
            expected=f"one of {', '.join(FLOAT_FORMATS)}",
            fix="convert it, or store it dense",
        )
    if len(spec.shape) < 2 or math.prod(spec.shape) == 0:
        raise UnsupportedError(
            where,
            got=f"shape {spec.shape}",
            expected="a non-empty array of rank 2 or more",
            fix="store it dense",
        )
    if math.prod(spec.shape) >= TENSOR_LIMIT:
        raise UnsupportedError(
            where,
            got=f"{math.prod(spec.shape):,} elements",
            expected=f"fewer than {TENSOR_LIMIT:,}",
            fix="cut it into several tensors",
        )
    assert spec.codec is not None
    if spec.codec.kind == "packed" and spec.codec.exponent_bits >= FLOAT_FORMATS[spec.dtype].exponent_bits:
        raise InvalidInputError(
            where,
            got=f"codec {spec.codec.name} for {spec.dtype}",
            expected=f"fewer than {FLOAT_FORMATS[spec.dtype].exponent_bits} exponent bits",
            fix="use a smaller K, or raw",
        )


def padding_words(layout: RecordLayout) -> int:
    """Words of zeros that end a part: 64 bytes and one segment of the widest field (docs/format.md)."""
    widest = max(
        (f.segment * f.field_bits for _, f in layout.tensors if isinstance(f, FieldLayout)), default=0
    )
    return STREAM_WORDS + -(-widest // 32)
