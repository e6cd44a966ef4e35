"""Every invariant of a part that docs/format.md states, checked on its words. Pure NumPy; believes nothing.

A digest says that bytes are those that were written; this says that they were right to write. Positions are
computed from bitmaps and compared with what the part claims, never followed. Not checked: whether the base of
a segment is the best one (that takes encoding the weights again; any base in range decodes right).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from endor_jax.arrays import array_bytes, round_up
from endor_jax.format import bitmap, fields
from endor_jax.format.check_quantised import check_integers
from endor_jax.format.encode import escape_words
from endor_jax.format.layout import (
    STREAM_WORDS,
    DenseLayout,
    FieldLayout,
    RecordLayout,
    Section,
    matrix_shape,
    padding_words,
)
from endor_jax.format.stats import TensorStats
from endor_jax.format.values import EXPONENTS, exponents_of

_SUSPECTS = 1 << 10
"""Segments whose fields are looked at together: at most 2^20 fields."""


@dataclass(frozen=True)
class Violation:
    """One invariant that a part breaks. tensor: None where it concerns the part as a whole."""

    tensor: str | None
    got: str
    expected: str


@dataclass(frozen=True)
class CheckedPart:
    """What was found in a part: every broken invariant, and the counts of its tensors.

    stats: of the tensors that could be counted; dense arrays are counted in part 0 alone.
    """

    violations: tuple[Violation, ...]
    stats: dict[str, TensorStats]


@dataclass(frozen=True)
class _Streams:
    """Where the streams and escape lists of a part must be, for the counts that its bitmaps give."""

    counts: dict[str, np.ndarray]
    starts: dict[str, int]
    escapes: dict[str, Section]
    end: int


def check_part(words: np.ndarray, layout: RecordLayout, *, part: int) -> CheckedPart:
    """Checks part number `part` of a record: (words,) uint32, exactly as long as the part.

    Never raises for what the words hold, and allocates a few bytes per word at most.
    """
    if words.shape[0] < layout.streams_start + padding_words(layout):
        short = Violation(None, f"{words.shape[0]:,} words", f"{layout.streams_start:,} before the streams")
        return CheckedPart((short,), {})
    tensors = {name: t for name, t in layout.tensors if isinstance(t, FieldLayout)}
    streams, violations = _streams(words, layout, tensors, part)
    for name, tensor in tensors.items():
        violations += [Violation(name, *v) for v in _check_bitmap(words, tensor, part)]
        violations += [Violation(name, *v) for v in _check_offsets(words, tensor, streams, name)]
    stats: dict[str, TensorStats] = {}
    if streams.end == words.shape[0]:
        violations += [Violation(None, *v) for v in _check_gaps(words, layout, streams)]
        for name, tensor in tensors.items():
            violations += [Violation(name, *v) for v in _check_escapes(words, tensor, streams, name, part)]
            violations += [Violation(name, *v) for v in _check_fields(words, tensor, streams, name)]
            stats[name] = _count(words, tensor, streams, name, part)
    else:
        got, expected = f"{words.shape[0]:,} words", f"{streams.end:,}, as its counts make it"
        violations.append(Violation(None, got, expected))
    for name, tensor in layout.tensors:
        if isinstance(tensor, DenseLayout) and part == 0:
            stats[name] = _count_dense(words, tensor)
    return CheckedPart(tuple(violations), stats)


def rows_of(layout: FieldLayout, part: int) -> int:
    """How many rows of the matrix are in a part; what follows them in it is padding."""
    rows, _ = matrix_shape(layout.shape)
    return min(max(rows - part * layout.rows, 0), layout.rows)


def _streams(
    words: np.ndarray, layout: RecordLayout, tensors: dict[str, FieldLayout], part: int
) -> tuple[_Streams, list[Violation]]:
    """Where everything behind the sections must be. The lengths of escape lists are taken from the header,
    as far as they are possible."""
    violations = []
    counts, starts, escapes = {}, {}, {}
    cursor = layout.streams_start
    for name, tensor in tensors.items():
        counts[name], starts[name] = _field_counts(words, tensor, part), cursor
        stream = fields.stream_words(int(counts[name].sum()), tensor.field_bits)
        cursor = round_up(cursor + stream, STREAM_WORDS)
    for name, tensor in tensors.items():
        start, count = (int(word) for word in words[tensor.header : tensor.header + 2])
        if start != cursor:
            violations.append(Violation(name, f"an escape list at word {start:,}", f"one at word {cursor:,}"))
        if count > tensor.escape_capacity:
            most = f"at most {tensor.escape_capacity:,}, as its signature says"
            violations.append(Violation(name, f"{count:,} escapes", most))
            count = 0
        escapes[name] = Section(cursor, escape_words(count, tensor.number.bits // 8))
        cursor = round_up(escapes[name].stop, STREAM_WORDS)
    return _Streams(counts, starts, escapes, cursor + padding_words(layout)), violations


def _field_counts(words: np.ndarray, layout: FieldLayout, part: int) -> np.ndarray:
    """Fields per segment, (rows, segments) int64: what the bitmap says, or without one every element."""
    starts = np.arange(0, layout.columns, layout.segment)
    if layout.bitmap is None:
        widths = np.diff(np.append(starts, layout.columns))
        real = np.arange(layout.rows) < rows_of(layout, part)
        return np.where(real[:, None], widths, 0)
    ones = np.bitwise_count(_take(words, layout.bitmap).reshape(layout.rows, -1))
    return np.add.reduceat(ones, starts // bitmap.WORD_BITS, axis=1, dtype=np.int64)


def _check_bitmap(words: np.ndarray, layout: FieldLayout, part: int) -> Iterator[tuple[str, str]]:
    if layout.bitmap is None:
        return
    held = _take(words, layout.bitmap).reshape(layout.rows, -1)
    spare = -layout.columns % bitmap.WORD_BITS
    if spare:
        bad = np.flatnonzero(held[:, -1] >> np.uint32(bitmap.WORD_BITS - spare))
        if bad.size:
            yield f"bitmap bits past the last column in row {bad[0]}", f"none past column {layout.columns}"
    if np.any(held[rows_of(layout, part) :]):
        yield "bitmap bits in padding rows", "none"


def _check_offsets(
    words: np.ndarray, layout: FieldLayout, streams: _Streams, name: str
) -> Iterator[tuple[str, str]]:
    """Offsets are the running sum of the counts, so they ascend, and agree with the bitmap's popcounts."""
    counts = streams.counts[name].reshape(-1)
    before = np.cumsum(counts) - counts
    expected = fields.WORD_BITS * streams.starts[name] + before * layout.field_bits
    got = _take(words, layout.offsets)
    wrong = np.flatnonzero(got != expected)
    if wrong.size:
        row, segment = divmod(int(wrong[0]), layout.segments)
        more = f" ({wrong.size:,} offsets are wrong)" if wrong.size > 1 else ""
        yield (
            f"bit {got[wrong[0]]:,} as offset of row {row}, segment {segment}{more}",
            f"bit {expected[wrong[0]]:,}, after the fields before it",
        )


