"""Rotary positions: the frequencies that pairs of a head turn with, scaled as Llamas do it, and the turn.

Sources: RoPE, Su et al. 2021 (arXiv 2104.09864), in Hugging Face's order: element i pairs with
i + head_dim/2. Linear scaling, Chen et al. 2023 (arXiv 2306.15595). Llama 3 scaling, Grattafiori et al. 2024
(arXiv 2407.21783), as transformers' modeling_rope_utils computes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int


@dataclass(frozen=True)
class LinearScaling:
    """Every position counts as 1/factor positions."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Slow pairs turn `factor` times slower, fast ones as before, and those between by interpolation.

    A pair is slow if its wavelength (positions per turn) exceeds original_max_positions /
    low_frequency_factor, fast if it is below original_max_positions / high_frequency_factor.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The base of the frequencies and how they are scaled. Hashable: part of what a step is compiled for."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | None = None


def frequencies(rope: Rope, head_dim: int) -> Float32[np.ndarray, " pairs"]:
    """Radians per position of each of the head_dim / 2 pairs: f[i] = theta^(−2i/head_dim), scaled.

    Linear: f / factor. Llama 3, with wavelength w = 2π / f and N the context that the model was first trained
    for: f / factor where w > N/low; f where w < N/high; between them (1 − s) · f / factor + s · f with
    s = (N/w − low) / (high − low).

    Every operation is rounded to float32, as in transformers, but for the power, which is rounded once from
    float64: torch's own float32 power differs in the last bit from processor to processor. For theta and
    head_dim of published Llamas the result is bitwise that of transformers, for others within 1e-6 of it.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    plain = np.float32(1) / powers
    match rope.scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / np.float32(factor)
        case Llama3Scaling():
            return _llama3(plain, rope.scaling)


def rotate(
    x: Float[Array, "batch time heads head_dim"], positions: Int[Array, "batch time"], *, rope: Rope
) -> Float[Array, "batch time heads head_dim"]:
    """The pair (x[i], x[i + head_dim/2]) turned by position · frequency[i], in x's dtype.

    Angles, sines and the turn itself are float32: a bfloat16 angle is off by radians from position 512 on.
    """
    turns = jnp.asarray(frequencies(rope, x.shape[-1]))
    angles = positions.astype(jnp.float32)[:, :, None] * turns[None, None, :]
    cosine, sine = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)


def _llama3(plain: Float32[np.ndarray, " pairs"], scaling: Llama3Scaling) -> Float32[np.ndarray, " pairs"]:
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    context, factor = scaling.original_max_positions, np.float32(scaling.factor)
    # torch divides a number by a tensor as number · (1 / tensor), which rounds twice.
    wavelengths = np.float32(2 * math.pi) * (np.float32(1) / plain)
    slow, fast = wavelengths > np.float32(context / low), wavelengths < np.float32(context / high)
    turns = np.float32(context) * (np.float32(1) / wavelengths)
    smooth = (turns - np.float32(low)) / np.float32(high - low)
    between = (np.float32(1) - smooth) * plain / factor + smooth * plain
    return np.where(slow, plain / factor, np.where(fast, plain, between))
