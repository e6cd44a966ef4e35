"""Groups of columns that fill 16 bytes, and their elements from the fields of a part: for kernels on a GPU.

A row segment is seen as *groups* of consecutive columns that fill 16 bytes: 8 of a 16-bit dtype, 4 of
float32. One thread has one group at a time, so neighbouring threads read neighbouring fields and store
neighbouring 16 bytes. Within a group nothing is indexed: a *window* of the stream lies in a few registers,
its low bits are the next field, and it is shifted on by b for each element that has one. 16-bit elements are
decoded two at a time, as the halves of a word. Written in jax.numpy throughout, elementwise but for the loads
that a kernel brings along, so that Triton, Mosaic and the tests run the very same code; docs/kernels.md has
the machine instructions that become of it.

Every position read from the part is clamped into it: damage gives wrong values, never a read outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer, UInt32

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


@dataclass(frozen=True)
class Part:
    """The words of a part, in a kernel. load: those at some places, all inside; count: how many there are."""

    load: Callable[[Integer[Array, " ..."]], UInt32[Array, " ..."]]
    count: int


@dataclass(frozen=True)
class Location:
    """Where some groups lie: row of the part, segment of the row, group of the segment; they broadcast."""

    row: Integer[Array, " ..."]
    segment: Integer[Array, " ..."]
    group: Integer[Array, " ..."]


def group_elements(
    part: Part,
    layout: FieldLayout,
    at: Location,
    *,
    position: UInt32[Array, " ..."],
    present: UInt32[Array, " ..."] | None,
) -> list[UInt32[Array, " ..."]]:
    """The elements of each group: word i of it, for i < GROUP_WORDS.

    position: of its first field. present: its bits of the bitmap in the low bits, anything above; None for a
    codec without. Source: docs/format.md, "Codecs", in the order of docs/kernels.md.
    """
    if layout.codec.quantised:
        return _integers(part, layout, position, present, _scales(part, layout, at))
    base = None
    if layout.bases is not None:
        index = at.row * layout.segments + at.segment
        held = part.load(layout.bases.start + index // 4) >> (index % 4 * 8).astype(jnp.uint32)
        base = (held & jnp.uint32(0xFF)) << jnp.uint32(layout.number.mantissa_bits)
    if layout.field_bits == WORD_BITS:
        return _whole_words(part, position, present)
    return _floats(part, layout, position, present, base)


def _scales(part: Part, layout: FieldLayout, at: Location) -> Float[Array, " ..."]:
    """The scale of each group of columns, in float32: a scale serves whole groups."""
    assert layout.scales is not None
    columns = groups_of(layout).columns
    mine = at.segment * (layout.segment // GROUP) + at.group * columns // GROUP
    index = at.row * layout.groups + jnp.minimum(mine, layout.groups - 1)
    held = part.load(layout.scales.start + index // 2) >> (index % 2 * 16).astype(jnp.uint32)
    return lax.bitcast_convert_type(held.astype(jnp.uint16), jnp.float16).astype(jnp.float32)


def _floats(
    part: Part,
    layout: FieldLayout,
    position: UInt32[Array, " ..."],
    present: UInt32[Array, " ..."] | None,
    base: UInt32[Array, " ..."] | None,
) -> list[UInt32[Array, " ..."]]:
    """`raw` and `packed`. Sign-extending, AND and add of the format, for both halves of a word at once:
    what is above the field and what has none is cut off, the sign is moved up by a product."""
    bits, size = layout.field_bits, layout.number.bits
    field, sign = (1 << bits) - 1, 1 << (bits - 1)
    every = HALVES if size == 16 else 1
    found = []
    for value, has in _fields(part, layout, position, present):
        element = value & _mask(has, field)
        if base is not None:
            moved = (1 << (size - bits)) - 1
            element = element + (element & jnp.uint32(every * sign)) * jnp.uint32(moved)
            element = element + jnp.asarray(has, jnp.uint32) * base
        found.append(element)
    return found


def _integers(
    part: Part,
    layout: FieldLayout,
    position: UInt32[Array, " ..."],
    present: UInt32[Array, " ..."] | None,
    scale: Float[Array, " ..."],
) -> list[UInt32[Array, " ..."]]:
    """`int8` and `int4`: sign-extended, multiplied in float32, rounded to the dtype. Integers that there are
    not are 0 before that, which times a scale is +0.0: so two elements are rounded by one instruction."""
    top, field = WORD_BITS - layout.field_bits, (1 << layout.field_bits) - 1

    def element(integer: UInt32[Array, " ..."]) -> UInt32[Array, " ..."]:
        # Not bitcast_convert_type: Mosaic (jax 0.11.2) goes on taking its result for unsigned.
        signed = (integer << jnp.uint32(top)).astype(jnp.int32) >> jnp.int32(top)
        product = (signed.astype(jnp.float32) * scale).astype(dtype_from_name(layout.dtype))
        return lax.bitcast_convert_type(product, layout.number.unsigned).astype(jnp.uint32)

    integers = [value & _mask(has, field) for value, has in _fields(part, layout, position, present)]
    if layout.number.bits == WORD_BITS:
        return [element(integer) for integer in integers]
    return [element(each) | (element(each >> jnp.uint32(16)) << jnp.uint32(16)) for each in integers]


def _whole_words(
    part: Part, position: UInt32[Array, " ..."], present: UInt32[Array, " ..."] | None
) -> list[UInt32[Array, " ..."]]:
    """`raw` float32: fields are words, each read where it is."""
    found = []
    index = position >> jnp.uint32(5)
    for column in range(GROUP_WORDS):
        place = jnp.minimum(index, jnp.uint32(part.count - 1)).astype(jnp.int32)
        value = part.load(place)
        if present is None:
            index = index + jnp.uint32(1)
        else:
            has = (present >> jnp.uint32(column)) & jnp.uint32(1)
            value, index = value & _mask(has, 0xFFFF_FFFF), index + has
        found.append(value)
    return found


Has = int | UInt32[Array, " ..."]
"""1 where an element has a field, else 0: one number, or one in each half of the word. An int: every one."""


def _fields(
    part: Part,
    layout: FieldLayout,
    position: UInt32[Array, " ..."],
    present: UInt32[Array, " ..."] | None,
) -> list[tuple[UInt32[Array, " ..."], Has]]:
    """For every word of the group its field (of float32) or fields (in the low bits of the halves; anything
    above them), and which there are. A field that there is not has any value."""
    bits, columns = layout.field_bits, groups_of(layout).columns
    window = _aligned_window(part, position, columns * bits)
    found: list[tuple[UInt32[Array, " ..."], Has]] = []
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


def _aligned_window(part: Part, position: UInt32[Array, " ..."], length: int) -> list[UInt32[Array, " ..."]]:
    """The `length` bits of the part from each position on, in words; the first word's bit 0 is the first."""
    count = -(-length // WORD_BITS)
    most = count + 1  # a window that does not begin with a word reaches into one more
    first = jnp.minimum(position >> jnp.uint32(5), jnp.uint32(part.count - most)).astype(jnp.int32)
    held = [part.load(first + word) for word in range(most)]
    shift = position & jnp.uint32(31)
    return [_funnel(held[word], held[word + 1], shift) for word in range(count)]


def _shifted(
    window: Sequence[jax.Array], amount: int | UInt32[Array, " ..."], length: int
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
