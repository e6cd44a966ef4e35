"""The jitted steps of a decoder model: stem, block, head. Records are their arguments, positions are data.

Each compiles once per shape of x: a token of each sequence, or a chunk of one prompt. All layers share it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
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
    rows: Float[Array, "batch time embedding"],
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
    """One layer for all rows of the cache, kept as bits (`models.as_bits`); donated, so updated in place."""
    x, cache = models.block(decoder, _views(record), x, models.as_floats(cache, x.dtype), start)
    return x, models.as_bits(cache)


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="cache")
def prompt_step(
    decoder: Decoder,
    record: Record,
    x: Float[Array, "1 time hidden"],
    cache: KVCache,
    start: Int[Array, " 1"],
    row: Int[Array, ""],
) -> tuple[Float[Array, "1 time hidden"], KVCache]:
    """One layer for some tokens of the sequence in one row of the cache, as bits too, which is donated."""
    own = jax.tree.map(lambda all_rows: lax.dynamic_slice_in_dim(all_rows, row, 1, axis=0), cache)
    x, own = models.block(decoder, _views(record), x, models.as_floats(own, x.dtype), start)
    return x, jax.tree.map(
        lambda all_rows, new: lax.dynamic_update_slice_in_dim(all_rows, new, row, axis=0),
        cache,
        models.as_bits(own),
    )


@jax.jit
def pick_step(
    x: Float[Array, "batch 1 hidden"],
    chunk: Float[Array, "1 time hidden"],
    row: Int[Array, ""],
    position: Int[Array, ""],
) -> Float[Array, "batch 1 hidden"]:
    """x with one row replaced by one position of a chunk: what follows a prompt depends on its last token."""
    last = lax.dynamic_slice_in_dim(chunk, position, 1, axis=1)
    return lax.dynamic_update_slice_in_dim(x, last, row, axis=0)


@functools.partial(jax.jit, static_argnames="decoder")
def final_step(
    decoder: Decoder, record: Record | None, x: Float[Array, "batch time hidden"]
) -> Float[Array, "batch time embedding"]:
    """What the head multiplies."""
    return models.final(decoder, _views(record), x)


@jax.jit
def head_step(record: Record, x: Float[Array, "batch time embedding"]) -> Float[Array, "batch time rows"]:
    """Float32 logits of one block of vocabulary rows."""
    return linear(x, record["weight"], output_dtype=jnp.dtype("float32"))


class Fold(NamedTuple):
    """The cross-entropy of a chunk's positions, over the blocks of vocabulary rows seen so far.

    The log-sum-exp of a position's logits is `largest` + log `total` (Milakov and Gimelshein 2018, arXiv
    1805.02867); `at_target` is the logit of its target.
    """

    targets: Int[Array, " time"]
    largest: Float[Array, " time"]
    total: Float[Array, " time"]
    at_target: Float[Array, " time"]


@functools.partial(jax.jit, static_argnames="vocabulary")
def fold_step(
    record: Record, x: Float[Array, "1 time embedding"], fold: Fold, first: Int[Array, ""], vocabulary: int
) -> Fold:
    """The fold with one more block of vocabulary rows, which begins at row `first`.

    Rows from `vocabulary` on are padding of the last block.
    """
    logits = head_step(record, x)[0]
    row = first + jnp.arange(logits.shape[1], dtype=first.dtype)
    logits = jnp.where(row[None] < vocabulary, logits, -jnp.inf)
    largest = jnp.maximum(fold.largest, logits.max(axis=-1))
    total = fold.total * jnp.exp(fold.largest - largest) + jnp.exp(logits - largest[:, None]).sum(axis=-1)
    here = row[None] == fold.targets[:, None]
    return Fold(fold.targets, largest, total, fold.at_target + jnp.where(here, logits, 0.0).sum(axis=-1))


@jax.jit
def fold_losses(fold: Fold) -> Float[Array, " time"]:
    """Negative log-likelihoods of the targets, once all blocks are in."""
    return fold.largest + jnp.log(fold.total) - fold.at_target
