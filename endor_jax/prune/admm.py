"""ADMM: least squares over the weights that are kept, while ever more of them go (Boža, arXiv 2401.02938).

Objective: min ‖WX − ŴX‖² over Ŵ with zeros where the mask says. Inputs are divided by their norms, so that
the size of a weight says what it matters. One iteration (Algorithm 1, scaled form, ρ = 1), W₀ being the dense
weights:

    Z = (W + D) where kept, else 0;  D += W − Z;  W = (W₀ H + Z − D)(H + I)⁻¹,  H = XXᵀ + λI

In the first iterations the mask is chosen anew, what is least in |W + D| goes, under a cubic schedule
(Algorithm 3); then it stays. Written as W = W₀ + (Z − D − W₀)(H + I)⁻¹ the step rounds only what changes, and
H + I is well conditioned: no eigenvalue is below 1, none above the number of columns + 2. So float32 and an
explicit inverse are enough: one product per iteration in place of two triangular solves.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Shaped

from endor_jax.errors import InvalidInputError
from endor_jax.prune.check import checked_sums, checked_weight
from endor_jax.prune.factor import damped_factor
from endor_jax.prune.masks import keep_highest
from endor_jax.prune.pruned import Pruned
from endor_jax.prune.structure import MATRIX, Structure, drop_count, dropped

NORM_FLOOR = 1e-8
"""Added to the norms of inputs, that those of inputs that were always zero can be divided by."""


def admm(
    weight: Shaped[Array | np.ndarray, "rows columns"],
    gram_products: Shaped[Array | np.ndarray, "inputs inputs"],
    *,
    sparsity: float | None = None,
    structure: Structure = MATRIX,
    damping: float = 0.1,
    iterations: int = 20,
    gradual: int = 15,
) -> Pruned:
    """The pruned matrix, its kept weights updated; `gram_products` are Σ x xᵀ over the calibration inputs.

    sparsity, structure: what goes, exactly drop_count elements. damping: λ over the mean of the diagonal of
    the normalised products. gradual: how many of the iterations choose the mask.

    Raises InvalidInputError for weights that are not finite, products that are not, are all zero or of
    another size, unless 1 <= gradual <= iterations and damping > 0, and what `drop_count` raises. Not to be
    called inside jit: it looks at the numbers.
    """
    rows, columns = weight.shape
    due = drop_count(structure, sparsity, (rows, columns))
    due *= rows if structure.scope == "group" else 1
    if not (1 <= gradual <= iterations and damping > 0):
        raise InvalidInputError(
            "pruning",
            got=f"{gradual} gradual of {iterations} iterations with damping {damping}",
            expected="1 <= gradual <= iterations and damping above 0",
            fix="20 iterations, 15 of them gradual, and 0.1 as in the paper's code suit most models",
        )
    schedule = [dropped(1 - (1 - (step + 1) / gradual) ** 3, due) for step in range(gradual)]
    result = _iterate(
        checked_weight(weight),
        checked_sums(gram_products, (columns, columns)),
        jnp.float32(damping),
        jnp.asarray(schedule, jnp.int32),
        jnp.int32(iterations - gradual),
        structure=structure,
    )
    if not bool(jnp.isfinite(jnp.sum(result.weight))):
        raise InvalidInputError(
            "pruning",
            got="products that lead to weights without end",
            expected="Σ x xᵀ over the inputs, which is symmetric and positive semidefinite",
            fix="sum them up with add_gram, or raise the damping",
        )
    return result


@partial(jax.jit, static_argnames="structure")
def _iterate(
    weight: Float[Array, "rows columns"],
    products: Float[Array, "columns columns"],
    damping: Float[Array, ""],
    schedule: Int32[Array, " gradual"],
    further: Int32[Array, ""],
    *,
    structure: Structure,
) -> Pruned:
    norms = (jnp.sqrt(jnp.diagonal(products)) + NORM_FLOOR)[None, :]
    normalised = products / norms / norms.T
    added = damping * jnp.mean(jnp.diagonal(normalised)) + 1
    factor = damped_factor(normalised, added)
    inverse = jnp.matmul(factor.T, factor, precision=lax.Precision.HIGHEST)
    dense = weight * norms

    def step(state: tuple[jax.Array, jax.Array], keep: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = state[0] + state[1]
        kept = jnp.where(keep, total, jnp.float32(0))
        dual = total - kept
        change = jnp.matmul(kept - dual - dense, inverse, precision=lax.Precision.HIGHEST)
        return dense + change, dual

    def choose(
        state: tuple[jax.Array, jax.Array, jax.Array], drop: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        keep = _chosen(jnp.abs(state[0] + state[1]), drop, structure=structure)
        return (*step(state[:2], keep), keep), None

    start = (dense, jnp.zeros_like(dense), jnp.ones(dense.shape, bool))
    (*state, keep), _ = lax.scan(choose, start, schedule)
    moved, dual = lax.fori_loop(0, further, lambda _, state: step(state, keep), tuple(state))
    result = (moved + dual) / norms
    result = jnp.where(keep & (result != 0), result, jnp.float32(0))
    return Pruned(result, result != 0)


def _chosen(
    size: Float[Array, "rows columns"], drop: Int32[Array, ""], *, structure: Structure
) -> Bool[Array, "rows columns"]:
    """The mask of an iteration. With groups the smallest go of what the groups do not keep."""
    if structure.scope != "group":
        return keep_highest(size, drop, structure=structure)
    of_groups = keep_highest(size, 0, structure=structure)
    return keep_highest(jnp.where(of_groups, jnp.inf, size), drop, structure=MATRIX)
