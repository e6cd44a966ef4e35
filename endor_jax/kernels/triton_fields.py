"""Element bits from the words of a part, inside a Pallas-Triton kernel: 16 bytes of a row per thread at once.

A row segment is seen as *groups* of consecutive columns that fill 16 bytes: 8 of a 16-bit dtype, 4 of
float32. One thread has one group at a time, so neighbouring threads read neighbouring fields and store
neighbouring 16 bytes. Within a group nothing is indexed: a *window* of the stream lies in a few registers,
its low bits are the next field, and it is shifted on by b for each element that has one. 16-bit elements are
decoded two at a time, as the halves of a word. Written in jax.numpy throughout, so that the very same code
runs in interpret mode; docs/kernels.md has the machine instructions that become of it.

Every position read from the part is clamped into it: damage gives wrong values, never a read outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int, UInt16, UInt32

from endor_jax.arrays import dtype_from_name
from endor_jax.format.bitmap import words_per_row
from endor_jax.format.layout import GROUP, FieldLayout

WORD_BITS = 32
SEGMENT_WORDS = 32
"""Bitmap words of a segment of a row that has more than one."""
GROUP_WORDS = 4
"""Words of element bits per group: what one 128-bit store takes."""
HALVES = 0x0001_0001
"""Times a 16-bit number: that number in both halves of a word."""

Words = Any
"""A Pallas reference to the uint32 words of a part."""


@dataclass(frozen=True)
class Groups:
    """How the groups of some words of a bitmap lie in a block: powers of two, as Triton wants them."""

    columns: int
    words: int

    @property
    def per_word(self) -> int:
        """Groups that one word of the bitmap covers."""
        return WORD_BITS // self.columns

    @property
    def count(self) -> int:
        """Groups of all words; the last ones may lie beyond the end of a row."""
        return self.words * self.per_word

    @property
    def width(self) -> int:
        """Columns of all groups."""
        return self.words * WORD_BITS


def groups_of(layout: FieldLayout, *, most_words: int = SEGMENT_WORDS) -> Groups:
    """The groups of a segment of this layout, or of so many words of it."""
    words = 1 << (words_per_row(layout.segment) - 1).bit_length()
    return Groups(GROUP_WORDS * WORD_BITS // layout.number.bits, min(words, most_words))


def segment_start(
    words: Words, layout: FieldLayout, row: Int[Array, "rows 1"], segment: Int[Array, ""]
) -> UInt32[Array, "rows 1"]:
    """The bit position of the first field of one segment of some rows."""
    return _load(words, layout.offsets.start + row * layout.segments + segment)


def element_words(
    words: Words, layout: FieldLayout, row: Int[Array, "rows 1"], segment: Int[Array, ""]
) -> list[UInt32[Array, "rows groups"]]:
    """The elements of one segment of some rows: word i of each group, for i < GROUP_WORDS.

    row: existing rows of the part. segment: which one of each row. What lies beyond the end of a row is
    undefined under a codec without bitmap, 0 otherwise.
    """
    start = segment_start(words, layout, row, segment)
    place = Chunk(groups_of(layout), row, segment, first=None)
    return chunk_words(words, layout, place, start)[0]


@dataclass(frozen=True)
class Chunk:
    """Some words of the bitmap of one segment, of some rows: from word `first` of the segment on; None: 0."""

    groups: Groups
    row: Int[Array, "rows 1"]
    segment: Int[Array, ""]
    first: Int[Array, ""] | None

    @property
    def first_group(self) -> int | Int[Array, ""]:
        """Of the segment."""
        return 0 if self.first is None else self.first * self.groups.per_word


def chunk_words(
    words: Words, layout: FieldLayout, chunk: Chunk, position: UInt32[Array, "rows 1"]
) -> tuple[list[UInt32[Array, "rows groups"]], UInt32[Array, "rows 1"]]:
    """The elements of a chunk, which begins before the end of the rows, as `element_words` gives them, and
    the position behind its fields.

    position: of its first field. Source: docs/format.md, "Codecs", in the order of docs/kernels.md.
    """
    bits, groups = layout.field_bits, chunk.groups
    present = None
    if layout.bitmap is None:
        group = lax.broadcasted_iota(jnp.uint32, (chunk.row.shape[0], groups.count), 1)
        behind = position + jnp.uint32(groups.width * bits)
        position = position + group * jnp.uint32(groups.columns * bits)
    else:
        present, rank, count = _present_and_rank(words, layout, chunk)
        behind = position + count * jnp.uint32(bits)
        position = position + rank * jnp.uint32(bits)
    if layout.codec.quantised:
        scale = _scales(words, layout, chunk)
        return _integers(words, layout, position, present, scale), behind
    base = None
    if layout.bases is not None:
        index = chunk.row * layout.segments + chunk.segment
        held = _load(words, layout.bases.start + index // 4) >> (index % 4 * 8).astype(jnp.uint32)
        base = (held & jnp.uint32(0xFF)) << jnp.uint32(layout.number.mantissa_bits)
    if bits == WORD_BITS:
        return _whole_words(words, position, present), behind
    return _floats(words, layout, position, present, base), behind


def words_in_order(group: Sequence[UInt32[Array, "rows groups"]]) -> UInt32[Array, "rows groups 2 2"]:
    """The words of each group in one array, in order: Triton can only join two, along a new last axis."""
    assert len(group) == GROUP_WORDS
    return jnp.stack([jnp.stack([group[0], group[2]], -1), jnp.stack([group[1], group[3]], -1)], -1)


def halves_in_order(group: Sequence[UInt32[Array, "rows groups"]]) -> UInt16[Array, "rows groups 2 2 2"]:
    """The same, in halves."""
    words = words_in_order(group)
    return jnp.stack([words.astype(jnp.uint16), (words >> jnp.uint32(16)).astype(jnp.uint16)], -1)


def _load(words: Words, index: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    return pltriton.load(words.at[index], mask=mask, other=None if mask is None else jnp.uint32(0))


def _present_and_rank(
    words: Words, layout: FieldLayout, chunk: Chunk
) -> tuple[UInt32[Array, "rows groups"], UInt32[Array, "rows groups"], UInt32[Array, "rows 1"]]:
    """The bitmap of each group in the low bits, anything above; how many fields the chunk has before it: one
    running sum over the words of the chunk, then the bits below within the word; and how many it has."""
    assert layout.bitmap is not None
    groups, in_row = chunk.groups, words_per_row(layout.columns)
    first = chunk.segment * SEGMENT_WORDS + (0 if chunk.first is None else chunk.first)
    start = layout.bitmap.start + chunk.row * in_row + first
    padded = in_row % groups.words != 0

    def read(word: Int[Array, "rows count"]) -> UInt32[Array, "rows count"]:
        return _load(words, start + word, (first + word < in_row) if padded else None)

    rows = chunk.row.shape[0]
    whole = read(lax.broadcasted_iota(jnp.int32, (rows, groups.words), 1))
    counts = lax.population_count(whole.astype(jnp.int32))
    before = jnp.cumsum(counts, axis=1) - counts
    shape = (rows, groups.words, groups.per_word)
    before = jnp.broadcast_to(before[:, :, None], shape).reshape(rows, groups.count)
    group = lax.broadcasted_iota(jnp.int32, (rows, groups.count), 1)
    own = read(group // groups.per_word)
    shift = (group % groups.per_word * groups.columns).astype(jnp.uint32)
    below = lax.population_count((own & ((jnp.uint32(1) << shift) - jnp.uint32(1))).astype(jnp.int32))
    count = jnp.sum(counts, axis=1, keepdims=True).astype(jnp.uint32)
    return own >> shift, (before + below).astype(jnp.uint32), count


def _scales(words: Words, layout: FieldLayout, chunk: Chunk) -> Float[Array, "rows groups"]:
    """The scale of each group of columns, in float32: a scale serves whole groups."""
    assert layout.scales is not None
    groups = chunk.groups
    group = chunk.first_group + lax.broadcasted_iota(jnp.int32, (chunk.row.shape[0], groups.count), 1)
    mine = chunk.segment * (layout.segment // GROUP) + group * groups.columns // GROUP
    index = chunk.row * layout.groups + jnp.minimum(mine, layout.groups - 1)
    held = _load(words, layout.scales.start + index // 2) >> (index % 2 * 16).astype(jnp.uint32)
    return lax.bitcast_convert_type(held.astype(jnp.uint16), jnp.float16).astype(jnp.float32)


def _floats(
    words: Words,
    layout: FieldLayout,
    position: UInt32[Array, "rows groups"],
    present: UInt32[Array, "rows groups"] | None,
    base: UInt32[Array, "rows 1"] | None,
) -> list[UInt32[Array, "rows groups"]]:
    """`raw` and `packed`. Sign-extending, AND and add of the format, for both halves of a word at once:
    what is above the field and what has none is cut off, the sign is moved up by a product."""
    bits, size = layout.field_bits, layout.number.bits
    field, sign = (1 << bits) - 1, 1 << (bits - 1)
    every = HALVES if size == 16 else 1
    found = []
    for value, has in _fields(words, layout, position, present):
        element = value & _mask(has, field)
        if base is not None:
            moved = (1 << (size - bits)) - 1
            element = element + (element & jnp.uint32(every * sign)) * jnp.uint32(moved)
            element = element + jnp.asarray(has, jnp.uint32) * base
        found.append(element)
    return found


def _integers(
    words: Words,
    layout: FieldLayout,
    position: UInt32[Array, "rows groups"],
    present: UInt32[Array, "rows groups"] | None,
    scale: Float[Array, "rows groups"],
) -> list[UInt32[Array, "rows groups"]]:
    """`int8` and `int4`: sign-extended, multiplied in float32, rounded to the dtype. Integers that there are
    not are 0 before that, which times a scale is +0.0: so two elements are rounded by one instruction."""
    top, field = WORD_BITS - layout.field_bits, (1 << layout.field_bits) - 1

    def element(integer: UInt32[Array, "rows groups"]) -> UInt32[Array, "rows groups"]:
        signed = lax.bitcast_convert_type(integer << jnp.uint32(top), jnp.int32) >> jnp.int32(top)
        product = (signed.astype(jnp.float32) * scale).astype(dtype_from_name(layout.dtype))
        return lax.bitcast_convert_type(product, layout.number.unsigned).astype(jnp.uint32)

    integers = [value & _mask(has, field) for value, has in _fields(words, layout, position, present)]
    if layout.number.bits == WORD_BITS:
        return [element(integer) for integer in integers]
    return [element(each) | (element(each >> jnp.uint32(16)) << jnp.uint32(16)) for each in integers]


def _whole_words(
    words: Words, position: UInt32[Array, "rows groups"], present: UInt32[Array, "rows groups"] | None
) -> list[UInt32[Array, "rows groups"]]:
    """`raw` float32: fields are words, each read where it is."""
    found = []
    index = position >> jnp.uint32(5)
    for column in range(GROUP_WORDS):
        place = jnp.minimum(index, jnp.uint32(words.shape[0] - 1)).astype(jnp.int32)
        value = _load(words, place)
        if present is None:
            index = index + jnp.uint32(1)
        else:
            has = (present >> jnp.uint32(column)) & jnp.uint32(1)
            value, index = value & _mask(has, 0xFFFF_FFFF), index + has
        found.append(value)
    return found


Has = int | UInt32[Array, "rows groups"]
"""1 where an element has a field, else 0: one number, or one in each half of the word. An int: every one."""


def _fields(
    words: Words,
    layout: FieldLayout,
    position: UInt32[Array, "rows groups"],
    present: UInt32[Array, "rows groups"] | None,
) -> list[tuple[UInt32[Array, "rows groups"], Has]]:
    """For every word of the group its field (of float32) or fields (in the low bits of the halves; anything
    above them), and which there are. A field that there is not has any value."""
    bits, columns = layout.field_bits, groups_of(layout).columns
    window = _aligned_window(words, position, columns * bits)
    found: list[tuple[UInt32[Array, "rows groups"], Has]] = []
    if layout.number.bits == WORD_BITS:
        for column in range(columns):
            has = 1 if present is None else (present >> jnp.uint32(column)) & jnp.uint32(1)
            found.append((window[0], has))
            window = _shifted(window, _times(has, bits), (columns - column - 1) * bits)
        return found
    if present is not None:  # columns 2k and 2k + 1 to bits 2k and 2k + 16
        present = (present & jnp.uint32(0xFF)) * jnp.uint32(0x8001)
    for pair in range(columns // 2):
        has = HALVES if present is None else (present >> jnp.uint32(2 * pair)) & jnp.uint32(HALVES)
        left = columns - 2 * pair - 2  # fields after these two, at most
        low = window[0]
        if 2 * bits < WORD_BITS:
            both = _times(has, bits * HALVES)  # bits of the first field, and above them those of the two
            high = _shifted(window, both & 31, bits)[0]
            window = _shifted(window, both >> 16, left * bits)
        else:  # two fields are a whole word: too far for one shift
            each = _times(has, bits)
            window = _shifted(window, each & 31, (left + 1) * bits)
            high = window[0]
            window = _shifted(window, each >> 16, left * bits)
        found.append(((low & jnp.uint32(0xFFFF)) | (high << jnp.uint32(16)), has))
    return found


def _aligned_window(
    words: Words, position: UInt32[Array, "rows groups"], length: int
) -> list[UInt32[Array, "rows groups"]]:
    """The `length` bits of the part from each position on, in words; the first word's bit 0 is the first."""
    count = -(-length // WORD_BITS)
    most = count + 1  # a window that does not begin with a word reaches into one more
    first = jnp.minimum(position >> jnp.uint32(5), jnp.uint32(words.shape[0] - most)).astype(jnp.int32)
    held = [_load(words, first + word) for word in range(most)]
    shift = position & jnp.uint32(31)
    return [_funnel(held[word], held[word + 1], shift) for word in range(count)]


def _shifted(
    window: Sequence[jax.Array], amount: int | UInt32[Array, "rows groups"], length: int
) -> list[jax.Array]:
    """The window without its first `amount` (0 to 31) bits, as far as its next `length` bits need it."""
    count = -(-length // WORD_BITS)
    return [_funnel(window[word], window[min(word + 1, len(window) - 1)], amount) for word in range(count)]


def _funnel(low: jax.Array, high: jax.Array, shift: int | jax.Array) -> jax.Array:
    """Bits shift to shift + 31 of the 64 that two words are, for shifts 0 to 31: one machine instruction,
    which LLVM finds in this form only (shifting by 32 is undefined, so `high` goes in two steps)."""
    if isinstance(shift, int):
        return (low >> jnp.uint32(shift)) | (high << jnp.uint32(WORD_BITS - shift)) if shift else low
    return (low >> shift) | ((high << jnp.uint32(1)) << (shift ^ jnp.uint32(31)))


def _times(has: Has, factor: int) -> Has:
    return has * factor % 2**WORD_BITS if isinstance(has, int) else has * jnp.uint32(factor)


def _mask(has: Has, ones: int) -> UInt32[Array, ...]:
    """These ones wherever there is a field, in each half."""
    return jnp.asarray(_times(has, ones), jnp.uint32)
