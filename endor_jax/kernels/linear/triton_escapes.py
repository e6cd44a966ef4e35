"""The escapes of some rows, inside a Pallas-Triton kernel: found by search, handed out in chunks.

The list of a part ascends, so those of a block of rows are neighbours. Where they begin is searched with a
whole block of threads: of 128 places evenly apart all are compared at once, two or three times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int, UInt32

from endor_jax.format.layout import FieldLayout
from endor_jax.kernels.groups import WORD_BITS

CHUNK = 128


@dataclass(frozen=True)
class Escapes:
    """The escapes begin to end - 1 of a part's list. start, count: of the list, in words and escapes."""

    words: Any
    layout: FieldLayout
    start: UInt32[Array, ""]
    count: UInt32[Array, ""]
    begin: Int[Array, ""]
    end: Int[Array, ""]

    @property
    def chunks(self) -> Int[Array, ""]:
        """How many chunks they are."""
        return (self.end - self.begin + (CHUNK - 1)) // CHUNK

    def chunk(
        self, number: Int[Array, ""]
    ) -> tuple[Int[Array, " chunk"], Int[Array, " chunk"], Float[Array, " chunk"]]:
        """Row, column and value in float32 of each; behind the last one row -1, column 0, value 0."""
        place = self.begin + number * CHUNK + lax.broadcasted_iota(jnp.int32, (CHUNK,), 0)
        valid = place < self.end
        index = _read(self.words, self.start + place.astype(jnp.uint32)).astype(jnp.int32)
        columns, bits = self.layout.columns, self.layout.number.bits
        per_word = WORD_BITS // bits
        held = _read(self.words, self.start + self.count + (place // per_word).astype(jnp.uint32))
        held = held >> (place % per_word * (bits % WORD_BITS)).astype(jnp.uint32)
        if bits == WORD_BITS:
            value = lax.bitcast_convert_type(held, jnp.float32)
        else:
            half = lax.bitcast_convert_type(held.astype(jnp.uint16), jnp.dtype(self.layout.dtype))
            value = half.astype(jnp.float32)
        index = jnp.where(valid, index, 0)
        return jnp.where(valid, index // columns, -1), index % columns, jnp.where(valid, value, 0.0)


def escapes_of(words: Any, layout: FieldLayout, first: Int[Array, ""], rows: int) -> Escapes:
    """Those of `rows` rows of the part, from `first` on."""
    start, count = words[layout.header], words[layout.header + 1]
    count = jnp.minimum(count, jnp.uint32(layout.escape_capacity))
    last = jnp.minimum(first + rows, layout.rows)

    def before(row: Int[Array, ""]) -> Int[Array, ""]:
        return _before(words, layout, start, count, (row * layout.columns).astype(jnp.uint32))

    return Escapes(words, layout, start, count, before(first), before(last))


def _before(
    words: Any,
    layout: FieldLayout,
    start: UInt32[Array, ""],
    count: UInt32[Array, ""],
    index: UInt32[Array, ""],
) -> Int[Array, ""]:
    """How many escapes of the list have a smaller index: each of 128 stretches is told by its last."""
    stride = 1
    while stride * CHUNK < layout.escape_capacity:
        stride *= CHUNK
    found = jnp.int32(0)
    while stride:
        last = found + (lax.broadcasted_iota(jnp.int32, (CHUNK,), 0) + 1) * stride - 1
        there = last.astype(jnp.uint32) < count
        smaller = there & (_read(words, start + last.astype(jnp.uint32)) < index)
        found = found + jnp.sum(smaller.astype(jnp.int32)) * stride
        stride //= CHUNK
    return found


def _read(words: Any, place: UInt32[Array, " chunk"]) -> UInt32[Array, " chunk"]:
    """The word at each place, clamped into the part."""
    return pltriton.load(words.at[jnp.minimum(place, jnp.uint32(words.shape[0] - 1)).astype(jnp.int32)])
