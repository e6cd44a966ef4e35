"""The body of the fused product that multiplies on tensor cores: a 16-bit dtype, up to 128 rows of x.

Warps expand a tile of some rows by some columns in registers, which becomes the first factor of a matrix
product; the same columns of x are the second. A row is gone through tile by tile: the fields of one begin
where those of the last ended.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int, UInt32

from endor_jax.arrays import dtype_from_name
from endor_jax.format.bitmap import words_per_row
from endor_jax.format.layout import FieldLayout
from endor_jax.kernels.groups import groups_of
from endor_jax.kernels.linear.triton_body import ProductBody, Task
from endor_jax.kernels.linear.triton_escapes import CHUNK, escapes_of
from endor_jax.kernels.triton_fields import Chunk, chunk_words, halves_in_order, segment_start

LEAST_ROWS = 16
"""Of x, of any factor that Triton gives to tensor cores."""


def padded_rows(rows: int) -> int:
    """How many rows of sums there are for so many rows of x: a power of two, as Triton wants it."""
    return max(LEAST_ROWS, 1 << (rows - 1).bit_length())


def arrange(x: Float[Array, "rows columns"], layout: FieldLayout) -> Float[Array, " numbers"]:
    """x with rows of zeros up to `padded_rows`."""
    del layout
    return jnp.pad(x, ((0, padded_rows(x.shape[0]) - x.shape[0]), (0, 0))).reshape(-1)


def sums_of(
    partial: Float[Array, " numbers"], layout: FieldLayout, rows: int
) -> Float[Array, "sums rows outputs"]:
    """What the programs wrote, by what they summed over."""
    return partial.reshape(-1, layout.rows, padded_rows(rows))[:, :, :rows].transpose(0, 2, 1)


def multiply(task: Task, first: Int[Array, ""], which: Int[Array, ""]) -> None:
    """Writes the sums over the `which`-th block.segments segments of block.rows rows of the matrix."""
    layout, block = task.layout, task.block
    groups, width = groups_of(layout, most_words=block.words), groups_of(layout).width
    tiles = width // groups.width  # of a segment
    row = first + lax.broadcasted_iota(jnp.int32, (block.rows, 1), 0)
    existing = jnp.minimum(row, layout.rows - 1)
    inside = lax.broadcasted_iota(jnp.int32, (1, groups.width), 1)
    x_row = lax.broadcasted_iota(jnp.int32, (padded_rows(task.rows), 1), 0)

    def add(
        number: Int[Array, ""], state: tuple[UInt32[Array, "rows 1"], Float[Array, "rows x_rows"]]
    ) -> tuple[UInt32[Array, "rows 1"], Float[Array, "rows x_rows"]]:
        position, sums = state
        chunk = Chunk(groups, existing, number // tiles, number % tiles * groups.words)
        elements, position = chunk_words(task.words, layout, chunk, position)
        bits = halves_in_order(elements).reshape(block.rows, groups.width)
        column = number * groups.width + inside
        if layout.bitmap is None and layout.columns % width:
            bits = jnp.where(column < layout.columns, bits, jnp.uint16(0))
        weights = lax.bitcast_convert_type(bits, dtype_from_name(layout.dtype))
        values = pltriton.load(task.x.at[x_row * (layout.segments * width) + column])
        return position, sums + pltriton.dot(weights, values, trans_b=True)

    begin = which * block.segments
    # Not to the end of the last segment: what follows a row in the part are no elements of it.
    in_row = -(-words_per_row(layout.columns) // groups.words)
    end = jnp.minimum((begin + block.segments) * tiles, in_row)
    state = segment_start(task.words, layout, existing, begin), _zeros(block.rows, task.rows)
    _, sums = lax.fori_loop(begin * tiles, end, add, state)
    _write(task, sums, row, which)


def add_escapes(task: Task, first: Int[Array, ""], which: int) -> None:
    """Writes the sums over the escapes of block.escape_rows rows of the matrix, as those of `which`: a
    product too, of a matrix that has each escape of a chunk in a column of its own."""
    layout, at_once = task.layout, task.block.escape_rows
    row = first + lax.broadcasted_iota(jnp.int32, (at_once, 1), 0)
    x_row = lax.broadcasted_iota(jnp.int32, (padded_rows(task.rows), CHUNK), 0)
    found = escapes_of(task.words, layout, first, at_once)

    def add(number: Int[Array, ""], sums: Float[Array, "rows x_rows"]) -> Float[Array, "rows x_rows"]:
        mine, column, value = found.chunk(number)
        weights = jnp.where(mine[None, :] == row, value[None, :], 0.0).astype(dtype_from_name(layout.dtype))
        place = x_row * (layout.segments * groups_of(layout).width) + column[None, :]
        values = pltriton.load(task.x.at[place])
        return sums + pltriton.dot(weights, values, trans_b=True)

    sums = lax.fori_loop(0, found.chunks, add, _zeros(at_once, task.rows))
    _write(task, sums, row, which)


def _zeros(count: int, rows: int) -> Float[Array, "rows x_rows"]:
    return jnp.zeros((count, padded_rows(rows)), jnp.float32)


def _write(
    task: Task, sums: Float[Array, "rows x_rows"], row: Int[Array, "rows 1"], which: int | Int[Array, ""]
) -> None:
    x_row = lax.broadcasted_iota(jnp.int32, (1, sums.shape[1]), 1)
    place = (which * task.layout.rows + row) * sums.shape[1] + x_row
    mask = jnp.broadcast_to(row < task.layout.rows, sums.shape)
    pltriton.store(task.out.at[place], sums, mask=mask)


TENSOR = ProductBody(
    tensor_cores=True,
    padded_rows=padded_rows,
    arrange=arrange,
    sums_of=sums_of,
    multiply=multiply,
    add_escapes=add_escapes,
)
