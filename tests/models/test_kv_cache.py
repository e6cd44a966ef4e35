"""KVCache: shapes, writes at a traced position, and its life as a pytree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax.errors import InvalidInputError
from endor_jax.models import cache as kv_cache

SIZES = {"batch": 2, "capacity": 7, "kv_heads": 3, "head_dim": 4}


def test_create():
    cache = kv_cache.create(**SIZES, dtype="bfloat16")
    assert cache.keys.shape == cache.values.shape == (2, 7, 3, 4)
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert cache.capacity == 7
    assert cache.keys.unsafe_buffer_pointer() != cache.values.unsafe_buffer_pointer()


@pytest.mark.parametrize("size", SIZES)
def test_create_needs_sizes(size: str):
    with pytest.raises(InvalidInputError, match=f"{size} 0"):
        kv_cache.create(**{**SIZES, size: 0}, dtype="float32")


@pytest.mark.parametrize("start", [0, 3, 5])
def test_write_replaces_its_positions_only(start: int):
    keys, values = (np.full((2, 2, 3, 4), fill, np.float32) for fill in (1.0, 2.0))
    cache = kv_cache.create(**SIZES, dtype="float32")
    cache = jax.jit(kv_cache.write)(cache, keys, values, jnp.full(2, start, jnp.int32))
    expected = np.zeros(7)
    expected[start : start + 2] = 1
    np.testing.assert_array_equal(np.asarray(cache.keys)[0, :, 0, 0], expected)
    np.testing.assert_array_equal(np.asarray(cache.values)[1, :, 2, 3], 2 * expected)


def test_every_sequence_is_written_at_its_own_position():
    new = np.stack([np.full((1, 3, 4), 1.0, np.float32), np.full((1, 3, 4), 2.0, np.float32)])
    starts = jnp.asarray([6, 1], jnp.int32)
    cache = jax.jit(kv_cache.write)(kv_cache.create(**SIZES, dtype="float32"), new, 10 * new, starts)
    for sequence, at in enumerate([6, 1]):
        expected = np.zeros(7)
        expected[at] = sequence + 1
        np.testing.assert_array_equal(np.asarray(cache.keys)[sequence, :, 2, 1], expected)
        np.testing.assert_array_equal(np.asarray(cache.values)[sequence, :, 0, 3], 10 * expected)


def test_write_keeps_the_dtype_of_the_cache():
    new = jnp.ones((2, 1, 3, 4), jnp.float32)
    cache = kv_cache.write(kv_cache.create(**SIZES, dtype="bfloat16"), new, new, jnp.zeros(2, jnp.int32))
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16


def test_write_of_more_than_the_capacity():
    new = jnp.ones((2, 8, 3, 4), jnp.float32)
    with pytest.raises(InvalidInputError, match=r"8 positions.*capacity of 7"):
        kv_cache.write(kv_cache.create(**SIZES, dtype="float32"), new, new, jnp.zeros(2, jnp.int32))


def test_pytree():
    cache = kv_cache.create(**SIZES, dtype="float32")
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(cache)]
    assert paths == [".keys", ".values"]
    shapes = jax.eval_shape(lambda: kv_cache.create(**SIZES, dtype="float32"))
    assert (shapes.keys.shape, shapes.capacity) == ((2, 7, 3, 4), 7)
    assert jax.tree.map(lambda leaf: leaf.size, cache).values == 2 * 7 * 3 * 4
    assert all(buffer.is_deleted() for buffer in jax.tree.leaves(_donated(cache)))


def _donated(cache: kv_cache.KVCache) -> kv_cache.KVCache:
    new = jnp.ones((2, 1, 3, 4), jnp.float32)
    jax.jit(kv_cache.write, donate_argnums=0)(cache, new, new, jnp.zeros(2, jnp.int32))
    return cache


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_pass_through_a_write(dtype: str) -> None:
    old = jnp.ones((2, 6, 1, 4), dtype)
    new = jnp.full((2, 2, 1, 4), 2, dtype)
    start = jnp.array([1, 3], jnp.int32)
    weights = jnp.arange(old.size, dtype=jnp.float32).reshape(old.shape)

    def loss(old: jax.Array, new: jax.Array) -> jax.Array:
        written = kv_cache.write(kv_cache.KVCache(old, old), new, new, start)
        return (written.keys.astype(jnp.float32) * weights).sum()

    of_old, of_new = jax.jit(jax.grad(loss, argnums=(0, 1)))(old, new)
    for row, first in enumerate((1, 3)):
        expected = np.asarray(weights[row]).copy()
        np.testing.assert_array_equal(np.asarray(of_new[row], np.float32), expected[first : first + 2])
        expected[first : first + 2] = 0
        np.testing.assert_array_equal(np.asarray(of_old[row], np.float32), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_write_keeps_every_bit(dtype: str) -> None:
    unsigned = "uint32" if dtype == "float32" else "uint16"
    bits = np.random.default_rng(0).integers(0, np.iinfo(unsigned).max, (1, 3, 2, 4)).astype(unsigned)
    new = jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.dtype(dtype))  # NaNs among them
    empty = kv_cache.create(batch=1, capacity=8, kv_heads=2, head_dim=4, dtype=dtype)
    written = jax.jit(kv_cache.write)(empty, new, new, jnp.array([4], jnp.int32))
    held = np.asarray(jax.lax.bitcast_convert_type(written.values, jnp.dtype(unsigned)))
    np.testing.assert_array_equal(held[:, 4:7], bits)
    assert not held[:, :4].any()
    assert not held[:, 7:].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_as_bits_and_back(dtype):
    made = kv_cache.create(**SIZES, dtype=dtype)
    filled = jax.tree.map(lambda a: jnp.arange(a.size, dtype=a.dtype).reshape(a.shape) - 7, made)
    bits = kv_cache.as_bits(filled)
    assert bits.keys.dtype == np.dtype(f"uint{8 * made.keys.dtype.itemsize}")
    back = kv_cache.as_floats(bits, made.keys.dtype)
    for one, other in ((filled.keys, back.keys), (filled.values, back.values)):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
