"""The runner: token ids through all layers, layer-major, over an executor. It knows ids, not text.

Layer-major: everything that is to pass through a layer passes while its record is on the device. So a pass
reads every record once, whatever the length of the prompts and the number of sequences.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Float

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import InvalidInputError
from endor_jax.format.record import Record
from endor_jax.generate import steps
from endor_jax.generate.caches import Caches
from endor_jax.generate.embedding import Embedding
from endor_jax.generate.placement import CHUNK, Geometry, chunk_for, micro_batches_for
from endor_jax.models import Decoder, KVCache, as_bits, create_cache
from endor_jax.store.digest import digest_bytes
from endor_jax.streaming.devices import Devices
from endor_jax.streaming.executor import Executor


@dataclass(frozen=True)
class Runner:
    """Everything a pass needs: the decoder, the executor, and what stays in place whatever is streamed.

    Invariant: all that enters a step is committed to `devices`, as records and results are. JAX compiles a
    step again for arguments that are free to move.
    """

    decoder: Decoder
    devices: Devices
    executor: Executor
    shape: Geometry
    embedding: Embedding
    stem: Record | None
    final: Record | None

    @property
    def layers(self) -> int:
        """Layers of the model: the first records of a pass; the others are blocks of the head."""
        return self.decoder.config.layers

    def new_cache(self, sequences: int = 1) -> KVCache:
        """An empty cache of one layer, as bits, with a row for each of some sequences."""
        make = functools.partial(
            create_cache,
            batch=sequences,
            capacity=self.shape.capacity,
            kv_heads=self.devices.count * self.shape.heads.kv_heads,
            head_dim=self.decoder.config.head_dim,
            dtype=dtype_from_name(self.shape.dtype),
        )
        abstract, place = jax.eval_shape(lambda: as_bits(make())), self._cache_sharding()
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=place), abstract)

    def _cache_sharding(self, memory_kind: str | None = None) -> Sharding:
        axes = [None] * steps.CACHE_HEADS_AXIS
        return self.devices.sharding(*axes, self.devices.axis, memory_kind=memory_kind)

    def new_caches(self, sequences: int = 1) -> Caches:
        """Empty caches of all layers for some sequences, in micro-batches of equally many rows."""
        micro_batches, rows = micro_batches_for(sequences, self.shape.most_rows)
        return Caches(
            lambda: self.new_cache(rows),
            layers=self.layers,
            micro_batches=micro_batches,
            device=self._cache_sharding(),
            waiting=self._cache_sharding("pinned_host") if self.shape.cache_tier == "host" else None,
        )


@dataclass(frozen=True)
class Feed:
    """The next tokens of the sequence in one row of the caches, which hold `start` tokens of it already."""

    row: int
    ids: Sequence[int]
    start: int


@dataclass(frozen=True)
class Chunk:
    """Some successive tokens on their way through the layers: x (1, time, hidden), or one token of each row.

    The first `length` are real, the rest is padding; `start` (sequences,) are the positions of the first.
    """

    x: jax.Array
    start: jax.Array
    length: int


@dataclass
class Group:
    """A micro-batch on its way through the layers: rows and chunks as they are after the latest layer.

    singles: one token of each of its rows. prompts: longer pieces, by row.
    """

    number: int
    singles: Chunk | None
    prompts: dict[int, list[Chunk]]

    @property
    def latest(self) -> jax.Array:
        """What was computed last: it depends on all of the layer before."""
        chunks = list(self.prompts.values())
        latest = chunks[-1][-1] if chunks else self.singles
        assert latest is not None
        return latest.x


def advance(runner: Runner, caches: Caches, feeds: Sequence[Feed]) -> Float[np.ndarray, "feeds vocabulary"]:
    """Passes the next tokens of some sequences through the model: float32 logits after the last of each.

    Rows that are not fed lose what the caches hold of them. While a layer is on the device, micro-batch after
    micro-batch passes through it: single tokens of all its rows together, longer pieces one after another in
    chunks. Raises InvalidInputError for a feed without ids, or with more than the context holds.
    """
    for feed in feeds:
        check_length(runner, feed.start, len(feed.ids))
    numbers = sorted({feed.row // caches.rows for feed in feeds})
    groups = [_group(runner, number, feeds, caches.rows) for number in numbers]
    places = [(layer, number) for layer in range(runner.layers) for number in numbers]
    following = dict(itertools.pairwise(places))
    last: list[jax.Array] = []
    logits: list[list[jax.Array]] = []

    def step(index: int, record: Record) -> object:
        if index < runner.layers:
            for group in groups:
                place = index, group.number
                cache = caches.take(place, then=following.get(place))
                caches.give(place, _apply_to_group(runner, record, group, cache))
            return [group.latest for group in groups]
        if not last:
            last.extend(
                steps.final_step(
                    runner.decoder,
                    runner.final,
                    _last(runner, group, caches.rows),
                    mesh=runner.devices.mesh,
                )
                for group in groups
            )
        logits.append([steps.head_step(record, x, mesh=runner.devices.mesh) for x in last])
        return logits[-1]

    runner.executor.run(step)
    wide = {
        number: np.concatenate([np.asarray(block)[:, 0] for block in blocks], axis=1)
        for number, *blocks in zip(numbers, *runner.devices.wait(logits), strict=True)
    }
    rows = [wide[feed.row // caches.rows][feed.row % caches.rows] for feed in feeds]
    return np.stack(rows)[:, : runner.embedding.vocabulary]


def _group(runner: Runner, number: int, feeds: Sequence[Feed], rows: int) -> Group:
    """The feeds of a micro-batch, ready for the first layer."""
    own = {feed.row % rows: feed for feed in feeds if feed.row // rows == number}
    prompts = {
        row: embed(runner, feed.ids, feed.start, chunk=chunk_for(len(feed.ids)))
        for row, feed in own.items()
        if len(feed.ids) > 1
    }
    return Group(number, _embed_singles(runner, own, rows), prompts)


def _apply_to_group(runner: Runner, record: Record, group: Group, cache: KVCache) -> KVCache:
    """A micro-batch through one layer, in place; its new cache."""
    if group.singles is not None:
        singles = group.singles
        x, cache = steps.block_step(
            runner.decoder, record, singles.x, cache, singles.start, mesh=runner.devices.mesh
        )
        group.singles = Chunk(x, singles.start, 1)
    for row, chunks in group.prompts.items():
        cache = apply_layer(runner, record, chunks, cache, row=row)
    return cache


def _last(runner: Runner, group: Group, rows: int) -> jax.Array:
    """x of the last token of every row: (rows, 1, hidden). Undefined for rows that are not fed."""
    if group.singles is None:
        hidden = runner.decoder.config.hidden_size
        x = runner.devices.everywhere(np.zeros((rows, 1, hidden), dtype_from_name(runner.shape.dtype)))
    else:
        x = group.singles.x
    for row, chunks in group.prompts.items():
        place = runner.devices.everywhere((np.int32(row), np.int32(chunks[-1].length - 1)))
        x = steps.pick_step(x, chunks[-1].x, *place)
    return x


def _embed_singles(runner: Runner, feeds: Mapping[int, Feed], rows: int) -> Chunk | None:
    """The feeds of one token, by row, as x (rows, 1, hidden); None if there are none.

    Other rows take part with a token that nobody looks at. It is written where the chunks of a row's prompt
    overwrite it, or into a row that is not fed.
    """
    if all(len(feed.ids) > 1 for feed in feeds.values()):
        return None
    tokens, starts = [0] * rows, np.zeros(rows, np.int32)
    for row, feed in feeds.items():
        tokens[row], starts[row] = feed.ids[0], feed.start
    values = runner.embedding.rows(tokens)[:, None]
    return _enter(runner, values, starts, 1)


def embed(runner: Runner, ids: Sequence[int], start: int, *, chunk: int = CHUNK) -> list[Chunk]:
    """The tokens of one sequence in chunks of one shape, the last one padded: so it is compiled once.

    A chunk is written to the cache as a whole: where that has no room for the padding, tokens go one by one.
    """
    chunks = []
    first = 0
    while first < len(ids):
        size = chunk if start + first + chunk <= runner.shape.capacity else 1
        piece = ids[first : first + size]
        width = runner.decoder.config.embedding_size
        values = np.zeros((1, size, width), dtype_from_name(runner.shape.dtype))
        values[0, : len(piece)] = runner.embedding.rows(piece)
        chunks.append(_enter(runner, values, np.array([start + first], np.int32), len(piece)))
        first += size
    return chunks


def _enter(runner: Runner, values: np.ndarray, starts: np.ndarray, length: int) -> Chunk:
    positions = runner.devices.everywhere(starts)
    if runner.devices.several_processes:  # each has read the rows that are in its parts
        summands = runner.devices.summands(values)
        embedded = runner.devices.wait(steps.sum_step(summands, mesh=runner.devices.mesh))
    else:
        embedded = runner.devices.everywhere(values)
    x = steps.stem_step(runner.decoder, runner.stem, embedded, positions, mesh=runner.devices.mesh)
    return Chunk(x, positions, length)


def apply_layer(runner: Runner, record: Record, chunks: list[Chunk], cache: KVCache, *, row: int) -> KVCache:
    """All chunks of a sequence through one layer, in order and in place; the cache with its row written."""
    place = runner.devices.everywhere(np.int32(row))
    for i, chunk in enumerate(chunks):
        x, cache = steps.prompt_step(
            runner.decoder, record, chunk.x, cache, chunk.start, place, mesh=runner.devices.mesh
        )
        chunks[i] = Chunk(x, chunk.start, chunk.length)
    return cache


def digest_ids(sequences: Sequence[Sequence[int]]) -> str:
    """A digest of some token ids, for processes to compare."""
    return digest_bytes(repr([[int(token) for token in ids] for ids in sequences]).encode())


def check_length(runner: Runner, start: int, count: int) -> None:
    """Raises InvalidInputError for no tokens, or more than the context holds behind `start`."""
    if count == 0:
        raise InvalidInputError("token ids", got="none", expected="at least one", fix="pass a prompt")
    if start + count > runner.shape.context:
        raise InvalidInputError(
            "sequence",
            got=f"{start + count} tokens",
            expected=f"at most {runner.shape.context}",
            fix="shorten it, or load the model with a larger context",
        )