def _check_gaps(words: np.ndarray, layout: RecordLayout, streams: _Streams) -> Iterator[tuple[str, str]]:
    """Every bit that nothing is stored in is 0: between and behind sections, in last words, the padding."""
    for start, stop, bits in _used(layout, streams):
        gap = words[start:stop]
        if bits % fields.WORD_BITS and gap.size:  # a last word that is only partly used
            if gap[0] >> np.uint32(bits % fields.WORD_BITS):
                yield f"bits after the last of what ends in word {start:,}", "zeros"
            gap = gap[1:]
        found = np.flatnonzero(gap)
        if found.size:
            yield f"bits in word {stop - gap.shape[0] + int(found[0]):,}, which nothing uses", "zeros"


def _used(layout: RecordLayout, streams: _Streams) -> Iterator[tuple[int, int, int]]:
    """Gaps, in order: (first word not wholly used, where the next thing starts, bits used of that word)."""
    used: list[tuple[int, int]] = []  # start in words, length in bits
    matrices = 0
    for _, tensor in layout.tensors:
        if isinstance(tensor, DenseLayout):
            used.append((tensor.data.start, 8 * _dense_bytes(tensor)))
            continue
        matrices += 1
        for section in tensor.sections:
            bits = fields.WORD_BITS * section.words
            if section is tensor.bases:
                bits = 8 * tensor.rows * tensor.segments
            if section is tensor.scales:
                bits = 16 * tensor.rows * tensor.groups
            used.append((section.start, bits))
    for name, tensor in layout.tensors:
        if isinstance(tensor, FieldLayout):
            count = int(streams.counts[name].sum())
            used.append((streams.starts[name], count * tensor.field_bits))
    for name, tensor in layout.tensors:
        if isinstance(tensor, FieldLayout):
            section, itemsize = streams.escapes[name], tensor.number.bits // 8
            count = _list_length(section, itemsize)
            used.append((section.start, fields.WORD_BITS * count + 8 * itemsize * count))
    used.insert(0, (0, fields.WORD_BITS * 2 * matrices))
    stops = [start for start, _ in used[1:]] + [streams.end]
    for (start, bits), stop in zip(used, stops, strict=True):
        yield start + bits // fields.WORD_BITS, stop, bits


