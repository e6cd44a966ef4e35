"""The two norms of the families, in float32 inside: RMSNorm, LayerNorm with or without parameters."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from endor_jax.models.parameter import array


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + epsilon) · scale, over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, size: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((size,)))

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """The normalised x in x's dtype."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        scale = _beside(self.scale, x)
        return (wide * lax.rsqrt(mean_square + self.epsilon) * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x − mean) / √(variance + epsilon) · scale + bias, over the last axis.

    Source: Ba et al. 2016 (arXiv 1607.06450). Without `affine` it has no parameters: neither scale nor bias.
    """

    def __init__(self, size: int, *, epsilon: float, affine: bool = True):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((size,))) if affine else None
        self.bias = nnx.Param(jnp.zeros((size,))) if affine else None

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """The normalised x in x's dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normal = centred * lax.rsqrt(variance + self.epsilon)
        if self.scale is None or self.bias is None:
            return normal.astype(x.dtype)
        return (normal * _beside(self.scale, x) + _beside(self.bias, x)).astype(x.dtype)


def _beside(parameter: nnx.Param, x: Float[Array, "*batch size"]) -> Float[Array, "... size"]:
    """A vector in float32, with as many axes as x."""
    vector = array(parameter).astype(jnp.float32)
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
