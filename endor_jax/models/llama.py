"""The Llama family and its neighbours: stem, block and final part, in the order x passes through them.

Mistral, Qwen2 and Qwen3 have the same block: what differs is in `LlamaConfig`.
Source: Touvron et al. 2023 (arXiv 2307.09288) as transformers' modeling_llama computes it, and its
modeling_mistral, modeling_qwen2 and modeling_qwen3.
"""

from __future__ import annotations

from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from endor_jax.kernels.order import after
from endor_jax.models.attention import Attention, AttentionKind
from endor_jax.models.axis import Axis, gather
from endor_jax.models.cache import KVCache
from endor_jax.models.config import LlamaConfig
from endor_jax.models.linear import Linear
from endor_jax.models.norms import RMSNorm


class LlamaStem(nnx.Module):
    """Nothing, and no parameters: positions come from RoPE inside the blocks."""

    def __init__(self, config: LlamaConfig):
        del config

    def __call__(
        self, rows: Float[Array, "batch time hidden"], start: Int[Array, " batch"]
    ) -> Float[Array, "batch time hidden"]:
        """x is the embedding rows."""
        return rows


class LlamaBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig):
        self.attention_norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
        kind = AttentionKind(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            head_norm_epsilon=config.norm_epsilon if config.head_norms else None,
            rope=config.rope,
            window=config.window,
        )
        self.attention = Attention(config.hidden_size, kind)
        self.mlp_norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def __call__(
        self, x: Float[Array, "batch time hidden"], cache: KVCache, start: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time hidden"], KVCache]:
        """The next x, and the cache with the new positions written."""
        mixed, cache = self.attention(self.attention_norm(x), cache, start)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class LlamaFinal(nnx.Module):
    """The norm in front of the output head."""

    def __init__(self, config: LlamaConfig):
        self.norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """What the output head multiplies."""
        return self.norm(x)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    same_input: ClassVar[dict[str, str]] = {"up": "gate"}
    """Which of its matrices are multiplied with what another is multiplied with."""
    axis: Axis | None = None

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool):
        self.gate = Linear(hidden_size, intermediate_size, bias=bias)
        self.up = Linear(hidden_size, intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """The gated product in x's dtype."""
        gate = self.gate.own(x)
        y = jax.nn.silu(gate) * self.up.own(after(x, gate))
        return self.down(gather(y, self.axis, self.gate.outputs))
