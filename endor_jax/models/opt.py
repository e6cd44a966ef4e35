"""The OPT family: stem, block and final part, in the order x passes through them.

Source: Zhang et al. 2022 (arXiv 2205.01068) as transformers' modeling_opt computes it, in all variants: 350M
has its norms behind the sums, and embeddings narrower than x; Galactica (arXiv 2211.09085) has GELU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from endor_jax.models.attention import Attention, AttentionKind
from endor_jax.models.axis import Axis, gather
from endor_jax.models.cache import KVCache
from endor_jax.models.config import OptConfig
from endor_jax.models.linear import Linear
from endor_jax.models.norms import LayerNorm
from endor_jax.models.parameter import rows_at

POSITION_OFFSET = 2
"""Position p has row p + 2 of the table: fairseq kept the first rows for padding, and OPT inherited them."""


class OptStem(nnx.Module):
    """Embedding rows, made as wide as x where they are not, plus learned positions."""

    axis: Axis | None = None

    def __init__(self, config: OptConfig):
        self.table_rows = config.max_positions + POSITION_OFFSET
        self.positions = nnx.Param(jnp.zeros((self.table_rows, config.hidden_size)))
        width = config.projected_size
        self.project_in = None if width is None else Linear(width, config.hidden_size, bias=False)

    def __call__(
        self, rows: Float[Array, "batch time embedding"], start: Int[Array, " batch"]
    ) -> Float[Array, "batch time hidden"]:
        """x is the embedding rows plus the rows of positions start, ..., start + time − 1."""
        index = start[:, None] + POSITION_OFFSET + jnp.arange(rows.shape[1], dtype=start.dtype)[None]
        # The padding of a last chunk may lie beyond the table: it takes any row, where a slice would move
        # the whole chunk to other positions.
        learned = rows_at(self.positions, index, total=self.table_rows, axis=self.axis)
        x = rows if self.project_in is None else self.project_in(rows)
        return x + learned.astype(x.dtype)


class OptBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); or norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: OptConfig):
        self.pre_norm = config.pre_norm
        self.attention_norm = _norm(config)
        kind = AttentionKind(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            qkv_bias=config.bias,
            output_bias=config.bias,
        )
        self.attention = Attention(config.hidden_size, kind)
        self.mlp_norm = _norm(config)
        self.mlp = FeedForward(config)

    def __call__(
        self, x: Float[Array, "batch time hidden"], cache: KVCache, start: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time hidden"], KVCache]:
        """The next x, and the cache with the new positions written."""
        if self.pre_norm:
            mixed, cache = self.attention(self.attention_norm(x), cache, start)
            x = x + mixed
            return x + self.mlp(self.mlp_norm(x)), cache
        mixed, cache = self.attention(x, cache, start)
        x = self.attention_norm(x + mixed)
        return self.mlp_norm(x + self.mlp(x)), cache


class OptFinal(nnx.Module):
    """The norm behind the last block, where there is one, and the way back to the width of the embedding."""

    def __init__(self, config: OptConfig):
        self.norm = _norm(config) if config.final_norm else None
        width = config.projected_size
        self.project_out = None if width is None else Linear(config.hidden_size, width, bias=False)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time embedding"]:
        """What the output head multiplies."""
        if self.norm is not None:
            x = self.norm(x)
        return x if self.project_out is None else self.project_out(x)


class FeedForward(nnx.Module):
    """down(activation(up(x)))."""

    axis: Axis | None = None

    def __init__(self, config: OptConfig):
        self.activation = config.activation
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """The product in x's dtype."""
        y = self.up.own(x)
        y = jax.nn.relu(y) if self.activation == "relu" else jax.nn.gelu(y, approximate=False)
        return self.down(gather(y, self.axis, self.up.outputs))


def _norm(config: OptConfig) -> LayerNorm:
    return LayerNorm(config.hidden_size, epsilon=config.norm_epsilon, affine=config.affine_norms)
