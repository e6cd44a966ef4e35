"""The dense product behind every unfused `linear`: x @ w.T, accumulated in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def dense(
    x: Float[Array, "*batch inputs"],
    weight: Float[Array, "outputs inputs"],
    *,
    output_dtype: DTypeLike | None = None,
) -> Float[Array, "*batch outputs"]:
    """x @ weight.T in `output_dtype` (x's own by default); sums are float32 whatever the dtypes.

    On CPU both sides are widened first: the same sum, and XLA's bfloat16 matrix-vector product there is 30
    times slower than its float32 one. The widening fuses into whatever produces `weight`.
    """
    result = x.dtype if output_dtype is None else output_dtype

    def contract(x: jax.Array, weight: jax.Array) -> jax.Array:
        axes = (((x.ndim - 1,), (1,)), ((), ()))
        # Left to itself a GPU multiplies float32 with 10 bits of mantissa.
        precision = lax.Precision.HIGHEST if jnp.float32 in (x.dtype, weight.dtype) else None
        product = lax.dot_general(x, weight, axes, precision=precision, preferred_element_type=jnp.float32)
        return product.astype(result)

    def widened(x: jax.Array, weight: jax.Array) -> jax.Array:
        return contract(x.astype(jnp.float32), weight.astype(jnp.float32))

    return lax.platform_dependent(x, weight, cpu=widened, default=contract)
