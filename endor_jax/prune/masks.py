"""Masks from scores on the device: the elements of highest score in every row, matrix or group are kept.

Nothing is sorted. Non-negative float32 numbers are ordered as their bit patterns are, so the k-th smallest is
found by bisection: 31 times compare and count. How many elements go is data, so that matrices of one shape
share a compilation whatever their sparsity.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from endor_jax.prune.structure import Structure, dropped_of_group


@partial(jax.jit, static_argnames="structure")
def keep_highest(
    scores: Float[Array, "rows columns"], drop: Int[Array, ""] | int, *, structure: Structure
) -> Bool[Array, "rows columns"]:
    """Which elements are left when those of lowest score are gone; of equals the one further left stays.

    scores: float32, 0 or more, NaN counts as highest. drop: how many elements go, of every row or of the
    matrix (there, of equals, the one in the earlier row stays); groups do not look at it, they drop what the
    structure says.
    """
    if structure.scope != "group":
        return _highest(scores, jnp.asarray(drop, jnp.int32), over_rows=structure.scope == "matrix")
    rows, columns = scores.shape
    whole = columns - columns % structure.of
    groups = scores[:, :whole].reshape(rows, -1, structure.of)
    kept = keep_of_group(groups, structure.of - structure.kept).reshape(rows, whole)
    rest = keep_of_group(scores[:, whole:], dropped_of_group(structure, columns - whole))
    return jnp.concatenate([kept, rest], axis=1)


def keep_of_group(
    scores: Float[Array, "*groups members"], drop: Int[Array, "*drops"] | int
) -> Bool[Array, "*groups members"]:
    """`keep_highest` in every group (the last axis) by comparing each member with each other.

    drop: how many of a group go, of all the same number, or of rank and shape that broadcast to the groups'.
    """
    bits = _ordered_bits(scores)
    place = jnp.arange(scores.shape[-1])
    further_right = (place[None, :] > place[:, None]).reshape((1,) * (scores.ndim - 1) + (len(place),) * 2)
    own, other = bits[..., :, None], bits[..., None, :]
    lower = (other < own) | ((other == own) & further_right)
    return jnp.sum(lower, axis=-1, dtype=jnp.int32) >= drop


def _highest(
    scores: Float[Array, "rows columns"], drop: Int[Array, ""], *, over_rows: bool
) -> Bool[Array, "rows columns"]:
    bits = _ordered_bits(scores)

    def count(chosen: Bool[Array, "rows columns"]) -> Int[Array, "counted 1"]:
        each = jnp.sum(chosen, axis=1, dtype=jnp.int32, keepdims=True)
        return jnp.sum(each, axis=0, dtype=jnp.int32, keepdims=True) if over_rows else each

    def bisect(step: Int[Array, ""], threshold: UInt32[Array, "counted 1"]) -> UInt32[Array, "counted 1"]:
        higher = threshold | (jnp.uint32(1 << 30) >> step.astype(jnp.uint32))
        return jnp.where(count(bits < higher) < drop, higher, threshold)

    # The highest number with fewer than `drop` elements below it: that of the last element that goes.
    start = jnp.zeros((1 if over_rows else scores.shape[0], 1), jnp.uint32)
    threshold = lax.fori_loop(0, 31, bisect, start)
    ties = bits == threshold
    each = jnp.sum(ties, axis=1, dtype=jnp.int32, keepdims=True)
    kept = count(ties) - (drop - count(bits < threshold))
    before = jnp.cumsum(each, axis=0) - each if over_rows else jnp.zeros_like(each)
    kept = jnp.clip(kept - before, 0, each)

    # Mostly a row's ties all stay or all go; only otherwise are they worth counting from the left.
    kept_ties = lax.cond(
        jnp.all((kept == 0) | (kept == each)),
        lambda: ties & (kept > 0),
        lambda: ties & (jnp.cumsum(ties, axis=1, dtype=jnp.int32) <= kept),
    )
    return (bits > threshold) | kept_ties


def _ordered_bits(scores: Float[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Numbers in the order of the scores. Comparing floats would take subnormal ones for zero on a CPU."""
    return lax.bitcast_convert_type(scores, jnp.uint32) & jnp.uint32(0x7FFF_FFFF)
