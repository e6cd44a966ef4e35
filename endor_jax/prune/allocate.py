"""How sparse each layer becomes under a budget for the whole model: all alike, or OWL.

OWL (Yin et al., arXiv 2310.05175): a layer in which more Wanda scores stand out keeps more. Here a layer's
matrices share its sparsity, and the mean over all elements is the budget, whatever the layers' sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from endor_jax.errors import InvalidInputError

OUTLIER = 5.0
"""M: a score above M times the mean of its layer stands out."""

SPREAD = 0.08
"""λ: the sparsest and the densest layer are 2λ apart."""


@jax.jit
def outlier_ratio(scores: Sequence[Float[Array, "_ _"]]) -> Float[Array, ""]:
    """The share of a layer's Wanda scores, of all its matrices, above OUTLIER times their mean (eq. 1)."""
    count = sum(matrix.size for matrix in scores)
    total = sum((jnp.sum(matrix) for matrix in scores), start=jnp.float32(0))
    threshold = total / count * OUTLIER
    above = sum((jnp.sum(matrix > threshold) for matrix in scores), start=jnp.int32(0))
    return above.astype(jnp.float32) / count


def uniform(layers: int, *, sparsity: float) -> tuple[float, ...]:
    """The same for every layer."""
    return (sparsity,) * layers


def owl(
    ratios: Sequence[float], elements: Sequence[int], *, sparsity: float, spread: float = SPREAD
) -> tuple[float, ...]:
    """The sparsity of every layer from its `outlier_ratio` and its number of elements.

    Ratios are stretched so that the largest is 2 · spread above the smallest; a layer keeps as much more than
    1 − sparsity as its stretched ratio is above the mean over all elements (the official code takes the mean
    over layers: the same where all are equal). Where that would leave a layer below 0, or with less than a
    tenth of the mean share, all differences shrink until it does not. All alike if the ratios are.

    Raises InvalidInputError unless 0 <= sparsity < 1, spread >= 0, ratios are finite and there is one number
    of elements, 1 or more, for every ratio.
    """
    _check(ratios, elements, sparsity=sparsity, spread=spread)
    ratio, weights = np.asarray(ratios, np.float64), np.asarray(elements, np.float64)
    width = ratio.max() - ratio.min()
    if width == 0 or spread == 0:
        return uniform(len(ratios), sparsity=sparsity)
    stretched = (ratio - ratio.min()) / width * 2 * spread
    below = stretched - np.average(stretched, weights=weights)
    least_kept = (1 - sparsity) / 10
    # A layer that has nearly all elements is the mean, and away from it by nothing.
    down, up = max(float(below.max()), 1e-300), max(-float(below.min()), 1e-300)
    shrink = min(1.0, sparsity / down, (1 - sparsity - least_kept) / up)
    return tuple(float(share) for share in np.clip(sparsity - shrink * below, 0, 1 - least_kept))


def _check(ratios: Sequence[float], elements: Sequence[int], *, sparsity: float, spread: float) -> None:
    if not 0 <= sparsity < 1:
        raise InvalidInputError(
            "allocation", got=f"sparsity {sparsity}", expected="0 or more and below 1", fix="0.5 drops half"
        )
    if not spread >= 0:
        raise InvalidInputError(
            "allocation", got=f"spread {spread}", expected="0 or more", fix=f"the paper has {SPREAD}"
        )
    if len(ratios) == 0 or len(ratios) != len(elements) or min(elements) < 1:
        raise InvalidInputError(
            "allocation",
            got=f"{len(ratios)} ratios and elements {list(elements)[:8]}",
            expected="one number of elements, 1 or more, for every ratio",
            fix="give both for every layer",
        )
    if not np.isfinite(np.asarray(ratios, np.float64)).all():
        raise InvalidInputError(
            "allocation",
            got=f"ratios {list(ratios)[:8]}",
            expected="finite numbers",
            fix="check the activations of the layers",
        )
