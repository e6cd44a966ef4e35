"""The runner: token ids through all layers, layer-major, over an executor. It knows ids, not text.

Layer-major: everything that is to pass through a layer passes while its record is on the device. So a pass
reads every record once, whatever the length of the prompts and the number of sequences.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Float, Shaped

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

    Of a stage of a pipeline (`shape.here`): its layers, and what it has of embedding, stem and final part.
    Invariant: all that enters a step is committed to `devices`, as records and results are. JAX compiles a
    step again for arguments that are free to move.
    """

    decoder: Decoder
    devices: Devices
    executor: Executor
    shape: Geometry
    embedding: Embedding | None
    stem: Record | None
    final: Record | None

    @property
    def layers(self) -> int:
        """Layers that are here: the first records of a pass; the others are blocks of the head."""
        return len(self.shape.here.layers)

    def close(self) -> None:
        """Stops reading and frees the layers. Idempotent."""
        self.executor.close()
        if self.embedding is not None:
            self.embedding.close()

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


Entering: TypeAlias = Callable[[Sequence[tuple[Feed, int]]], np.ndarray]
"""(feeds, each with the number of one of its tokens) -> (tokens, width): what goes into the first layer, or
into the stem where there is one."""


def embedded(runner: Runner) -> Entering:
    """Rows of the embedding: what goes into the first stage."""
    embedding = runner.embedding
    assert embedding is not None  # which the first stage has
    return lambda tokens: embedding.rows([feed.ids[i] for feed, i in tokens])


def received(feeds: Sequence[Feed], x: Shaped[np.ndarray, "tokens hidden"]) -> Entering:
    """What the stage before gave for the tokens of all feeds, one feed's after the other's."""
    first = dict(zip((feed.row for feed in feeds), before(feeds), strict=True))
    return lambda tokens: x[[first[feed.row] + i for feed, i in tokens]]


def before(feeds: Sequence[Feed]) -> list[int]:
    """Of each feed, how many tokens those before it have."""
    return [0, *itertools.accumulate(len(feed.ids) for feed in feeds)][: len(feeds)]


def advance(runner: Runner, caches: Caches, feeds: Sequence[Feed]) -> Float[np.ndarray, "feeds vocabulary"]:
    """Passes the next tokens of some sequences through the model: float32 logits after the last of each.

    Rows that are not fed lose what the caches hold of them. While a layer is on the device, micro-batch after
    micro-batch passes through it: single tokens of all its rows together, longer pieces one after another in
    chunks. Raises InvalidInputError for a feed without ids, or with more than the context holds.
    """
    return advance_stage(runner, caches, feeds, embedded(runner))


def advance_stage(
    runner: Runner, caches: Caches, feeds: Sequence[Feed], entering: Entering
) -> Shaped[np.ndarray, "results width"]:
    """`advance` through the layers that are here: from the last stage (feeds, vocabulary) float32 logits,
    from any other x of the tokens of all feeds for the next one, (tokens, hidden) in the model's dtype."""
    for feed in feeds:
        check_length(runner, feed.start, len(feed.ids))
    numbers = sorted({feed.row // caches.rows for feed in feeds})
    groups = [_group(runner, number, feeds, caches.rows, entering) for number in numbers]
    logits = _run(runner, caches, groups)
    if not runner.shape.here.last:
        return _leaving(feeds, {group.number: group for group in groups}, caches.rows)
    wide = {
        number: np.concatenate([np.asarray(block)[:, 0] for block in blocks], axis=1)
        for number, *blocks in zip(numbers, *runner.devices.wait(logits), strict=True)
    }
    rows = [wide[feed.row // caches.rows][feed.row % caches.rows] for feed in feeds]
    return np.stack(rows)[:, : runner.decoder.config.vocabulary_size]


def _run(runner: Runner, caches: Caches, groups: Sequence[Group]) -> list[list[jax.Array]]:
    """Groups through all records that are here, in place: for every block of the head, logits of each."""
    places = [(layer, group.number) for layer in range(runner.layers) for group in groups]
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
    return logits


def _leaving(
    feeds: Sequence[Feed], groups: Mapping[int, Group], rows: int
) -> Shaped[np.ndarray, "tokens hidden"]:
    """x of the tokens of all feeds, one feed's after the other's."""
    singles = {
        number: np.asarray(group.singles.x) for number, group in groups.items() if group.singles is not None
    }
    own = []
    for feed in feeds:
        number, row = divmod(feed.row, rows)
        prompt = groups[number].prompts.get(row)
        own.append(singles[number][row] if prompt is None else leaving(prompt))
    return np.concatenate(own)


def leaving(chunks: Sequence[Chunk]) -> Shaped[np.ndarray, "tokens hidden"]:
    """x of the tokens of some prompts, on the host, without padding."""
    return np.concatenate([np.asarray(chunk.x)[0, : chunk.length] for chunk in chunks])


def _group(runner: Runner, number: int, feeds: Sequence[Feed], rows: int, entering: Entering) -> Group:
    """The feeds of a micro-batch, ready for the first layer."""
    own = {feed.row % rows: feed for feed in feeds if feed.row // rows == number}
    prompts = {
        row: chunks_of(runner, feed, entering, chunk=chunk_for(len(feed.ids)))
        for row, feed in own.items()
        if len(feed.ids) > 1
    }
    return Group(number, _singles(runner, own, rows, entering), prompts)


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


def _singles(runner: Runner, feeds: Mapping[int, Feed], rows: int, entering: Entering) -> Chunk | None:
    """The feeds of one token, by row, as x (rows, 1, hidden); None if there are none.

    Other rows take part with a token that nobody looks at. It is written where the chunks of a row's prompt
    overwrite it, or into a row that is not fed.
    """
    single = {row: feed for row, feed in feeds.items() if len(feed.ids) == 1}
    if not single:
        return None
    own = entering([(feed, 0) for feed in single.values()])
    values, starts = np.zeros((rows, 1, own.shape[1]), own.dtype), np.zeros(rows, np.int32)
    values[list(single), 0] = own
    for row, feed in feeds.items():
        starts[row] = feed.start
    return _enter(runner, values, starts, 1)


def chunks_of(runner: Runner, feed: Feed, entering: Entering, *, chunk: int = CHUNK) -> list[Chunk]:
    """The tokens of one sequence in chunks of one shape, the last one padded: so it is compiled once.

    A chunk is written to the cache as a whole: where that has no room for the padding, tokens go one by one.
    """
    chunks = []
    first = 0
    while first < len(feed.ids):
        size = chunk if feed.start + first + chunk <= runner.shape.capacity else 1
        length = min(size, len(feed.ids) - first)
        own = entering([(feed, first + i) for i in range(length)])
        values = np.zeros((1, size, own.shape[1]), own.dtype)
        values[0, :length] = own
        chunks.append(_enter(runner, values, np.array([feed.start + first], np.int32), length))
        first += size
    return chunks


def _enter(runner: Runner, values: np.ndarray, starts: np.ndarray, length: int) -> Chunk:
    positions = runner.devices.everywhere(starts)
    if not runner.shape.here.first:  # every process has all of what the stage before gave
        return Chunk(runner.devices.everywhere(values), positions, length)
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
