"""The OPT family, pre-norm: stem, block and final part, in the order x passes through them.

Source: Zhang et al. 2022 (arXiv 2205.01068) as transformers' modeling_opt computes it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from endor_jax.models.attention import Attention
from endor_jax.models.cache import KVCache
from endor_jax.models.config import OptConfig
from endor_jax.models.linear import Linear
from endor_jax.models.parameter import array

POSITION_OFFSET = 2
"""Position p has row p + 2 of the table: fairseq kept the first rows for padding, and OPT inherited them."""


class OptStem(nnx.Module):
    """Learned positions, added to the embedding rows."""

    def __init__(self, config: OptConfig):
        shape = (config.max_positions + POSITION_OFFSET, config.hidden_size)
        self.positions = nnx.Param(jnp.zeros(shape))

    def __call__(
        self, rows: Float[Array, "batch time hidden"], start: Int[Array, " batch"]
    ) -> Float[Array, "batch time hidden"]:
        """x is the embedding rows plus the rows of positions start, ..., start + time − 1."""
        index = start[:, None] + POSITION_OFFSET + jnp.arange(rows.shape[1], dtype=start.dtype)[None]
        # The padding of a last chunk may lie beyond the table: it takes any row, where a slice would move
        # the whole chunk to other positions.
        learned = jnp.take(array(self.positions), index, axis=0, mode="clip")
        return rows + learned.astype(rows.dtype)


class OptBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: OptConfig):
        self.attention_norm = LayerNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.attention = Attention(
            hidden_size=config.hidden_size,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=True,
        )
        self.mlp_norm = LayerNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size)

    def __call__(
        self, x: Float[Array, "batch time hidden"], cache: KVCache, start: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time hidden"], KVCache]:
        """The next x, and the cache with the new positions written."""
        mixed, cache = self.attention(self.attention_norm(x), cache, start)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class OptFinal(nnx.Module):
    """The norm in front of the output head."""

    def __init__(self, config: OptConfig):
        self.norm = LayerNorm(config.hidden_size, epsilon=config.norm_epsilon)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """What the output head multiplies."""
        return self.norm(x)


class LayerNorm(nnx.Module):
    """(x − mean) / √(variance + epsilon) · scale + bias, in float32 (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, size: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((size,)))
        self.bias = nnx.Param(jnp.zeros((size,)))

    def __call__(self, x: Float[Array, "batch time size"]) -> Float[Array, "batch time size"]:
        """The normalised x in x's dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale = array(self.scale).astype(jnp.float32)[None, None]
        bias = array(self.bias).astype(jnp.float32)[None, None]
        return (centred * lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


class FeedForward(nnx.Module):
    """down(relu(up(x))), with biases."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        self.up = Linear(hidden_size, intermediate_size, bias=True)
        self.down = Linear(intermediate_size, hidden_size, bias=True)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """The product in x's dtype."""
        return self.down(jax.nn.relu(self.up(x)))
