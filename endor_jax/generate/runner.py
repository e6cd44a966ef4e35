"""The runner: token ids through all layers, layer-major, over an executor. It knows ids, not text.

Layer-major: everything that is to pass through a layer passes while its record is on the device, so a prompt
of any length reads every record once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax import lax
from jaxtyping import Float

from endor_jax.arrays import dtype_from_name, round_up
from endor_jax.errors import InvalidInputError
from endor_jax.format.record import Record
from endor_jax.generate import steps
from endor_jax.generate.embedding import Embedding, rows
from endor_jax.generate.placement import CHUNK, Geometry
from endor_jax.models import Decoder, KVCache, create_cache
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.transfer import Device


@dataclass(frozen=True)
class Runner:
    """Everything a pass needs: the decoder, the executor, and what stays in place whatever is streamed.

    Invariant: all that enters a step is committed to `device`, as records and results are. JAX compiles a
    step again for arguments that are free to move.
    """

    decoder: Decoder
    device: Device
    executor: Executor
    shape: Geometry
    embedding: Embedding
    stem: Record | None
    final: Record

    @property
    def layers(self) -> int:
        """Layers of the model: the first records of a pass; the others are blocks of the head."""
        return self.decoder.config.layers

    def new_cache(self) -> KVCache:
        """An empty cache of one layer for one sequence."""
        config = self.decoder.config
        cache = create_cache(
            batch=1,
            capacity=self.shape.capacity,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=dtype_from_name(self.shape.dtype),
        )
        return jax.device_put(cache, self.device)


@dataclass(frozen=True)
class Chunk:
    """Some successive tokens of a sequence on their way through the layers: x (1, time, hidden).

    The first `length` are real, the rest is padding; `start` is the position of the first.
    """

    x: jax.Array
    start: jax.Array
    length: int


def advance(
    runner: Runner, caches: list[KVCache], ids: Sequence[int], *, start: int
) -> Float[np.ndarray, " vocabulary"]:
    """Passes the next tokens of a sequence through the model: float32 logits after the last of them.

    caches: one per layer, replaced by the new ones. start: how many tokens are in the cache already.
    Raises InvalidInputError if there are no ids, or more than the context holds.
    """
    _check_length(runner, start, len(ids))
    chunks = _embed(runner, ids, start)
    logits: list[jax.Array] = []
    last: list[jax.Array] = []

    def step(index: int, record: Record) -> object:
        if index < runner.layers:
            chunks[:], caches[index] = _apply_layer(runner, record, chunks, caches[index])
            return chunks[-1].x
        if not last:
            # A slice with Python's bounds would be compiled for every length of prompt.
            x = lax.dynamic_slice_in_dim(chunks[-1].x, chunks[-1].length - 1, 1, axis=1)
            last.append(steps.final_step(runner.decoder, runner.final, x))
        logits.append(steps.head_step(record, last[0])[0, 0])
        return logits[-1]

    runner.executor.run(step)
    return np.concatenate([np.asarray(block) for block in logits])[: runner.embedding.vocabulary]


def score(runner: Runner, sequences: Sequence[Sequence[int]]) -> Float[np.ndarray, "batch length vocabulary"]:
    """Float32 logits at every position of sequences of equal length, layer-major.

    As many sequences as fill the context share a pass over the layers: their activations are what the plan
    has room for. Needs the cache of one layer only. Raises InvalidInputError for empty sequences or too long
    ones.
    """
    length = len(sequences[0]) if sequences else 0
    _check_length(runner, 0, length)
    logits = np.empty((len(sequences), length, runner.embedding.vocabulary), np.float32)
    at_once = max(1, runner.shape.capacity // round_up(length, CHUNK))
    for first in range(0, len(sequences), at_once):
        _score_group(runner, sequences[first : first + at_once], into=logits[first : first + at_once])
    return logits


def _score_group(
    runner: Runner,
    sequences: Sequence[Sequence[int]],
    *,
    into: Float[np.ndarray, "batch length vocabulary"],
) -> None:
    """One pass over the layers for some sequences; writes their logits."""
    batch = [_embed(runner, ids, 0) for ids in sequences]
    vocabulary = into.shape[-1]
    normed: list[list[jax.Array]] = []
    column = 0

    def step(index: int, record: Record) -> object:
        nonlocal column
        if index < runner.layers:
            cache = runner.new_cache()
            for i, chunks in enumerate(batch):
                # The cache is used again by the next sequence: what it still holds lies behind every query.
                batch[i], cache = _apply_layer(runner, record, chunks, cache)
            return batch[-1][-1].x
        if not normed:
            normed[:] = [
                [steps.final_step(runner.decoder, runner.final, c.x) for c in chunks] for chunks in batch
            ]
        width = 0
        for i, chunks in enumerate(batch):
            for chunk, x in zip(chunks, normed[i], strict=True):
                block = np.asarray(steps.head_step(record, x)[0, : chunk.length])
                width = min(block.shape[1], vocabulary - column)
                first = int(chunk.start[0])
                into[i, first : first + chunk.length, column : column + width] = block[:, :width]
        column += width
        return None

    runner.executor.run(step)


def _embed(runner: Runner, ids: Sequence[int], start: int) -> list[Chunk]:
    """One token as a chunk of its own shape, more in chunks of CHUNK: so only two shapes are ever compiled.

    A chunk is written to the cache as a whole: where that has no room for the padding, tokens go one by one.
    """
    chunks = []
    first = 0
    while first < len(ids):
        fits = start + first + CHUNK <= runner.shape.capacity
        size = CHUNK if fits and len(ids) - first > 1 else 1
        piece = ids[first : first + size]
        values = np.zeros((1, size, runner.decoder.config.hidden_size), dtype_from_name(runner.shape.dtype))
        values[0, : len(piece)] = rows(runner.embedding, piece)
        embedded, position = jax.device_put((values, np.array([start + first], np.int32)), runner.device)
        x = steps.stem_step(runner.decoder, runner.stem, embedded, position)
        chunks.append(Chunk(x, position, len(piece)))
        first += size
    return chunks


def _apply_layer(
    runner: Runner, record: Record, chunks: Sequence[Chunk], cache: KVCache
) -> tuple[list[Chunk], KVCache]:
    """All chunks of a sequence through one layer, in order."""
    done = []
    for chunk in chunks:
        x, cache = steps.block_step(runner.decoder, record, chunk.x, cache, chunk.start)
        done.append(Chunk(x, chunk.start, chunk.length))
    return done, cache


def _check_length(runner: Runner, start: int, count: int) -> None:
    if count == 0:
        raise InvalidInputError("token ids", got="none", expected="at least one", fix="pass a prompt")
    if start + count > runner.shape.context:
        raise InvalidInputError(
            "sequence",
            got=f"{start + count} tokens",
            expected=f"at most {runner.shape.context}",
            fix="shorten it, or load the model with a larger context",
        )
