"""Expand in plain XLA: the twin every other backend must equal, and the fallback-free default on any device.

Per segment of S columns: popcount of the bitmap words, running sum over the words of the segment, popcount of
the bits below each element; that rank times b plus the segment's offset is a bit position, from which two
words of the stream give the field. Without a bitmap the rank is the column within the segment. No running sum
is longer than S/32 words (a global one is 20 times slower), everything else is elementwise and fuses into the
loop that writes the result: nothing of the matrix's size is held beside it, but for one copy of the element
bits where there are escapes to scatter (XLA scatters integers bit for bit, bfloat16 by way of float32).

Positions are clamped into the part by the gather (mode="clip"): damaged offsets give wrong values, never a
read outside.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt, UInt32

from endor_jax.arrays import dtype_from_name, round_up
from endor_jax.format.layout import GROUP, DenseLayout, FieldLayout, Section, matrix_shape
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.order import after

WORD_BITS = 32


def expand(tensor: SparseTensor, earlier: jax.Array | None = None) -> Shaped[Array, " *shape"]:
    """The dense array. See `endor_jax.kernels.expand.api.expand`."""
    layout = tensor.layout
    parts = [jnp.asarray(words) for words in tensor.parts]
    if isinstance(layout, DenseLayout):
        return _dense(parts[0], layout)
    rows, _ = matrix_shape(layout.shape)
    blocks = [_expand_part(words, layout, earlier) for words in parts]
    bits = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks)
    return lax.bitcast_convert_type(bits[:rows].reshape(layout.shape), dtype_from_name(layout.dtype))


def _dense(words: UInt32[Array, " words"], layout: DenseLayout) -> Shaped[Array, " *shape"]:
    """An array stored as its own bytes, at most 4 of them per element."""
    dtype = dtype_from_name(layout.dtype)
    held = lax.bitcast_convert_type(_section(words, layout.data), jnp.dtype(f"uint{8 * dtype.itemsize}"))
    held = held.reshape(-1)[: math.prod(layout.shape)].reshape(layout.shape)
    return held.astype(bool) if dtype == jnp.bool_ else lax.bitcast_convert_type(held, dtype)


def _expand_part(
    words: UInt32[Array, " words"], layout: FieldLayout, earlier: jax.Array | None
) -> UInt[Array, "rows columns"]:
    """Element bits of one part's rows, in the unsigned dtype of the element."""
    rows, segments = layout.rows, layout.segments
    stored, rank = _stored_and_rank(words, layout)
    offsets = _section(words, layout.offsets).reshape(rows, segments, 1)
    if earlier is not None:
        offsets = after(offsets, earlier)
    field = _read_field(words, offsets + rank * jnp.uint32(layout.field_bits), layout.field_bits)
    bits = _elements(field, words, layout)
    if stored is not None:
        bits = jnp.where(stored, bits, jnp.uint32(0))
    bits = bits.reshape(rows, segments * layout.segment)[:, : layout.columns].astype(layout.number.unsigned)
    if not layout.escape_capacity:
        return bits
    return scatter_escapes(bits.reshape(-1), words, layout).reshape(bits.shape)


