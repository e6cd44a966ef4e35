"""The jitted steps of a decoder model: stem, block, head. Records are their arguments, positions are data.

Each compiles once per shape of x: one token, or one chunk of a prompt. All layers share it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from endor_jax import models
from endor_jax.format.record import Record
from endor_jax.kernels.linear import linear
from endor_jax.models import Decoder, KVCache


def _views(record: Record | None) -> models.Params:
    """Every tensor of a record, to be expanded where it is used; none for a family that has no such part."""
    return {} if record is None else {name: record[name] for name in record}


@functools.partial(jax.jit, static_argnames="decoder")
def stem_step(
    decoder: Decoder,
    record: Record | None,
    rows: Float[Array, "batch time hidden"],
    start: Int[Array, " batch"],
) -> Float[Array, "batch time hidden"]:
    """What the first layer takes, from embedding rows."""
    return models.stem(decoder, _views(record), rows, start)


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="cache")
def block_step(
    decoder: Decoder,
    record: Record,
    x: Float[Array, "batch time hidden"],
    cache: KVCache,
    start: Int[Array, " batch"],
) -> tuple[Float[Array, "batch time hidden"], KVCache]:
    """One layer. The cache is donated: it is updated in place."""
    return models.block(decoder, _views(record), x, cache, start)


@functools.partial(jax.jit, static_argnames="decoder")
def final_step(
    decoder: Decoder, record: Record, x: Float[Array, "batch time hidden"]
) -> Float[Array, "batch time hidden"]:
    """What the head multiplies."""
    return models.final(decoder, _views(record), x)


@jax.jit
def head_step(record: Record, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time rows"]:
    """Float32 logits of one block of vocabulary rows."""
    return linear(x, record["weight"], output_dtype=jnp.dtype("float32"))
