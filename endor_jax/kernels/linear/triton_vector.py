"""The body of the fused product that multiplies element by element: any dtypes, for a few rows of x.

One warp takes one segment of several rows of the matrix and keeps its columns of x in registers meanwhile. x
is float32 and lies as the threads want it, column i of every group side by side: what bfloat16 and float16
products need is exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int, UInt32

from endor_jax.format.layout import FieldLayout
from endor_jax.kernels.groups import groups_of
from endor_jax.kernels.linear.triton_body import ProductBody, Task
from endor_jax.kernels.linear.triton_escapes import escapes_of
from endor_jax.kernels.triton_fields import element_words


def sums_of(
    partial: Float[Array, " numbers"], layout: FieldLayout, rows: int
) -> Float[Array, "sums rows outputs"]:
    """What the programs wrote, by what they summed over."""
    return partial.reshape(-1, rows, layout.rows)


def arrange(x: Float[Array, "rows columns"], layout: FieldLayout) -> Float[Array, " numbers"]:
    """x in the order (segment, row, column within the group, group)."""
    groups = groups_of(layout)
    by_group = x.astype(jnp.float32).reshape(-1, layout.segments, groups.count, groups.columns)
    return by_group.transpose(1, 0, 3, 2).reshape(-1)


def multiply(task: Task, first: Int[Array, ""], which: Int[Array, ""]) -> None:
    """Writes the sums over segment `which` of block.rows rows of the matrix, from `first` on."""
    layout, at_once = task.layout, task.block.at_once
    groups = groups_of(layout)
    group = lax.broadcasted_iota(jnp.int32, (1, groups.count), 1)

    def column(row: int, inside: int) -> Float[Array, "1 groups"]:
        start = ((which * task.rows + row) * groups.columns + inside) * groups.count
        return pltriton.load(task.x.at[start + group])

    values = [[column(row, inside) for inside in range(groups.columns)] for row in range(task.rows)]

    def add(step: Int[Array, ""], _: None) -> None:
        row = first + step * at_once + lax.broadcasted_iota(jnp.int32, (at_once, 1), 0)
        elements = element_words(task.words, layout, jnp.minimum(row, layout.rows - 1), which)
        weights = _floats(elements, layout)
        if layout.bitmap is None and layout.columns % groups.width:
            weights = _without_what_lies_behind(weights, which, group, layout)
        for x_row, ours in enumerate(values):
            total = weights[0] * ours[0]
            for weight, value in zip(weights[1:], ours[1:], strict=True):
                total = total + weight * value
            _write(task, jnp.sum(total, axis=1), row, which=which, x_row=x_row)

    lax.fori_loop(0, task.block.rows // at_once, add, None)


def add_escapes(task: Task, first: Int[Array, ""], which: int) -> None:
    """Writes the sums over the escapes of block.escape_rows rows of the matrix, as those of a segment."""
    groups = groups_of(task.layout)
    mine = first + lax.broadcasted_iota(jnp.int32, (task.block.escape_rows, 1), 0)
    found = escapes_of(task.words, task.layout, first, task.block.escape_rows)

    def add(chunk: Int[Array, ""], sums: list[Float[Array, " rows"]]) -> list[Float[Array, " rows"]]:
        row, column, value = found.chunk(chunk)
        inside = column % groups.width
        added = []
        for x_row, total in enumerate(sums):
            start = (column // groups.width * task.rows + x_row) * groups.columns + inside % groups.columns
            product = value * pltriton.load(task.x.at[start * groups.count + inside // groups.columns])
            added.append(total + jnp.sum(jnp.where(row[None, :] == mine, product[None, :], 0.0), axis=1))
        return added

    zeros = [jnp.zeros(task.block.escape_rows, jnp.float32)] * task.rows
    for x_row, total in enumerate(lax.fori_loop(0, found.chunks, add, zeros)):
        _write(task, total, mine, which=which, x_row=x_row)


def _write(
    task: Task,
    sums: Float[Array, " rows"],
    row: Int[Array, "rows 1"],
    *,
    which: int | Int[Array, ""],
    x_row: int,
) -> None:
    """Of one row of x and these rows of the matrix, where there are such."""
    row = row.reshape(-1)
    start = (which * task.rows + x_row) * task.layout.rows
    pltriton.store(task.out.at[start + row], sums, mask=row < task.layout.rows)


def _floats(
    group: Sequence[UInt32[Array, "rows groups"]], layout: FieldLayout
) -> list[Float[Array, "rows groups"]]:
    """The elements of each group in order, in float32."""
    if layout.dtype == "float32":
        return [lax.bitcast_convert_type(word, jnp.float32) for word in group]
    if layout.dtype == "bfloat16":
        halves = [half for word in group for half in (word << jnp.uint32(16), word & jnp.uint32(0xFFFF0000))]
        return [lax.bitcast_convert_type(half, jnp.float32) for half in halves]
    halves = [half for word in group for half in (word, word >> jnp.uint32(16))]
    return [
        lax.bitcast_convert_type(half.astype(jnp.uint16), jnp.float16).astype(jnp.float32) for half in halves
    ]


def _without_what_lies_behind(
    weights: Sequence[Float[Array, "rows groups"]],
    segment: Int[Array, ""],
    group: Int[Array, "1 groups"],
    layout: FieldLayout,
) -> list[Float[Array, "rows groups"]]:
    """0 for columns beyond the end of a row, where element words are undefined."""
    columns = groups_of(layout).columns
    start = segment * layout.segment + group * columns
    return [
        jnp.where(start + inside < layout.columns, weight, jnp.float32(0))
        for inside, weight in enumerate(weights)
    ]


VECTOR = ProductBody(
    tensor_cores=False,
    padded_rows=lambda rows: rows,
    arrange=arrange,
    sums_of=sums_of,
    multiply=multiply,
    add_escapes=add_escapes,
)