def _stored_and_rank(
    words: UInt32[Array, " words"], layout: FieldLayout
) -> tuple[Bool[Array, "rows segments segment"] | None, UInt32[Array, "#rows #segments segment"]]:
    """Which elements have a field (None: all), and the rank of each among those of its segment."""
    rows, segment, segments = layout.rows, layout.segment, layout.segments
    if layout.bitmap is None:
        return None, jnp.arange(segment, dtype=jnp.uint32).reshape(1, 1, segment)
    padded = round_up(segment, WORD_BITS)
    bitmap = _section(words, layout.bitmap).reshape(rows, -1)
    bitmap = jnp.pad(bitmap, ((0, 0), (0, segments * padded // WORD_BITS - bitmap.shape[1])))
    bitmap = bitmap.reshape(rows, segments, padded // WORD_BITS, 1)
    counts = lax.population_count(bitmap)
    before = jnp.cumsum(counts, axis=2, dtype=jnp.uint32) - counts
    bit = jnp.arange(WORD_BITS, dtype=jnp.uint32).reshape(1, 1, 1, WORD_BITS)
    stored = ((bitmap >> bit) & jnp.uint32(1)) != 0
    below = lax.population_count(bitmap & ((jnp.uint32(1) << bit) - jnp.uint32(1)))
    shape = (rows, segments, padded)
    return stored.reshape(shape)[:, :, :segment], (before + below).reshape(shape)[:, :, :segment]


def _read_field(
    words: UInt32[Array, " words"], position: UInt32[Array, " *shape"], width: int
) -> UInt32[Array, " *shape"]:
    """The `width` bits of the part that start at each bit position, in the low bits; above them anything."""
    index = position >> jnp.uint32(5)
    shift = position & jnp.uint32(31)
    low = words.at[index].get(mode="clip") >> shift
    if WORD_BITS % width == 0:  # no field crosses a word: streams start on words
        return low
    # Shifted in two steps, because a shift by 32 is undefined and `shift` may be 0.
    high = words.at[index + jnp.uint32(1)].get(mode="clip")
    return low | ((high << jnp.uint32(1)) << (jnp.uint32(31) - shift))


def _elements(
    field: UInt32[Array, "rows segments segment"], words: UInt32[Array, " words"], layout: FieldLayout
) -> UInt32[Array, "rows segments segment"]:
    """Element bits from fields, in the low bits (docs/format.md, "Codecs"): packed ones sign-extend, AND,
    add; integers sign-extend, multiply, round."""
    number, width = layout.number, layout.field_bits
    if layout.codec.quantised:
        top = jnp.int32(WORD_BITS - width)
        integer = (lax.bitcast_convert_type(field, jnp.int32) << top) >> top
        return _rounded(integer.astype(jnp.float32) * _column_scales(words, layout), layout)
    if layout.bases is None:
        return field
    held = lax.bitcast_convert_type(_section(words, layout.bases), jnp.uint8).reshape(-1)
    bases = held[: layout.rows * layout.segments].reshape(layout.rows, layout.segments, 1).astype(jnp.uint32)
    top = WORD_BITS - width
    extended = lax.bitcast_convert_type(field << jnp.uint32(top), jnp.int32) >> jnp.int32(top)
    keep = jnp.uint32(1 << (number.bits - 1) | (1 << (width - 1)) - 1)
    return (lax.bitcast_convert_type(extended, jnp.uint32) & keep) + (
        bases << jnp.uint32(number.mantissa_bits)
    )


def _rounded(
    product: Float[Array, "rows segments segment"], layout: FieldLayout
) -> UInt32[Array, "rows segments segment"]:
    """float32 as element bits, rounded to nearest even, in the low bits."""
    if layout.dtype == "bfloat16":
        # In integers: XLA may leave out a conversion to bfloat16 where one to float32 follows.
        bits = lax.bitcast_convert_type(product, jnp.uint32)
        odd = (bits >> jnp.uint32(16)) & jnp.uint32(1)
        return (bits + (odd + jnp.uint32(0x7FFF))) >> jnp.uint32(16)
    rounded = product.astype(dtype_from_name(layout.dtype))
    return lax.bitcast_convert_type(rounded, layout.number.unsigned).astype(jnp.uint32)


def _column_scales(
    words: UInt32[Array, " words"], layout: FieldLayout
) -> Float[Array, "rows segments segment"]:
    """The scale of every column's group, in float32."""
    assert layout.scales is not None
    rows, groups, columns = layout.rows, layout.groups, layout.segments * layout.segment
    held = lax.bitcast_convert_type(_section(words, layout.scales), jnp.float16).reshape(-1)
    scales = held[: rows * groups].reshape(rows, groups, 1).astype(jnp.float32)
    spread = jnp.broadcast_to(scales, (rows, groups, GROUP)).reshape(rows, groups * GROUP)
    spread = jnp.pad(spread, ((0, 0), (0, max(0, columns - groups * GROUP))))[:, :columns]
    return spread.reshape(rows, layout.segments, layout.segment)


def scatter_escapes(
    bits: UInt[Array, " elements"], words: UInt32[Array, " words"], layout: FieldLayout, *, first: int = 0
) -> UInt[Array, " elements"]:
    """Writes a part's escape list over its expanded rows, the first element of which is number `first`;
    entries beyond the list's length, or the part's rows, go nowhere."""
    start, count = words[layout.header], words[layout.header + 1]
    entry = jnp.arange(layout.escape_capacity, dtype=jnp.uint32)
    index = words.at[start + entry].get(mode="clip")
    per_word = WORD_BITS // layout.number.bits
    packed = words.at[start + count + entry // jnp.uint32(per_word)].get(mode="clip")
    shift = (entry % jnp.uint32(per_word)) * jnp.uint32(layout.number.bits % WORD_BITS)
    value = (packed >> shift).astype(bits.dtype)
    inside = (entry < count) & (index < jnp.uint32(layout.rows * layout.columns))
    # Behind the end, each at its own place: what the scatter is told (unique, sorted) stays true.
    index = jnp.where(inside, index + jnp.uint32(first), jnp.uint32(bits.size) + entry)
    return bits.at[index].set(value, mode="drop", unique_indices=True, indices_are_sorted=True)


def _section(words: UInt32[Array, " words"], section: Section) -> UInt32[Array, " section"]:
    return lax.slice(words, (section.start,), (section.stop,))
