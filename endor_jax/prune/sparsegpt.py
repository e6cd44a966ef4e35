"""SparseGPT: choose what goes, column by column, and make up for it in the columns to come.

Frantar and Alistarh, arXiv 2301.00774, Algorithm 1. Objective: min ‖WX − ŴX‖² over masks and kept weights.
With H = XXᵀ + λI and the factor U, UᵀU = H⁻¹: when column c is set to q_c, the error e = (w_c − q_c) / U_cc
is made up for by w_j −= e · U_cj in all columns j > c. Which weights go is decided per block of columns:
those of least w_c² / U_cc² (eq. 3 and 5). Quantising is the same with another q_c (section 3.5).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.layout import GROUP
from endor_jax.format.quantise import largest_value
from endor_jax.prune.check import checked_weight
from endor_jax.prune.factor import inverse_factor
from endor_jax.prune.pruned import Pruned
from endor_jax.prune.structure import MATRIX, Structure, drop_count
from endor_jax.prune.sweep import block_drops, sweep


def sparsegpt(
    weight: Shaped[Array | np.ndarray, "rows columns"],
    gram_products: Shaped[Array | np.ndarray, "inputs inputs"],
    *,
    sparsity: float | None = None,
    structure: Structure = MATRIX,
    damping: float = 0.01,
    bits: int | None = None,
    mask: Bool[Array | np.ndarray, "rows columns"] | None = None,
) -> Pruned:
    """The pruned matrix, its kept weights updated; `gram_products` are Σ x xᵀ over the calibration inputs.

    `sparsegpt_with_factor` says more; with it matrices that have the same inputs share a factor. Raises what
    that and `inverse_factor` raise.
    """
    factor = inverse_factor(gram_products, damping=damping)
    return sparsegpt_with_factor(weight, factor, sparsity=sparsity, structure=structure, bits=bits, mask=mask)


def sparsegpt_with_factor(
    weight: Shaped[Array | np.ndarray, "rows columns"],
    factor: Float[Array, "inputs inputs"],
    *,
    sparsity: float | None = None,
    structure: Structure = MATRIX,
    bits: int | None = None,
    mask: Bool[Array | np.ndarray, "rows columns"] | None = None,
) -> Pruned:
    """The pruned matrix, given `inverse_factor(products of its inputs)`.

    sparsity, structure: what goes. After every 128 columns exactly dropped(sparsity, elements so far) of the
    matrix, or of every row, are gone; groups are chosen where they begin. mask: what is kept, chosen by
    another method; then only the update is made, and there is no sparsity. bits: 8 or 4 to quantise what is
    kept in the same sweep; what rounds to zero is gone too.

    Raises InvalidInputError for weights that are not finite, a factor of another size, bits that are not
    8 or 4, weights too large for a float16 scale, a sparsity with a mask, and what `drop_count` raises.
    UnsupportedError for bits and groups that 128 columns are not a multiple of. Not to be called inside jit.
    """
    rows, columns = weight.shape
    _check(columns, factor, structure=structure, bits=bits, masked=mask is not None and sparsity is not None)
    if mask is None:
        drop_count(structure, sparsity, (rows, columns))  # refuses what cannot be
    else:
        structure, sparsity = MATRIX, 0.0  # the mask has decided
    result = sweep(
        checked_weight(weight),
        factor,
        jnp.asarray(block_drops(structure, sparsity, (rows, columns))),
        None if mask is None else jnp.asarray(mask),
        structure=structure,
        bits=bits,
    )
    if bits is not None and not bool(jnp.all(jnp.isfinite(result.weight))):
        raise InvalidInputError(
            "pruning",
            got="weights too large to quantise",
            expected=f"scales that float16 holds, weights up to about {65504 * largest_value(bits):,}",
            fix="convert this checkpoint without quantising",
        )
    return result


def _check(columns: int, factor: jax.Array, *, structure: Structure, bits: int | None, masked: bool) -> None:
    if factor.shape != (columns, columns):
        raise InvalidInputError(
            "pruning",
            got=f"a factor of shape {factor.shape}",
            expected=f"{(columns, columns)}, one row for every column of the weight",
            fix="give the factor of the inputs of this very matrix",
        )
    if masked:
        raise InvalidInputError(
            "pruning", got="a sparsity and a mask", expected="one of them", fix="a mask says what goes"
        )
    if bits is not None and bits not in (8, 4):
        raise InvalidInputError(
            "pruning", got=f"{bits} bits", expected="8, 4 or None", fix="None does not quantise"
        )
    if bits is not None and structure.scope == "group" and GROUP % structure.of:
        raise UnsupportedError(
            "pruning",
            got=f"the structure {structure.name} with {bits}-bit values",
            expected=f"groups that {GROUP} columns, which share a scale, are a multiple of",
            fix="use groups of 2, 4, 8, 16 or 32 columns",
        )
