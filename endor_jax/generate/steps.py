"""The jitted steps of a decoder model: stem, block, head. Records are their arguments, positions are data.

Each compiles once per shape of x: a token of each sequence, or a chunk of one prompt. All layers share it.
mesh: of the devices that share every record; then x is whole on all of them, and of the caches each has its
heads. None for one device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from endor_jax import models
from endor_jax.format.record import Record
from endor_jax.kernels.linear import linear
from endor_jax.models import Axis, Decoder, KVCache, gather

CACHE_HEADS_AXIS = 2
"""The axis of keys and values that is spread over a mesh."""


def _views(record: Record | None) -> models.Params:
    """Every tensor of a record, to be expanded where it is used; none for a family that has no such part."""
    return {} if record is None else {name: record[name] for name in record}


def _shared(
    step: Callable[..., Any], mesh: Mesh | None, takes: tuple[PartitionSpec, ...], gives: Any
) -> Callable[..., Any]:
    """A step on every device of a mesh: takes, gives: how its arguments and results are spread.

    What it gives as whole is equal everywhere because it was gathered, which JAX cannot check.
    """
    if mesh is None:
        return step
    return jax.shard_map(step, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)


def _axis(mesh: Mesh | None) -> Axis | None:
    return None if mesh is None else Axis(mesh.axis_names[0], mesh.size)


EVERYWHERE = PartitionSpec()


def _by_part(mesh: Mesh | None) -> PartitionSpec:
    """How the words of a record are spread."""
    return EVERYWHERE if mesh is None else PartitionSpec(mesh.axis_names[0])


def _by_head(mesh: Mesh | None) -> PartitionSpec:
    """How keys and values are spread."""
    return EVERYWHERE if mesh is None else PartitionSpec(*[None] * CACHE_HEADS_AXIS, mesh.axis_names[0])


@functools.partial(jax.jit, static_argnames="mesh")
def sum_step(
    summands: Float[Array, "devices batch time embedding"], *, mesh: Mesh
) -> Float[Array, "batch time embedding"]:
    """Embedding rows, of which every device has some and zeros for the others."""

    def add(own: jax.Array) -> jax.Array:
        # float32 holds every element, and of each only one summand is not zero.
        return lax.psum(own[0].astype(jnp.float32), mesh.axis_names[0]).astype(own.dtype)

    return _shared(add, mesh, (_by_part(mesh),), EVERYWHERE)(summands)


@functools.partial(jax.jit, static_argnames=("decoder", "mesh"))
def stem_step(
    decoder: Decoder,
    record: Record | None,
    rows: Float[Array, "batch time embedding"],
    start: Int[Array, " batch"],
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "batch time hidden"]:
    """What the first layer takes, from embedding rows."""

    def stem(record: Record | None, rows: jax.Array, start: jax.Array) -> jax.Array:
        return models.stem(decoder, _views(record), rows, start, axis=_axis(mesh))

    return _shared(stem, mesh, (_by_part(mesh), EVERYWHERE, EVERYWHERE), EVERYWHERE)(record, rows, start)


@functools.partial(jax.jit, static_argnames=("decoder", "mesh"), donate_argnames="cache")
def block_step(
    decoder: Decoder,
    record: Record,
    x: Float[Array, "batch time hidden"],
    cache: KVCache,
    start: Int[Array, " batch"],
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "batch time hidden"], KVCache]:
    """One layer for all rows of the cache, kept as bits (`models.as_bits`); donated, so updated in place."""

    return _block(decoder, mesh)(record, x, cache, start)


def _block(decoder: Decoder, mesh: Mesh | None) -> Callable[..., tuple[jax.Array, KVCache]]:
    """(record, x, cache as bits, start) -> (x, cache as bits)."""

    def block(record: Record, x: jax.Array, cache: KVCache, start: jax.Array) -> tuple[jax.Array, KVCache]:
        floats = models.as_floats(cache, x.dtype)
        x, cache = models.block(decoder, _views(record), x, floats, start, axis=_axis(mesh))
        return x, models.as_bits(cache)

    heads = _by_head(mesh)
    return _shared(block, mesh, (_by_part(mesh), EVERYWHERE, heads, EVERYWHERE), (EVERYWHERE, heads))


@functools.partial(jax.jit, static_argnames=("decoder", "mesh"), donate_argnames="cache")
def prompt_step(
    decoder: Decoder,
    record: Record,
    x: Float[Array, "1 time hidden"],
    cache: KVCache,
    start: Int[Array, " 1"],
    row: Int[Array, ""],
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "1 time hidden"], KVCache]:
    """One layer for some tokens of the sequence in one row of the cache, as bits too, which is donated."""
    own = jax.tree.map(lambda all_rows: lax.dynamic_slice_in_dim(all_rows, row, 1, axis=0), cache)
    x, own = _block(decoder, mesh)(record, x, own, start)
    return x, jax.tree.map(
        lambda all_rows, new: lax.dynamic_update_slice_in_dim(all_rows, new, row, axis=0), cache, own
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


@functools.partial(jax.jit, static_argnames=("decoder", "mesh"))
def final_step(
    decoder: Decoder,
    record: Record | None,
    x: Float[Array, "batch time hidden"],
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "batch time embedding"]:
    """What the head multiplies."""

    def final(record: Record | None, x: jax.Array) -> jax.Array:
        return models.final(decoder, _views(record), x, axis=_axis(mesh))

    return _shared(final, mesh, (_by_part(mesh), EVERYWHERE), EVERYWHERE)(record, x)


@functools.partial(jax.jit, static_argnames="mesh")
def head_step(
    record: Record, x: Float[Array, "batch time embedding"], *, mesh: Mesh | None = None
) -> Float[Array, "batch time rows"]:
    """Float32 logits of one block of vocabulary rows, or over a mesh of one of each device's."""

    def head(record: Record, x: jax.Array) -> jax.Array:
        own = linear(x, record["weight"], output_dtype=jnp.dtype("float32"))
        return gather(own, _axis(mesh), block_rows(record, mesh))

    return _shared(head, mesh, (_by_part(mesh), EVERYWHERE), EVERYWHERE)(record, x)


def block_rows(record: Record, mesh: Mesh | None) -> int:
    """Rows of the vocabulary that `head_step` gives logits of, padding included."""
    return record["weight"].shape[0] * (1 if mesh is None else mesh.size)


class Fold(NamedTuple):
    """The cross-entropy of a chunk's positions, over the blocks of vocabulary rows seen so far.

    The log-sum-exp of a position's logits is `largest` + log `total` (Milakov and Gimelshein 2018, arXiv
    1805.02867); `at_target` is the logit of its target.
    """

    targets: Int[Array, " time"]
    largest: Float[Array, " time"]
    total: Float[Array, " time"]
    at_target: Float[Array, " time"]


@functools.partial(jax.jit, static_argnames=("vocabulary", "mesh"))
def fold_step(
    record: Record,
    x: Float[Array, "1 time embedding"],
    fold: Fold,
    first: Int[Array, ""],
    vocabulary: int,
    *,
    mesh: Mesh | None = None,
) -> Fold:
    """The fold with one more block of vocabulary rows, which begins at row `first`.

    Rows from `vocabulary` on are padding of the last block.
    """
    logits = head_step(record, x, mesh=mesh)[0]
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
