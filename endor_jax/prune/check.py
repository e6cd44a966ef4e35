"""What the methods refuse before they start: weights and calibration sums that are not finite, or all zero.

It looks at the numbers, so it is done outside jit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from endor_jax.errors import InvalidInputError


def checked_weight(weight: Shaped[Array | np.ndarray, "rows columns"]) -> Float[Array, "rows columns"]:
    """The weights as float32. Raises InvalidInputError if some are NaN or infinite."""
    result = jnp.asarray(weight).astype(jnp.float32)
    if not bool(_finite(result)):
        raise InvalidInputError(
            "pruning",
            got="NaN or infinity among the weights",
            expected="finite numbers",
            fix="check the source checkpoint",
        )
    return result


def checked_sums(
    sums: Shaped[Array | np.ndarray, "*shape"], shape: tuple[int, ...]
) -> Float[Array, "*shape"]:
    """Calibration sums as float32. Raises InvalidInputError if they fit no weight of that many columns, are
    not finite, or are all zero: then the inputs were never added, or say nothing."""
    result = jnp.asarray(sums).astype(jnp.float32)
    if result.shape != shape:
        raise InvalidInputError(
            "pruning",
            got=f"calibration sums of shape {result.shape}",
            expected=f"{shape}, one for every column of the weight",
            fix="give the sums over the inputs of this very matrix",
        )
    if not bool(_finite(result)):
        raise InvalidInputError(
            "pruning",
            got="NaN or infinity among the calibration sums",
            expected="finite numbers",
            fix="the model's activations overflow: check the checkpoint and the calibration text",
        )
    if not bool(_some(result)):
        raise InvalidInputError(
            "pruning",
            got="calibration sums that are all zero",
            expected="inputs that differ from zero",
            fix="add the inputs of some calibration text first",
        )
    return result


@jax.jit
def _finite(array: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(array))


@jax.jit
def _some(array: jax.Array) -> jax.Array:
    return jnp.any(array != 0)
