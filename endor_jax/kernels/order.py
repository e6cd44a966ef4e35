"""Order between operations that do not need each other: what saves memory must also be waited for.

XLA on CPU expands every matrix of a layer before it multiplies with the first, and then holds them all
(measured for a 1B Llama: 189 MiB of temporaries, 67 in order). `lax.optimization_barrier` is dropped there
before operations are scheduled (jax 0.10.2), so the dependency has to be one of data.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt32


def after(value: Shaped[Array, " *shape"], earlier: Float[Array, " ..."]) -> Shaped[Array, " *shape"]:
    """`value`, bit for bit, but not before `earlier` has been computed: under vmap, one of the batch."""
    if earlier.size == 0:
        return value
    never = _never(first_element(earlier))
    return lax.select(jnp.broadcast_to(never, value.shape), jnp.zeros_like(value), value)


def first_element(earlier: Float[Array, " ..."]) -> Float[Array, ""]:
    """What is known when `earlier`, not empty, is: its first element in float32, without a gradient."""
    first = lax.slice(earlier, (0,) * earlier.ndim, (1,) * earlier.ndim).reshape(())
    return lax.stop_gradient(first).astype(jnp.float32)


def first_bits(earlier: jax.Array | None) -> tuple[UInt32[Array, ""], ...]:
    """An integer that is known when `earlier` is, for a call that waits for all its arguments, also one that
    it does not look at: through integers no gradient flows. Nothing if there is nothing to wait for."""
    if earlier is None or earlier.size == 0:
        return ()
    return (lax.bitcast_convert_type(first_element(earlier), jnp.uint32),)


@jax.custom_batching.custom_vmap
def _never(number: Float[Array, ""]) -> Bool[Array, ""]:
    """False, which XLA does not see."""
    return lax.is_finite(number) & (number != number)


@_never.def_vmap
def _(size: int, batched: Sequence[bool], number: Float[Array, " batch"]) -> tuple[Bool[Array, ""], bool]:
    """Not batched: or `value` would be, and a weight would be expanded once for every element."""
    del size
    return _never(number[0] if batched[0] else number), False
