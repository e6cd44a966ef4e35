"""Causal attention over a preallocated cache, with grouped queries and what else a family has.

Sources: Vaswani et al. 2017 (arXiv 1706.03762); grouped queries, Ainslie et al. 2023 (arXiv 2305.13245);
a sliding window, Jiang et al. 2023 (arXiv 2310.06825).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from endor_jax.kernels.order import after
from endor_jax.models import cache as kv_cache
from endor_jax.models.axis import (
    Axis,
    HeadShare,
    gather,
    gather_query_heads,
    head_share,
    own_kv_heads,
    own_query_heads,
)
from endor_jax.models.cache import KVCache
from endor_jax.models.linear import Linear
from endor_jax.models.norms import RMSNorm
from endor_jax.models.rope import Rope, rotate


@dataclass(frozen=True, kw_only=True)
class AttentionKind:
    """What attention is like in a family. Hashable: part of what a step is compiled for.

    head_norm_epsilon: of an RMSNorm of each query and each key, before RoPE; None without such norms.
    rope: None where positions are added to x. window: a query sees so many positions, its own included; None
    for all up to its own.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    head_norm_epsilon: float | None = None
    rope: Rope | None = None
    window: int | None = None


class Attention(nnx.Module):
    """Self-attention with its four projections; query head h reads key-value head h // (heads / kv_heads).

    Over an axis of devices, each attends with its share of the heads, and has the cache of these.
    """

    axis: Axis | None = None
    same_input: ClassVar[dict[str, str]] = {"key": "query", "value": "query"}
    """Which of its matrices are multiplied with what another is multiplied with."""

    def __init__(self, hidden_size: int, kind: AttentionKind):
        self.kind = kind
        width, kv_width = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim
        self.query = Linear(hidden_size, width, bias=kind.qkv_bias)
        self.key = Linear(hidden_size, kv_width, bias=kind.qkv_bias)
        self.value = Linear(hidden_size, kv_width, bias=kind.qkv_bias)
        epsilon = kind.head_norm_epsilon
        self.query_norm = None if epsilon is None else RMSNorm(kind.head_dim, epsilon=epsilon)
        self.key_norm = None if epsilon is None else RMSNorm(kind.head_dim, epsilon=epsilon)
        self.output = Linear(width, hidden_size, bias=kind.output_bias)

    def __call__(
        self, x: Float[Array, "batch time hidden"], cache: KVCache, start: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time hidden"], KVCache]:
        """The mixed x, and the cache with positions start, ..., start + time − 1 of each sequence written."""
        batch, time, _ = x.shape
        positions = start[:, None] + jnp.arange(time, dtype=start.dtype)[None]
        query = self._queries(x)
        key = self._keys(self.key, after(x, query))
        value = self._keys(self.value, after(x, key))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.kind.rope is not None:
            query = rotate(query, positions, rope=self.kind.rope)
            key = rotate(key, positions, rope=self.kind.rope)
        cache = kv_cache.write(cache, key, value, start)
        mixed = self._all_heads(attend(query, cache, positions, window=self.kind.window))
        return self.output(mixed.reshape(batch, time, -1)), cache

    @property
    def _share(self) -> HeadShare:
        return head_share(self.kind.heads, self.kind.kv_heads, 1 if self.axis is None else self.axis.size)

    def _queries(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time heads head_dim"]:
        """The query heads that this device attends with."""
        kind, share, own = self.kind, self._share, self.query.own(x)
        width = share.kv_heads * share.group * kind.head_dim
        if self.axis is not None and not _is_share(own, width, self.axis, self.query.outputs):
            whole = gather(own, self.axis, self.query.outputs)
            split = whole.reshape(*x.shape[:2], kind.kv_heads, -1, kind.head_dim)
            own = own_query_heads(split, self.axis, share)
        return own.reshape(*x.shape[:2], -1, kind.head_dim)

    def _keys(
        self, linear: Linear, x: Float[Array, "batch time hidden"]
    ) -> Float[Array, "batch time kv_heads head_dim"]:
        """The key or value heads that this device has."""
        share, own = self._share, linear.own(x)
        width = share.kv_heads * self.kind.head_dim
        if self.axis is not None and not _is_share(own, width, self.axis, linear.outputs):
            whole = gather(own, self.axis, linear.outputs)
            own = own_kv_heads(whole.reshape(*x.shape[:2], -1, self.kind.head_dim), self.axis, share)
        return own.reshape(*x.shape[:2], -1, self.kind.head_dim)

    def _all_heads(
        self, own: Float[Array, "batch time own_heads head_dim"]
    ) -> Float[Array, "batch time ..."]:
        """What all heads of all devices gave, in order."""
        if self.axis is None:
            return own
        kind, share = self.kind, self._share
        split = own.reshape(*own.shape[:2], share.kv_heads, share.group, kind.head_dim)
        return gather_query_heads(
            split, self.axis, share, kv_heads=kind.kv_heads, group=kind.heads // kind.kv_heads
        )


def _is_share(own: Float[Array, "batch time rows"], width: int, axis: Axis, outputs: int) -> bool:
    """Whether the rows that a device has of a projection are exactly those of its heads."""
    return own.shape[-1] == width and axis.size * width == outputs


SHORTEST = 128
"""Cached positions that are always looked at, on CPU; then twice as many, and so on."""


def attend(
    query: Float[Array, "batch time heads head_dim"],
    cache: KVCache,
    positions: Int[Array, "batch time"],
    *,
    window: int | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """softmax(q · k / √head_dim) · v over the cached positions up to each query's own, in query's dtype.

    Scores and softmax are float32. Every query sees at least itself, so no row of scores is empty.
    window: only the last so many positions are seen, the query's own included. The cache keeps them all: what
    is outside is masked.

    On CPU only as much of the cache is looked at as holds what any query sees, rounded up to a power of two:
    there what is masked costs as much as what is not. How much that is depends on the longest sequence of a
    batch, and with it the order of sums. A GPU would wait for the host to choose.
    """
    whole = functools.partial(_attend, window=window)
    if len(_lengths(cache.capacity)) == 1:
        return whole(query, cache, positions)
    reached = functools.partial(_attend_reached, window)
    return lax.platform_dependent(query, cache, positions, cpu=reached, default=whole)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend_reached(
    window: int | None,
    query: Float[Array, "batch time heads head_dim"],
    cache: KVCache,
    positions: Int[Array, "batch time"],
) -> Float[Array, "batch time heads head_dim"]:
    """`attend` over as much of a cache as is reached.

    What enters a branch is the cache as bits: of one that was just written as bits XLA on CPU makes no copy.
    """
    lengths, dtype = _lengths(cache.capacity), cache.keys.dtype

    def attend_first(length: int, query: jax.Array, bits: KVCache, positions: jax.Array) -> jax.Array:
        first = jax.tree.map(lambda all_positions: all_positions[:, :length], bits)
        return _attend(query, kv_cache.as_floats(first, dtype), positions, window=window)

    branches = [functools.partial(attend_first, length) for length in lengths]
    shorter = jnp.max(positions) >= jnp.array(lengths[:-1], positions.dtype)
    reached = jnp.sum(shorter, dtype=jnp.int32)
    return lax.switch(reached, branches, query, kv_cache.as_bits(cache), positions)


@_attend_reached.defjvp
def _(window: int | None, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """Through integers no gradient flows, so that of `_attend` is given."""
    query, cache, positions = primals
    _, changed = jax.jvp(
        lambda query, cache: _attend(query, cache, positions, window=window), (query, cache), tangents[:2]
    )
    return _attend_reached(window, query, cache, positions), changed


def _lengths(capacity: int) -> list[int]:
    """SHORTEST, doubled until it reaches `capacity`, which is the last."""
    lengths = []
    length = SHORTEST
    while length < capacity:
        lengths.append(length)
        length *= 2
    return [*lengths, capacity]


def _attend(
    query: Float[Array, "batch time heads head_dim"],
    cache: KVCache,
    positions: Int[Array, "batch time"],
    *,
    window: int | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """`attend` over all of a cache."""
    batch, time, heads, head_dim = query.shape
    capacity, kv_heads = cache.keys.shape[1:3]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, head_dim)
    keys, values = cache.keys.astype(query.dtype), cache.values.astype(query.dtype)
    # Left to itself a GPU multiplies float32 with 10 bits of mantissa.
    precision = lax.Precision.HIGHEST if query.dtype == jnp.float32 else None
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    scores = product("btkgd,bskd->bkgts", grouped, keys)
    entries = jnp.arange(capacity, dtype=positions.dtype)[None, None, :]
    seen = entries <= positions[:, :, None]
    if window is not None and window < capacity:
        seen = seen & (entries > positions[:, :, None] - window)
    scores = jnp.where(seen[:, None, None], scores * head_dim**-0.5, -jnp.inf)
    # What lies behind the last query is multiplied by 0, which would let a NaN through.
    reached = jnp.arange(capacity, dtype=positions.dtype)[None] <= positions[:, -1:]
    values = jnp.where(reached[:, :, None, None], values, jnp.zeros((), values.dtype))
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    mixed = product("bkgts,bskd->btkgd", weights, values)
    return mixed.reshape(query.shape).astype(query.dtype)
