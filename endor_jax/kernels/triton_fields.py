"""Element bits from the words of a part, inside a Pallas-Triton kernel: what a block of rows reads.

The arithmetic on groups of columns is in `kernels/groups.py`; here are the loads of a block of them, the
running sum over the words of its bitmap, and how the words of all groups become one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Int, UInt16, UInt32

from endor_jax.format.bitmap import words_per_row
from endor_jax.format.layout import FieldLayout
from endor_jax.kernels.groups import (
    GROUP_WORDS,
    SEGMENT_WORDS,
    Groups,
    Location,
    Part,
    group_elements,
    groups_of,
)

Words = Any
"""A Pallas reference to the uint32 words of a part."""


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
    part = Part(partial(_load, words), words.shape[0])
    group = chunk.first_group + lax.broadcasted_iota(jnp.int32, (chunk.row.shape[0], groups.count), 1)
    at = Location(chunk.row, chunk.segment, group)
    return group_elements(part, layout, at, position=position, present=present), behind


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
