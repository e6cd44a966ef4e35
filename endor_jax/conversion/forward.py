"""The jitted steps of calibration: hidden states through a part of the model, and sums over what they meet.

One compiled step of each kind serves all layers: parameters are arguments. Hidden states are float32 whatever
dtype the weights have.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from endor_jax import models
from endor_jax.models import Decoder
from endor_jax.prune.statistics import (
    Gram,
    Paired,
    SquaredNorms,
    add_gram,
    add_paired,
    add_squared_norms,
)

Hidden = Float[Array, "batch length hidden"]
Params = Mapping[str, jax.Array]
Statistics = Gram | Paired | SquaredNorms


@functools.partial(jax.jit, static_argnums=0)
def stem_step(decoder: Decoder, params: Params, rows: Float[Array, "batch length embedding"]) -> Hidden:
    """What the first layer sees, from embedding rows."""
    return models.stem(decoder, params, rows, _start(rows))


@functools.partial(jax.jit, static_argnums=0)
def layer_step(decoder: Decoder, params: Params, x: Hidden) -> Hidden:
    """What the next layer sees."""
    return models.block(decoder, params, x, _cache(decoder, x), _start(x))[0]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def statistics_step(
    decoder: Decoder,
    params: Params,
    x: Hidden,
    sums: Mapping[str, Statistics],
    unpruned: Hidden | None = None,
) -> dict[str, Statistics]:
    """`sums`, by weight name, with the inputs of those weights added that these hidden states lead to.

    unpruned: the same blocks in the unpruned model, for sums of the kind Paired.
    """
    inputs = _inputs(decoder, params, x)
    meant = inputs if unpruned is None else _inputs(decoder, params, unpruned)
    return {name: _added(its, inputs[name], meant[name]) for name, its in sums.items()}


def _added(sums: Statistics, inputs: jax.Array, meant: jax.Array) -> Statistics:
    if isinstance(sums, Paired):
        return add_paired(sums, meant, inputs)
    return add_gram(sums, inputs) if isinstance(sums, Gram) else add_squared_norms(sums, inputs)


def _inputs(decoder: Decoder, params: Params, x: Hidden) -> dict[str, jax.Array]:
    """What every matrix of a layer is multiplied with."""
    return models.tapped_block(decoder, params, x, _cache(decoder, x), _start(x))[2]


def _cache(decoder: Decoder, x: Hidden) -> models.KVCache:
    """As long as the blocks are: they are read from their beginning."""
    config = decoder.config
    return models.create_cache(
        batch=x.shape[0],
        capacity=x.shape[1],
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=x.dtype,
    )


def _start(x: Hidden) -> jax.Array:
    return jnp.zeros(x.shape[0], jnp.int32)
