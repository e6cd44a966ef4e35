"""Scoring: logits and losses at every position of given sequences, layer-major, without a cache that stays.

As many sequences as the plan has activations for share a pass over the layers. One layer's cache serves them
all, one after another: what it still holds of the sequence before lies behind every query of the next.
Short sequences go in short chunks, as prompts do: their own length decides, not what shares their pass. The
stages of a pipeline take turns; what the last one finds is told to all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from endor_jax.arrays import round_up
from endor_jax.errors import InvalidInputError
from endor_jax.format.record import Record
from endor_jax.generate import steps
from endor_jax.generate.pipeline import Pipeline, check_feeds
from endor_jax.generate.placement import CHUNK, chunk_for
from endor_jax.generate.runner import (
    Chunk,
    Entering,
    Feed,
    Runner,
    apply_layer,
    check_length,
    chunks_of,
    digest_ids,
    embedded,
    leaving,
    received,
)

Head = Callable[[Runner, Record, int, int, Chunk], object]
"""(runner, block of vocabulary rows, its first row, sequence, chunk whose x is what the head multiplies)"""


def score(
    pipeline: Pipeline, sequences: Sequence[Sequence[int]]
) -> Float[np.ndarray, "batch length vocabulary"]:
    """Float32 logits at every position of sequences of equal length.

    Raises InvalidInputError for no sequences, empty or too long ones.
    """
    check_length(pipeline.runner, 0, len(sequences[0]) if sequences else 0)
    pipeline.runner.devices.agree(sequences=digest_ids(sequences))
    vocabulary = pipeline.shape.config.vocabulary_size
    logits = np.empty((len(sequences), len(sequences[0]), vocabulary), np.float32)

    def head(runner: Runner, record: Record, row: int, sequence: int, chunk: Chunk) -> None:
        # The last blocks may be padded with rows that are no tokens.
        whole = np.asarray(runner.devices.wait(steps.head_step(record, chunk.x, mesh=runner.devices.mesh)))
        block = whole[0, : chunk.length, : max(vocabulary - row, 0)]
        first = int(chunk.start[0])
        logits[sequence, first : first + chunk.length, row : row + block.shape[1]] = block

    for group in _groups(pipeline, sequences):
        _pass(pipeline, sequences, group, head)
        own = logits[group.start : group.stop]
        own[:] = pipeline.tell_all(
            own.reshape(-1, vocabulary) if pipeline.ends_here else None,
            own.shape[0] * own.shape[1],
            vocabulary,
        ).reshape(own.shape)
    return logits


@dataclass(frozen=True)
class TokenScores:
    """Of every token but the first of a sequence, given those before it.

    losses: negative log-likelihoods, in nats. likeliest: whether no token had a larger logit, so that greedy
    decoding would have taken it (or one of equals).
    """

    losses: Float[np.ndarray, " targets"]
    likeliest: Bool[np.ndarray, " targets"]


def losses(pipeline: Pipeline, sequences: Sequence[Sequence[int]]) -> list[Float[np.ndarray, " targets"]]:
    """The losses that `token_scores` finds. Raises as it does."""
    return [scores.losses for scores in token_scores(pipeline, sequences)]


def token_scores(pipeline: Pipeline, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
    """Scores of every token but the first of each sequence; lengths may differ.

    The log-sum-exp is folded over the blocks of the head, in float32: no array has the vocabulary's width for
    more than one chunk. Raises InvalidInputError for sequences below two tokens, or too long ones.
    """
    for ids in sequences:
        check_length(pipeline.runner, 0, len(ids))
        if len(ids) < 2:
            raise InvalidInputError(
                "token ids",
                got="a sequence of one token",
                expected="at least two",
                fix="the first token of a sequence has no loss",
            )
    pipeline.runner.devices.agree(sequences=digest_ids(sequences))
    result: list[TokenScores] = []
    for group in _groups(pipeline, sequences):
        folds: dict[tuple[int, int], steps.Fold] = {}

        def head(
            runner: Runner, record: Record, row: int, sequence: int, chunk: Chunk, folds=folds
        ) -> object:
            first = int(chunk.start[0])
            fold = folds.get((sequence, first)) or _new_fold(runner, sequences[sequence], chunk)
            folds[sequence, first] = steps.fold_step(
                record,
                chunk.x,
                fold,
                runner.devices.everywhere(np.int32(row)),
                runner.decoder.config.vocabulary_size,
                mesh=runner.devices.mesh,
            )
            return folds[sequence, first]

        _pass(pipeline, sequences, group, head)
        for sequence in group:
            own = [fold for (of, _), fold in folds.items() if of == sequence]
            targets = len(sequences[sequence]) - 1
            told = pipeline.tell_all(
                _scores_of(pipeline.runner.devices.wait(own), targets) if own else None, 2, targets
            )
            result.append(TokenScores(told[0], told[1] != 0))
    return result


def _scores_of(folds: Sequence[steps.Fold], targets: int) -> Float[np.ndarray, "2 {targets}"]:
    """Losses of one sequence, and ones where a target is the likeliest, from the folds of its chunks; what is
    behind its last target is padding."""
    losses = [np.asarray(steps.fold_losses(fold)) for fold in folds]
    likeliest = [np.asarray(fold.at_target) == np.asarray(fold.largest) for fold in folds]
    return np.stack([np.concatenate(losses), np.concatenate(likeliest).astype(np.float32)])[:, :targets]


def _new_fold(runner: Runner, ids: Sequence[int], chunk: Chunk) -> steps.Fold:
    """An empty fold for a chunk of some token ids: each position's target is the token after it."""
    size, first = chunk.x.shape[1], int(chunk.start[0])
    targets = np.zeros(size, np.int32)
    following = ids[first + 1 : first + 1 + size]
    targets[: len(following)] = following
    lowest, zeros = np.full(size, -np.inf, np.float32), np.zeros(size, np.float32)
    return steps.Fold(*runner.devices.everywhere((targets, lowest, zeros, zeros)))


