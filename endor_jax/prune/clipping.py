"""Scales of quantised groups: the clipping that costs least, and the values of a scale."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from endor_jax.format.quantise import largest_value

SWEEP_RATIOS = np.linspace(1, 0.5, 21, dtype=np.float32)
"""Shares of a block's largest weight that are tried as the largest value: below 1 that weight is clipped, and
the others are finer.

More of them than `format.quantise` tries, which goes through all elements once for each: in a sweep they are
cheap. Against the 8 tried there at 4 bits, two matrices of SmolLM2-135M took 10 to 15 % longer and ended with
0.2 to 0.3 % less error; at 8 bits any do.
"""


def quantised(
    weight: Float[Array, "*shape"], scale: Float[Array, "*scales"], bits: int
) -> Float[Array, "*shape"]:
    """The whole numbers q of least |weight − q · scale| within ±127 or ±7, float32; 0 for a scale of 0."""
    usable = jnp.where(scale > 0, scale, jnp.float32(jnp.inf))
    return jnp.clip(jnp.round(weight / usable), -largest_value(bits), largest_value(bits))


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
    top = jnp.max(jnp.abs(kept), axis=0, keepdims=True) / largest_value(bits)
    start = (jnp.full_like(top, jnp.inf), jnp.full_like(top, jnp.inf))

    def attempt(
        step: Array, best: tuple[Float[Array, "1 rows"], Float[Array, "1 rows"]]
    ) -> tuple[Float[Array, "1 rows"], Float[Array, "1 rows"]]:
        scale = (top * jnp.asarray(SWEEP_RATIOS)[step]).astype(jnp.float16).astype(jnp.float32)
        difference = kept - quantised(kept, scale, bits) * scale
        cost = jnp.sum(importance * difference * difference, axis=0, keepdims=True)
        better = cost < best[1]
        return jnp.where(better, scale, best[0]), jnp.where(better, cost, best[1])

    return lax.fori_loop(0, len(SWEEP_RATIOS), attempt, start)[0]
