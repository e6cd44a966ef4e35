"""KVCache: the keys and values of the positions that one layer has seen, preallocated.

One cache per layer, because layers pass through the device one at a time. Its size never changes, so that one
compiled step serves every position; what lies beyond the position of a query is masked, not cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import GetAttrKey
from jaxtyping import Array, Float, Int, Shaped

from endor_jax.errors import InvalidInputError


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of one layer, a pytree; entry i of the second axis belongs to position i.

    Entries at positions not yet reached are undefined.
    """

    keys: Float[Array, "batch capacity kv_heads head_dim"]
    values: Float[Array, "batch capacity kv_heads head_dim"]

    @property
    def capacity(self) -> int:
        """The number of positions that fit."""
        return self.keys.shape[1]

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], None]:
        """For jax: both arrays are leaves."""
        return ((GetAttrKey("keys"), self.keys), (GetAttrKey("values"), self.values)), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: Sequence[Any]) -> KVCache:
        """For jax, which also puts shapes, shardings and numbers where arrays were: nothing is checked."""
        cache = object.__new__(cls)
        for name, leaf in zip(("keys", "values"), leaves, strict=True):
            object.__setattr__(cache, name, leaf)
        return cache


def create(
    *, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: np.dtype | type | str
) -> KVCache:
    """An empty cache for `batch` sequences of up to `capacity` positions, in `dtype` (that of x).

    A prompt that is cut into chunks is written in whole chunks: capacity has to cover the padding of the last
    one. Raises InvalidInputError unless all sizes are at least 1.
    """
    shape = (batch, capacity, kv_heads, head_dim)
    if min(shape) < 1:
        raise InvalidInputError(
            "key-value cache",
            got=f"batch {batch}, capacity {capacity}, kv_heads {kv_heads}, head_dim {head_dim}",
            expected="every size at least 1",
            fix="ask for at least one sequence and one position",
        )
    # Two buffers, not one twice: a caller may donate them.
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def as_bits(cache: KVCache) -> KVCache:
    """The same cache with its floats as unsigned integers of their size: how it is kept between jitted steps.

    XLA on CPU copies a cache of 16-bit floats that enters or leaves a program as such; one of integers is
    written in place.
    """
    return jax.tree.map(
        lambda floats: lax.bitcast_convert_type(floats, jnp.dtype(f"uint{8 * floats.dtype.itemsize}")), cache
    )


def as_floats(cache: KVCache, dtype: jnp.dtype) -> KVCache:
    """What `as_bits` was given, in its dtype."""
    return jax.tree.map(lambda bits: lax.bitcast_convert_type(bits, dtype), cache)


def write(
    cache: KVCache,
    keys: Float[Array, "batch time kv_heads head_dim"],
    values: Float[Array, "batch time kv_heads head_dim"],
    start: Int[Array, " batch"],
) -> KVCache:
    """The cache with positions start, ..., start + time − 1 of each sequence replaced, in the cache's dtype.

    start + time must not exceed capacity. That cannot be seen while tracing, and the write would then move
    down to fit, over older positions: whoever chooses the capacity sees to it. Raises InvalidInputError if
    time alone exceeds it.
    """
    if keys.shape[1] > cache.capacity:
        raise InvalidInputError(
            "key-value cache",
            got=f"{keys.shape[1]} positions to write",
            expected=f"at most its capacity of {cache.capacity}",
            fix="create the cache with a capacity for the prompt, padded to whole chunks, and the new tokens",
        )
    return KVCache(_write(cache.keys, keys, start), _write(cache.values, values, start))


@jax.custom_jvp
def _write(
    old: Float[Array, "batch capacity kv_heads head_dim"],
    new: Float[Array, "batch time kv_heads head_dim"],
    start: Int[Array, " batch"],
) -> Float[Array, "batch capacity kv_heads head_dim"]:
    """Sequence by sequence, because XLA does that in place; one scatter for all copies the cache on a CPU.

    As integers: of 16-bit floats XLA on CPU makes float32 and back, all of the cache, for each update.
    """
    unsigned = jnp.dtype(f"uint{8 * old.dtype.itemsize}")
    bits = lax.bitcast_convert_type(old, unsigned)
    new_bits = lax.bitcast_convert_type(new.astype(old.dtype), unsigned)
    return lax.bitcast_convert_type(_put(bits, new_bits, start), old.dtype)


@_write.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """Through integers no gradient flows, so it is given."""
    old, new, start = primals
    changed_old, changed_new, _ = tangents
    return _write(old, new, start), _put(changed_old, changed_new.astype(old.dtype), start)


def _put(
    old: Shaped[Array, "batch capacity kv_heads head_dim"],
    new: Shaped[Array, "batch time kv_heads head_dim"],
    start: Int[Array, " batch"],
) -> Shaped[Array, "batch capacity kv_heads head_dim"]:
    for i in range(new.shape[0]):
        old = lax.dynamic_update_slice(old, new[i : i + 1], (i, start[i], 0, 0))
    return old
