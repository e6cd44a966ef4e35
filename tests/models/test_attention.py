"""Grouped-query attention against a float64 NumPy formula."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax.models import attention
from endor_jax.models import cache as kv_cache
from endor_jax.models.attention import attend
from endor_jax.models.cache import KVCache

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("window", [None, 1, 2, 4, 9])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attend(kv_heads: int, window: int | None):
    random = np.random.default_rng(1)
    query = random.normal(size=(2, 3, 6, 4)).astype(np.float32)
    # Entries beyond the last position are large: a mask that leaks shows.
    keys, values = (random.normal(size=(2, 9, kv_heads, 4)).astype(np.float32) for _ in range(2))
    keys[:, 5:], values[:, 5:] = 100, 100
    starts = [2, 0]
    positions = jnp.asarray(starts, jnp.int32)[:, None] + jnp.arange(3)[None]
    cache = KVCache(jnp.asarray(keys), jnp.asarray(values))
    mixed = attend(jnp.asarray(query), cache, positions, window=window)
    for b, t, h in np.ndindex(2, 3, 6):
        end, shared = starts[b] + t + 1, h // (6 // kv_heads)
        seen = slice(max(0, end - (window or end)), end)
        scores = keys[b, seen, shared].astype(np.float64) @ query[b, t, h] / 2
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(mixed[b, t, h], weights @ values[b, seen, shared], atol=1e-5)


def test_nothing_behind_the_last_query_is_seen():
    """Not even NaN, which multiplied by a weight of 0 is still NaN."""
    random = np.random.default_rng(1)
    query = jnp.asarray(random.normal(size=(2, 1, 2, 4)), jnp.float32)
    keys, values = (random.normal(size=(2, 6, 1, 4)).astype(np.float32) for _ in range(2))
    positions = jnp.asarray([[3], [1]], jnp.int32)
    clean = attend(query, KVCache(jnp.asarray(keys), jnp.asarray(values)), positions)
    for row, last in enumerate((3, 1)):
        keys[row, last + 1 :], values[row, last + 1 :] = np.nan, np.nan
    np.testing.assert_array_equal(
        attend(query, KVCache(jnp.asarray(keys), jnp.asarray(values)), positions), clean
    )


@pytest.mark.parametrize(
    ("capacity", "start", "time", "window"),
    [
        (capacity, start, time, 130 if time > 1 else None)
        for capacity in (127, 128, 129, 200, 257)
        for start in (0, 126, 127, 128, 255)
        for time in (1, 5)
        if start + time <= capacity
    ],
)
def test_looking_at_less_of_the_cache_changes_nothing(
    capacity: int, start: int, time: int, window: int | None
) -> None:
    random = np.random.default_rng(0)
    keys, values = (jnp.asarray(random.normal(size=(2, capacity, 2, 8)), jnp.float32) for _ in range(2))
    query = jnp.asarray(random.normal(size=(2, time, 4, 8)), jnp.float32)
    starts = jnp.array([[start], [0]], jnp.int32)  # rows at different positions
    positions = starts + jnp.arange(time, dtype=jnp.int32)[None]
    cache = KVCache(keys, values)
    got = jax.jit(functools.partial(attention.attend, window=window))(query, cache, positions)
    expected = jax.jit(functools.partial(attention._attend, window=window))(query, cache, positions)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "window"), [("float32", None), ("float32", 9), ("bfloat16", None)])
def test_gradients_of_attention_over_a_written_cache_are_those_of_the_plain_formula(
    dtype: str, window: int | None
):
    """What is looked at on a CPU is cut off and comes as bits, through which no gradient flows by itself."""
    random = np.random.default_rng(2)
    capacity = 2 * attention.SHORTEST

    def numbers(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), dtype)

    query, new = numbers(2, 3, 4, 8), numbers(2, 3, 2, 8)
    old = KVCache(numbers(2, capacity, 2, 8), numbers(2, capacity, 2, 8))
    start = jnp.array([5, 40], jnp.int32)
    positions = start[:, None] + jnp.arange(3, dtype=jnp.int32)[None]

    def loss(attended, query, new, old):
        cache = kv_cache.write(old, new, new, start)
        return (attended(query, cache, positions, window=window).astype(jnp.float32) ** 2).sum()

    fast, plain = (
        jax.jit(jax.grad(functools.partial(loss, attended), argnums=(0, 1, 2)))(query, new, old)
        for attended in (attend, attention._attend)
    )
    for one, other in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        assert np.abs(np.asarray(other, np.float32)).max() > 0
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=tolerance, atol=tolerance
        )
