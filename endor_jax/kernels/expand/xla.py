"""Expand in plain XLA: the twin every other backend must equal, and the fallback-free default on any device.

Per segment of S columns: popcount of the bitmap words, running sum over the words of the segment, popcount of
the bits below each element; that rank times b plus the segment's offset is a bit position, from which two
words of the stream give the field. No running sum is longer than S/32 words (a global one is 20 times
slower), everything else is elementwise and fuses into the loop that writes the result.

Positions are clamped into the part by the gather (mode="clip"): damaged offsets give wrong values, never a
read outside.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Shaped, UInt, UInt32

from endor_jax.arrays import dtype_from_name, round_up
from endor_jax.format.layout import DenseLayout, FieldLayout, Section, matrix_shape
from endor_jax.format.tensor import SparseTensor

WORD_BITS = 32


def expand(tensor: SparseTensor) -> Shaped[Array, "..."]:
    """The dense array. See `endor_jax.kernels.expand.api.expand`."""
    layout = tensor.layout
    parts = [jnp.asarray(words) for words in tensor.parts]
    if isinstance(layout, DenseLayout):
        return _dense(parts[0], layout)
    rows, _ = matrix_shape(layout.shape)
    blocks = [_expand_part(words, layout) for words in parts]
    bits = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks)
    return lax.bitcast_convert_type(bits[:rows].reshape(layout.shape), dtype_from_name(layout.dtype))


def _dense(words: UInt32[Array, " words"], layout: DenseLayout) -> Shaped[Array, "..."]:
    """An array stored as its own bytes."""
    dtype = dtype_from_name(layout.dtype)
    count = math.prod(layout.shape)
    held = _section(words, layout.data)
    if dtype.itemsize < 4:
        held = lax.bitcast_convert_type(held, jnp.dtype(f"uint{8 * dtype.itemsize}")).reshape(-1)
    elif dtype.itemsize > 4:
        held = held.reshape(-1, dtype.itemsize // 4)
    if dtype == jnp.bool_:
        return held[:count].reshape(layout.shape).astype(bool)
    return lax.bitcast_convert_type(held, dtype).reshape(-1)[:count].reshape(layout.shape)


def _expand_part(words: UInt32[Array, " words"], layout: FieldLayout) -> UInt[Array, "rows columns"]:
    """Element bits of one part's rows, in the unsigned dtype of the element."""
    rows, segment, segments = layout.rows, layout.segment, layout.segments
    stored, rank = _stored_and_rank(words, layout)
    offsets = _section(words, layout.offsets).reshape(rows, segments, 1)
    position = offsets + rank * jnp.uint32(layout.field_bits)
    field = _read_field(words, position, layout.field_bits)
    bits = jnp.where(stored, _elements(field, words, layout), jnp.uint32(0))
    bits = bits.reshape(rows, segments * segment)[:, : layout.columns].astype(layout.number.unsigned)
    return _scatter_escapes(bits, words, layout) if layout.escape_capacity else bits


def _stored_and_rank(
    words: UInt32[Array, " words"], layout: FieldLayout
) -> tuple[Bool[Array, "rows segments segment"], UInt32[Array, "rows segments segment"]]:
    """Which elements have a field, and the rank of each among those of its segment."""
    rows, segment, segments = layout.rows, layout.segment, layout.segments
    if layout.bitmap is None:
        column = jnp.arange(segments * segment, dtype=jnp.uint32).reshape(1, segments, segment)
        shape = (rows, segments, segment)
        return jnp.ones(shape, bool), jnp.broadcast_to(column % jnp.uint32(segment), shape)
    padded = round_up(segment, WORD_BITS)
    bitmap = _section(words, layout.bitmap).reshape(rows, -1)
    bitmap = jnp.pad(bitmap, ((0, 0), (0, segments * padded // WORD_BITS - bitmap.shape[1])))
    bitmap = bitmap.reshape(rows, segments, padded // WORD_BITS, 1)
    counts = lax.population_count(bitmap)
    before = jnp.cumsum(counts, axis=2, dtype=jnp.uint32) - counts
    bit = jnp.arange(WORD_BITS, dtype=jnp.uint32)
    stored = (bitmap >> bit) & jnp.uint32(1)
    below = lax.population_count(bitmap & ((jnp.uint32(1) << bit) - jnp.uint32(1)))
    shape = (rows, segments, padded)
    return (stored != 0).reshape(shape)[:, :, :segment], (before + below).reshape(shape)[:, :, :segment]


def _read_field(
    words: UInt32[Array, " words"], position: UInt32[Array, "..."], width: int
) -> UInt32[Array, "..."]:
    """The `width` bits of the part that start at each bit position."""
    index = position >> jnp.uint32(5)
    shift = position & jnp.uint32(31)
    low = words.at[index].get(mode="clip") >> shift
    if WORD_BITS % width:  # otherwise no field crosses a word: streams start on words
        # Shifted in two steps, because a shift by 32 is undefined and `shift` may be 0.
        high = words.at[index + jnp.uint32(1)].get(mode="clip")
        low = low | ((high << jnp.uint32(1)) << (jnp.uint32(31) - shift))
    return low & jnp.uint32((1 << width) - 1)


def _elements(
    field: UInt32[Array, "rows segments segment"], words: UInt32[Array, " words"], layout: FieldLayout
) -> UInt32[Array, "rows segments segment"]:
    """Element bits from fields (docs/format.md, "Decoding a packed field")."""
    if layout.bases is None:
        return field
    number, width = layout.number, layout.field_bits
    held = lax.bitcast_convert_type(_section(words, layout.bases), jnp.uint8).reshape(-1)
    bases = held[: layout.rows * layout.segments].reshape(layout.rows, layout.segments, 1).astype(jnp.uint32)
    sign = (field >> jnp.uint32(width - 1)) << jnp.uint32(number.bits - 1)
    magnitude = field & jnp.uint32((1 << (width - 1)) - 1)
    return sign | (magnitude + (bases << jnp.uint32(number.mantissa_bits)))


def _scatter_escapes(
    bits: UInt[Array, "rows columns"], words: UInt32[Array, " words"], layout: FieldLayout
) -> UInt[Array, "rows columns"]:
    """Writes the escape list over the expanded rows; entries beyond the list's length go nowhere."""
    start, count = words[layout.header], words[layout.header + 1]
    entry = jnp.arange(layout.escape_capacity, dtype=jnp.uint32)
    index = words.at[start + entry].get(mode="clip")
    per_word = WORD_BITS // layout.number.bits
    packed = words.at[start + count + entry // jnp.uint32(per_word)].get(mode="clip")
    shift = (entry % jnp.uint32(per_word)) * jnp.uint32(layout.number.bits % WORD_BITS)
    value = (packed >> shift).astype(bits.dtype)
    index = jnp.where(entry < count, index, jnp.uint32(bits.size))
    flat = bits.reshape(-1).at[index].set(value, mode="drop", unique_indices=True, indices_are_sorted=True)
    return flat.reshape(bits.shape)


def _section(words: UInt32[Array, " words"], section: Section) -> UInt32[Array, " section"]:
    return lax.slice(words, (section.start,), (section.stop,))
