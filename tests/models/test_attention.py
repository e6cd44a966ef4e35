"""RoPE and grouped-query attention against float64 NumPy formulas."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax.models.attention import attend, rotate
from endor_jax.models.cache import KVCache


def rotate_float64(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Pairs (i, i + half) as complex numbers, turned by position * theta^(-i/half)."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    angles = positions[..., None] * theta ** (-np.arange(half) / half)
    pairs = pairs * np.exp(1j * angles)[:, :, None, :]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [2, 6, 64])
def test_rotate(head_dim: int, theta: float):
    positions = np.array([[0, 1, 2, 37, 1000], [0, 999, 5, 6, 7]])
    x = np.random.default_rng(0).normal(size=(2, 5, 3, head_dim)).astype(np.float32)
    turned = rotate(jnp.asarray(x), jnp.asarray(positions, jnp.int32), theta=theta)
    # A float32 angle near 1000 is off by up to 6e-5.
    np.testing.assert_allclose(turned, rotate_float64(x, positions, theta), atol=4e-4)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_rotate_bfloat16_turns_in_float32():
    positions = np.array([[4001]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, 64)), jnp.bfloat16)
    turned = rotate(x, jnp.asarray(positions, jnp.int32), theta=1e4)
    assert turned.dtype == jnp.bfloat16
    exact = rotate_float64(np.asarray(x, np.float64), positions, 1e4)
    np.testing.assert_allclose(np.asarray(turned, np.float64), exact, rtol=2**-8, atol=4e-3)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attend(kv_heads: int):
    random = np.random.default_rng(1)
    query = random.normal(size=(2, 3, 6, 4)).astype(np.float32)
    # Entries beyond the last position are large: a mask that leaks shows.
    keys, values = (random.normal(size=(2, 9, kv_heads, 4)).astype(np.float32) for _ in range(2))
    keys[:, 5:], values[:, 5:] = 100, 100
    starts = [2, 0]
    positions = jnp.asarray(starts, jnp.int32)[:, None] + jnp.arange(3)[None]
    mixed = attend(jnp.asarray(query), KVCache(jnp.asarray(keys), jnp.asarray(values)), positions)
    for b, t, h in np.ndindex(2, 3, 6):
        seen, shared = starts[b] + t + 1, h // (6 // kv_heads)
        scores = keys[b, :seen, shared].astype(np.float64) @ query[b, t, h] / 2
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(mixed[b, t, h], weights @ values[b, :seen, shared], atol=1e-5)