def _groups(pipeline: Pipeline, sequences: Sequence[Sequence[int]]) -> Iterator[range]:
    """Indices of successive sequences whose chunks fill the positions that the plan has room for."""
    first, taken = 0, 0
    for i, ids in enumerate(sequences):
        positions = round_up(len(ids), CHUNK)
        if i > first and taken + positions > pipeline.shape.positions:
            yield range(first, i)
            first, taken = i, 0
        taken += positions
    if sequences:
        yield range(first, len(sequences))


def _pass(pipeline: Pipeline, sequences: Sequence[Sequence[int]], group: range, head: Head) -> None:
    """One pass over the layers of all stages for some sequences; where the last stage is, it calls `head` for
    each of its blocks and every chunk."""
    feeds = [Feed(i, sequences[i], 0) for i in group]
    check_feeds(pipeline, feeds)
    x = None
    for number in range(pipeline.count):
        given = None
        if number in pipeline.stages:
            runner = pipeline.stages[number]
            entering = embedded(runner) if x is None else received(feeds, x)
            given = _stage(runner, feeds, entering, head)
        if number < pipeline.count - 1:
            tokens = sum(len(feed.ids) for feed in feeds)
            x = pipeline.hand_on({} if given is None else {number: given}, tokens).get(number + 1)


def _stage(
    runner: Runner, feeds: Sequence[Feed], entering: Entering, head: Head
) -> Shaped[np.ndarray, "tokens hidden"] | None:
    """One pass over the layers that are here: x of all tokens for the next stage; None from the last one."""
    batch = {feed.row: chunks_of(runner, feed, entering, chunk=chunk_for(len(feed.ids))) for feed in feeds}
    final: list[None] = []
    row = 0

    def step(index: int, record: Record) -> object:
        nonlocal row
        if index < runner.layers:
            cache = runner.new_cache()
            for chunks in batch.values():
                cache = apply_layer(runner, record, chunks, cache, row=0)
            return batch[feeds[-1].row][-1].x
        if not final:
            for chunks in batch.values():
                for i, chunk in enumerate(chunks):
                    x = steps.final_step(runner.decoder, runner.final, chunk.x, mesh=runner.devices.mesh)
                    chunks[i] = Chunk(x, chunk.start, chunk.length)
            final.append(None)
        result = [head(runner, record, row, i, chunk) for i, chunks in batch.items() for chunk in chunks]
        row += steps.block_rows(record, runner.devices.mesh)
        return result

    runner.executor.run(step)
    return None if runner.shape.here.last else leaving([chunk for feed in feeds for chunk in batch[feed.row]])