def _check_escapes(
    words: np.ndarray, layout: FieldLayout, streams: _Streams, name: str, part: int
) -> Iterator[tuple[str, str]]:
    index, bits = _escapes(words, layout, streams, name)
    elements = rows_of(layout, part) * layout.columns
    if index.size == 0:
        return
    if np.any(index[1:] <= index[:-1]):
        yield "escapes out of order", "indices that ascend"
        return
    if index[-1] >= elements:
        yield f"escape {index[-1]:,}", f"indices below {elements:,}"
        return
    row, column = np.divmod(index, np.uint32(layout.columns))
    if layout.bitmap is not None:
        held = _take(words, layout.bitmap).reshape(layout.rows, -1)
        stored = held[row, column // bitmap.WORD_BITS] >> (column % np.uint32(bitmap.WORD_BITS))
        if np.any(stored & np.uint32(1)):
            yield "an escape that the bitmap has too", "elements in one place"
        if np.any(bits == 0):
            yield "an escape that is +0.0", "a zero that is stored nowhere"
    else:
        offsets = _take(words, layout.offsets).reshape(layout.rows, layout.segments)
        inside = column % np.uint32(layout.segment)
        positions = offsets[row, column // np.uint32(layout.segment)].astype(np.int64)
        positions = np.minimum(positions + inside * np.int64(layout.field_bits), 32 * words.shape[0] - 32)
        if np.any(fields.read(words, positions, layout.field_bits)):
            yield "an escape with bits in its field", "zeros there"
    if layout.bases is None:
        yield f"{index.size:,} escapes", f"none under {layout.codec.name}"
        return
    base = _bases(words, layout)[row, column // np.uint32(layout.segment)].astype(np.int64)
    exponent = exponents_of(bits, layout.number).astype(np.int64)
    fits = (base <= exponent) & (exponent < base + (1 << layout.codec.exponent_bits))
    if np.any(fits & (exponent != 0) & (exponent != layout.number.exponent_maximum)):
        yield "an escape that fits the window of its segment", "a field"


def _check_fields(
    words: np.ndarray, layout: FieldLayout, streams: _Streams, name: str
) -> Iterator[tuple[str, str]]:
    """What has a field under docs/format.md, "Which elements have a field": no zeros under `raw` with a
    bitmap, no exponent 0 or all ones under a packed codec; and the bases and scales are possible."""
    counts = streams.counts[name]
    if layout.codec.quantised:
        yield from check_integers(words[streams.starts[name] :], words, layout, counts)
        return
    if layout.bases is None:
        if layout.bitmap is not None and not np.all(_raw_stream(words, layout, streams, name)):
            yield "a field that is +0.0", "a zero that is stored nowhere"
        return
    bases, window = _bases(words, layout).astype(np.int64), 1 << layout.codec.exponent_bits
    if np.any(bases > EXPONENTS - window):
        yield f"a base of {bases.max()}", f"at most {EXPONENTS - window}"
    if np.any(bases[counts == 0]):
        yield "a base for a segment without fields", "0"
    # Only windows that reach the forbidden exponents can hold one: few segments, mostly none.
    maximum = layout.number.exponent_maximum
    suspect = np.argwhere((counts > 0) & ((bases == 0) | (bases + window > maximum)))
    for at in range(0, len(suspect), _SUSPECTS):
        bad = _forbidden_exponents(words, layout, streams, name, suspect[at : at + _SUSPECTS])
        if bad is not None:
            yield f"a field with exponent 0 or all ones in row {bad[0]}, segment {bad[1]}", "an escape"
            return


def _forbidden_exponents(
    words: np.ndarray, layout: FieldLayout, streams: _Streams, name: str, places: np.ndarray
) -> tuple[int, int] | None:
    """The first of some segments, (n, 2) rows and segments, that has a field of an exponent 0 or all ones
    (and no escape in its place)."""
    row, segment = places.T
    counts = streams.counts[name][row, segment]
    offsets = _take(words, layout.offsets).reshape(layout.rows, layout.segments)[row, segment]
    of = np.repeat(np.arange(len(places)), counts)
    rank = np.arange(of.shape[0]) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = offsets[of].astype(np.int64) + rank * layout.field_bits
    held = fields.read(words, np.minimum(positions, 32 * words.shape[0] - 32), layout.field_bits)
    code = (held >> np.uint32(layout.number.mantissa_bits)) & np.uint32((1 << layout.codec.exponent_bits) - 1)
    exponent = code.astype(np.int64) + _bases(words, layout)[row, segment][of]
    bad = (exponent == 0) | (exponent >= layout.number.exponent_maximum)
    if layout.bitmap is None:
        index = row[of] * layout.columns + segment[of] * layout.segment + rank
        bad &= ~np.isin(index, _escapes(words, layout, streams, name)[0])
    found = np.flatnonzero(bad)
    return None if found.size == 0 else (int(row[of[found[0]]]), int(segment[of[found[0]]]))


def _count(words: np.ndarray, layout: FieldLayout, streams: _Streams, name: str, part: int) -> TensorStats:
    index, bits = _escapes(words, layout, streams, name)
    stored = int(streams.counts[name].sum())
    if layout.bitmap is None and layout.codec.quantised:
        stream_start = words[streams.starts[name] :]
        nonzero = int(np.count_nonzero(fields.read_signed(stream_start, 0, stored, layout.field_bits)))
    elif layout.bitmap is None and layout.bases is None:
        nonzero = int(np.count_nonzero(_raw_stream(words, layout, streams, name)))
    elif layout.bitmap is None:  # an escape has a field as well
        nonzero = stored - index.size + int(np.count_nonzero(bits))
    else:
        nonzero = stored + index.size
    sections = sum(section.words for section in layout.sections)
    stream = fields.stream_words(stored, layout.field_bits)
    size = 4 * (2 + sections + stream + streams.escapes[name].words)
    return TensorStats(rows_of(layout, part) * layout.columns, nonzero, index.size, size)


def _count_dense(words: np.ndarray, layout: DenseLayout) -> TensorStats:
    size = _dense_bytes(layout)
    elements = int(np.prod(layout.shape, dtype=np.int64))
    held = _take(words, layout.data).view(np.uint8)[:size]
    itemsize = size // elements if elements else 1
    nonzero = int(np.count_nonzero(held.view(np.dtype(f"uint{8 * itemsize}"))))
    return TensorStats(elements, nonzero, 0, 4 * layout.data.words)


def _dense_bytes(layout: DenseLayout) -> int:
    return array_bytes(layout.shape, layout.dtype)


def _raw_stream(words: np.ndarray, layout: FieldLayout, streams: _Streams, name: str) -> np.ndarray:
    """The fields of a raw codec, which are elements: (n,) in the unsigned dtype of the format."""
    held = words[streams.starts[name] :].view(layout.number.unsigned)
    return held[: int(streams.counts[name].sum())]


def _bases(words: np.ndarray, layout: FieldLayout) -> np.ndarray:
    """(rows, segments) uint8."""
    assert layout.bases is not None
    held = _take(words, layout.bases).view(np.uint8)[: layout.rows * layout.segments]
    return held.reshape(layout.rows, layout.segments)


def _escapes(
    words: np.ndarray, layout: FieldLayout, streams: _Streams, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,) uint32 and element bits (n,), from where the list must be."""
    section = streams.escapes[name]
    count = _list_length(section, layout.number.bits // 8)
    bits = words[section.start + count :].view(layout.number.unsigned)[:count]
    return words[section.start : section.start + count], bits


def _list_length(section: Section, itemsize: int) -> int:
    """Entries of an escape list of this many words: the inverse of `escape_words`."""
    return section.words * 4 // (4 + itemsize)


def _take(words: np.ndarray, section: Section) -> np.ndarray:
    return words[section.start : section.stop]
