"""SparseGPT's sweep over the columns (arXiv 2301.00774, Algorithm 1), jitted.

Arrays are transposed inside, (columns, rows), so that a column is contiguous. What columns to come owe to
those that are done is subtracted lazily, by products of matrices: once per block of 128 columns from all
others, once per strip inside a block from the block. U is zero left of its diagonal, so none of this reaches
a column that is done.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float16, Int8, Int32

from endor_jax.format.layout import GROUP
from endor_jax.prune.clipping import best_scales, quantised
from endor_jax.prune.masks import keep_highest, keep_of_group
from endor_jax.prune.pruned import Pruned
from endor_jax.prune.structure import Structure, dropped, dropped_of_group

STRIP = 32


def block_columns(structure: Structure) -> int:
    """Columns between two lazy updates: those that share a scale in the format, 128, or the most below that
    are whole groups of zeros."""
    return GROUP - (GROUP % structure.of if structure.scope == "group" else 0)


def block_drops(structure: Structure, sparsity: float | None, shape: tuple[int, int]) -> np.ndarray:
    """How many go in every block, of the matrix or of every row; for groups zeros, that nobody looks at."""
    rows, columns = shape
    block = block_columns(structure)
    ends = [min(start + block, columns) for start in range(0, columns, block)]
    each = rows if structure.scope == "matrix" else 1
    share = 0.0 if sparsity is None or structure.scope == "group" else sparsity
    return np.diff([dropped(share, each * end) for end in ends], prepend=0).astype(np.int32)


@partial(jax.jit, static_argnames=("structure", "bits"))
def sweep(
    weight: Float[Array, "rows columns"],
    factor: Float[Array, "columns columns"],
    drops: Int32[Array, " blocks"],
    mask: Bool[Array, "rows columns"] | None,
    *,
    structure: Structure,
    bits: int | None,
) -> Pruned:
    """All blocks, one after the other; columns are filled up to whole blocks with zeros that are kept."""
    rows, columns = weight.shape
    block = block_columns(structure)
    filling = -columns % block
    state = jnp.pad(weight.T, ((0, filling), (0, 0)))
    given = None if mask is None else jnp.pad(mask.T, ((0, filling), (0, 0)))
    filled = jnp.arange(columns, columns + filling)
    influences = jnp.pad(factor, (0, filling)).at[filled, filled].set(1)

    def one_block(state: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple]:
        start, drop = step
        influence = lax.dynamic_slice(influences, (start, 0), (block, columns + filling))
        done = _block(
            lax.dynamic_slice(state, (start, 0), (block, rows)),
            lax.dynamic_slice(influence, (0, start), (block, block)),
            None if given is None else lax.dynamic_slice(given, (start, 0), (block, rows)),
            drop=drop,
            left=columns - start,
            structure=structure,
            bits=bits,
        )
        state = _made_up_for(state, influence, done.errors)
        return lax.dynamic_update_slice(state, done.weight, (start, 0)), (done.values, done.scales)

    starts = jnp.arange(0, columns, block, dtype=jnp.int32)
    state, quantised_blocks = lax.scan(one_block, state, (starts, drops))
    result = state[:columns].T
    if bits is None:
        return Pruned(result, result != 0)
    values, scales = (blocks.reshape(-1, rows).T for blocks in quantised_blocks)
    return Pruned(result, result != 0, values[:, :columns], scales)


class _Done(NamedTuple):
    """Some columns as they stay, their errors over their pivots U_cc; values and scales if quantised."""

    weight: Float[Array, "columns rows"]
    errors: Float[Array, "columns rows"]
    values: Int8[Array, "columns rows"] | None = None
    scales: Float16[Array, "1 rows"] | None = None


def _block(
    current: Float[Array, "columns rows"],
    influence: Float[Array, "columns columns"],
    given: Bool[Array, "columns rows"] | None,
    *,
    drop: Int32[Array, ""],
    left: Int32[Array, ""],
    structure: Structure,
    bits: int | None,
) -> _Done:
    """A block, strip by strip. Its mask is given, or chosen now, or, with groups, where each begins.

    left: columns from the block's first one to the matrix's last; there may be fewer than in the block.
    """
    columns, rows = current.shape
    pivots = jnp.diagonal(influence)[:, None]
    in_groups = given is None and structure.scope == "group"
    if given is not None:
        keep = given
    elif in_groups:  # for the scales alone
        keep = _group_mask(current, pivots, left, structure=structure)
    else:
        scores = jnp.where((jnp.arange(columns) < left)[:, None], jnp.abs(current) / pivots, jnp.inf)
        keep = keep_highest(scores.T, drop, structure=structure).T
    scale = None if bits is None else best_scales(current, keep, 1 / jnp.square(pivots), bits=bits)
    width = structure.of if in_groups else STRIP

    def one_strip(current: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = lax.dynamic_slice(current, (start, 0), (width, rows))
        own_influence = lax.dynamic_slice(influence, (start, 0), (width, columns))
        own_keep = lax.dynamic_slice(keep, (start, 0), (width, rows))
        if in_groups:
            own_pivots = lax.dynamic_slice(pivots, (start, 0), (width, 1))
            own_keep = _group_mask(own, own_pivots, left - start, structure=structure)
        inner = lax.dynamic_slice(own_influence, (0, start), (width, width))
        weight, errors = _strip(own, inner, own_keep, scale, bits=bits)
        current = _made_up_for(current, own_influence, errors)
        return lax.dynamic_update_slice(current, weight, (start, 0)), errors

    starts = jnp.arange(0, columns, width, dtype=jnp.int32)
    weight, errors = lax.scan(one_strip, current, starts)
    errors = errors.reshape(columns, rows)
    if scale is None or bits is None:
        return _Done(weight, errors)
    values = quantised(weight, scale, bits)
    scale = jnp.where(jnp.any(values != 0, axis=0, keepdims=True), scale, jnp.float32(0))
    return _Done(weight, errors, values.astype(jnp.int8), scale.astype(jnp.float16))


def _group_mask(
    current: Float[Array, "columns rows"],
    pivots: Float[Array, "columns 1"],
    left: Int32[Array, ""],
    *,
    structure: Structure,
) -> Bool[Array, "columns rows"]:
    """The mask of whole groups; of the columns only the first `left` count."""
    columns, rows = current.shape
    scores = jnp.where((jnp.arange(columns) < left)[:, None], jnp.abs(current) / pivots, jnp.inf)
    members = jnp.clip(left - jnp.arange(0, columns, structure.of), 0, structure.of)
    drop = dropped_of_group(structure, members)[None, :, None]
    return keep_of_group(scores.T.reshape(rows, -1, structure.of), drop).reshape(rows, columns).T


def _strip(
    current: Float[Array, "columns rows"],
    influence: Float[Array, "columns columns"],
    keep: Bool[Array, "columns rows"],
    scale: Float[Array, "1 rows"] | None,
    *,
    bits: int | None,
) -> tuple[Float[Array, "columns rows"], Float[Array, "columns rows"]]:
    """The inner loop of Algorithm 1: the columns as they stay, and their errors over their pivots."""

    def one_column(current: jax.Array, column: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        weight = lax.dynamic_slice_in_dim(current, column, 1)
        reach = lax.dynamic_slice_in_dim(influence, column, 1)
        target = weight
        if scale is not None and bits is not None:
            target = quantised(weight, scale, bits) * scale
        # Comparing takes a -0.0 for zero, which is then stored as +0.0.
        stays = jnp.where(lax.dynamic_slice_in_dim(keep, column, 1) & (target != 0), target, jnp.float32(0))
        error = (weight - stays) / lax.dynamic_slice_in_dim(reach, column, 1, axis=1)
        return current - reach.T * error, (stays[0], error[0])

    return lax.scan(one_column, current, jnp.arange(len(current)))[1]


def _made_up_for(
    current: Float[Array, "columns rows"],
    influence: Float[Array, "done columns"],
    errors: Float[Array, "done rows"],
) -> Float[Array, "columns rows"]:
    """Columns with the errors of those that are done subtracted, as far as these influence them."""
    return current - jnp.matmul(influence.T, errors, precision=lax.Precision.HIGHEST)
