"""What a matrix should be, before it is pruned, when its inputs have changed already.

The layers before a matrix are pruned, so it gets x̃ where the dense model had x. The weights W* that give
what the dense model gave, min ‖W*x̃ − Wx‖² + λ‖W* − W‖², are W* = W(C + λI)(H + λI)⁻¹ with C = Σ x x̃ᵀ and
H = Σ x̃x̃ᵀ. Pruning W* against H is then calibration against the dense model (asymmetric calibration, the aim
of GPTAQ, arXiv 2504.02692, there for quantising, column by column). W* fits the calibration text too well:
so only half of the way is gone (QEP, arXiv 2504.09629, has the same parameter; docs/pruning.md has figures).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from endor_jax.prune.check import checked_sums, checked_weight

STRENGTH = 0.5
"""Of the way from W to W*; the value that QEP takes."""
DAMPING = 0.1
"""λ over the mean of the products' diagonal."""


def retarget(
    weight: Shaped[Array | np.ndarray, "rows columns"],
    factor: Float[Array, "columns columns"],
    *,
    gram_products: Shaped[Array | np.ndarray, "columns columns"],
    cross_products: Shaped[Array | np.ndarray, "columns columns"],
    strength: float = STRENGTH,
) -> Float[Array, "rows columns"]:
    """W + strength · (W* − W), float32; W itself, to the bit, where the inputs did not change.

    gram_products: Σ x̃x̃ᵀ over the pruned model's inputs; factor: their `inverse_factor`, whose damping is λ.
    cross_products: Σ x x̃ᵀ, the dense model's on the left. Raises InvalidInputError for weights or sums that
    are not finite, and sums that are all zero. Not to be called inside jit: it looks at the numbers.
    """
    shape = (weight.shape[1],) * 2
    moved, cross = checked_sums(gram_products, shape), checked_sums(cross_products, shape)
    return _retarget(checked_weight(weight), factor, cross - moved, jnp.float32(strength))


@jax.jit
def _retarget(
    weight: Float[Array, "rows columns"],
    factor: Float[Array, "columns columns"],
    change: Float[Array, "columns columns"],
    strength: Float[Array, ""],
) -> Float[Array, "rows columns"]:
    """W + W (C − H) UᵀU: only what changes is rounded."""
    step = jnp.matmul(weight, change, precision=lax.Precision.HIGHEST)
    step = jnp.matmul(step, factor.T, precision=lax.Precision.HIGHEST)
    return weight + strength * jnp.matmul(step, factor, precision=lax.Precision.HIGHEST)
