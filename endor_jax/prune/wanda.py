"""Wanda: keep the weights of largest |weight| · ‖its input‖ (Sun et al., arXiv 2306.11695).

Objective: of all masks that leave the other weights as they are, approximately the one of least ‖WX − ŴX‖;
eq. 1 of the paper is that error for one weight alone. Per row by default, as the paper found best.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from endor_jax.prune.check import checked_sums, checked_weight
from endor_jax.prune.masks import keep_highest
from endor_jax.prune.structure import ROW, Structure, drop_count


def wanda_scores(
    weight: Float[Array, "rows columns"], squared_norms: Float[Array, " columns"]
) -> Float[Array, "rows columns"]:
    """S_rc = |W_rc| · ‖X_c‖₂ (eq. 1), float32; `squared_norms` are Σ x_c² over the calibration inputs."""
    return jnp.abs(weight.astype(jnp.float32)) * jnp.sqrt(squared_norms)[None, :]


def wanda(
    weight: Float[Array | np.ndarray, "rows columns"],
    squared_norms: Float[Array | np.ndarray, " sums"],
    *,
    sparsity: float | None = None,
    structure: Structure = ROW,
) -> Bool[Array, "rows columns"]:
    """Which weights to keep; `squared_norms`, as in `wanda_scores`, are one number per column.

    Every row loses exactly dropped(sparsity, columns), natural zeros first.

    Raises InvalidInputError unless 0 <= sparsity < 1 or the structure fixes it, and for weights or norms that
    are not finite, or norms that are all zero. Not to be called inside jit: it looks at the numbers.
    """
    rows, columns = weight.shape
    drop = drop_count(structure, sparsity, (rows, columns))
    scores = wanda_scores(checked_weight(weight), checked_sums(squared_norms, (columns,)))
    return keep_highest(scores, drop, structure=structure)
