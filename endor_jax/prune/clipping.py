"""Scales of quantised groups: the clipping that costs least, and the values of a scale."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

LARGEST = {8: 127, 4: 7}
"""The largest quantised value per bits; the smallest is its negative."""

RATIOS = np.linspace(1, 0.5, 21, dtype=np.float32)
"""Tried for the largest value over the largest weight: below 1 that is clipped, and the others are finer."""


def quantised(
    weight: Float[Array, "*shape"], scale: Float[Array, "*scales"], bits: int
) -> Float[Array, "*shape"]:
    """The whole numbers q of least |weight − q · scale| within ±127 or ±7, float32; 0 for a scale of 0."""
    usable = jnp.where(scale > 0, scale, jnp.float32(jnp.inf))
    return jnp.clip(jnp.round(weight / usable), -LARGEST[bits], LARGEST[bits])


def best_scales(
    weight: Float[Array, "columns rows"],
    keep: Bool[Array, "columns rows"],
    importance: Float[Array, "columns 1"],
    *,
    bits: int,
) -> Float[Array, "1 rows"]:
    """The scale of every row of least Σ importance · (weight − q · scale)² over what is kept.

    A float16 number, held in float32, of equal ones the largest; infinity if float16 holds none of them.
    """
    kept = jnp.where(keep, weight, jnp.float32(0))
    top = jnp.max(jnp.abs(kept), axis=0, keepdims=True) / LARGEST[bits]
    start = (jnp.full_like(top, jnp.inf), jnp.full_like(top, jnp.inf))

    def attempt(
        step: Array, best: tuple[Float[Array, "1 rows"], Float[Array, "1 rows"]]
    ) -> tuple[Float[Array, "1 rows"], Float[Array, "1 rows"]]:
        scale = (top * jnp.asarray(RATIOS)[step]).astype(jnp.float16).astype(jnp.float32)
        difference = kept - quantised(kept, scale, bits) * scale
        cost = jnp.sum(importance * difference * difference, axis=0, keepdims=True)
        better = cost < best[1]
        return jnp.where(better, scale, best[0]), jnp.where(better, cost, best[1])

    return lax.fori_loop(0, len(RATIOS), attempt, start)[0]
