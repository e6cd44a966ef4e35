"""The Cholesky factor of an inverse of products of inputs, which SparseGPT and ADMM work with.

For H = Σ x xᵀ + λI the factor is the upper triangular U with UᵀU = H⁻¹. Inverting H and factorising that, as
the paper's code does, squares what rounding costs; here H is factorised as M Mᵀ with M upper triangular (the
Cholesky factor of H with its rows and columns in reverse order), and U = M⁻¹.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from endor_jax.errors import InvalidInputError
from endor_jax.prune.check import checked_sums


def inverse_factor(
    products: Shaped[Array | np.ndarray, "columns columns"], *, damping: float = 0.01
) -> Float[Array, "columns columns"]:
    """U, upper triangular float32, with UᵀU = (products + λI)⁻¹, λ = damping · mean(their diagonal).

    Thanks to λ an input that was always zero needs no special case. Matrices with the same inputs share it.
    Raises InvalidInputError if damping is not above 0, and for products that are not finite, all zero, or
    no sum of x xᵀ. Not to be called inside jit: it looks at the numbers.
    """
    if not damping > 0:
        raise InvalidInputError(
            "pruning",
            got=f"damping {damping}",
            expected="above 0",
            fix="0.01, as the paper has it, suits most models",
        )
    size = products.shape[0]
    checked = checked_sums(products, (size, size))
    factor = damped_factor(checked, damping * jnp.mean(jnp.diagonal(checked)))
    if not bool(jnp.isfinite(jnp.sum(jnp.diagonal(factor)))):
        raise InvalidInputError(
            "pruning",
            got="products that have no Cholesky factor",
            expected="Σ x xᵀ over the inputs, which is symmetric and positive semidefinite",
            fix="sum them up with add_gram, or raise the damping",
        )
    return factor


@jax.jit
def damped_factor(
    products: Float[Array, "columns columns"], added: Float[Array, ""]
) -> Float[Array, "columns columns"]:
    """U, upper triangular, with UᵀU = (products + added · I)⁻¹; NaN if that has no Cholesky factor."""
    identity = jnp.eye(products.shape[0], dtype=jnp.float32)
    damped = products + identity * added
    lower = lax.linalg.cholesky(damped[::-1, ::-1], symmetrize_input=False)
    return lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)[::-1, ::-1]
