"""Scoring: logits and losses at every position of given sequences, layer-major, without a cache that stays.

As many sequences as the plan has activations for share a pass over the layers. One layer's cache serves them
all, one after another: what it still holds of the sequence before lies behind every query of the next.
Short sequences go in short chunks, as prompts do: their own length decides, not what shares their pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from endor_jax.arrays import round_up
from endor_jax.errors import InvalidInputError
from endor_jax.format.record import Record
from endor_jax.generate import steps
from endor_jax.generate.placement import CHUNK, chunk_for
from endor_jax.generate.runner import Chunk, Runner, apply_layer, check_length, digest_ids, embed

Head = Callable[[Record, int, int, Chunk], object]
"""(block of vocabulary rows, its first row, sequence, chunk whose x is what the head multiplies)"""


def score(runner: Runner, sequences: Sequence[Sequence[int]]) -> Float[np.ndarray, "batch length vocabulary"]:
    """Float32 logits at every position of sequences of equal length.

    Raises InvalidInputError for no sequences, empty or too long ones.
    """
    check_length(runner, 0, len(sequences[0]) if sequences else 0)
    runner.devices.agree(sequences=digest_ids(sequences))
    vocabulary = runner.embedding.vocabulary
    logits = np.empty((len(sequences), len(sequences[0]), vocabulary), np.float32)

    def head(record: Record, row: int, sequence: int, chunk: Chunk) -> None:
        # The last blocks may be padded with rows that are no tokens.
        whole = np.asarray(runner.devices.wait(steps.head_step(record, chunk.x, mesh=runner.devices.mesh)))
        block = whole[0, : chunk.length, : max(vocabulary - row, 0)]
        first = int(chunk.start[0])
        logits[sequence, first : first + chunk.length, row : row + block.shape[1]] = block

    for group in _groups(runner, sequences):
        _pass(runner, sequences, group, head)
    return logits


@dataclass(frozen=True)
class TokenScores:
    """Of every token but the first of a sequence, given those before it.

    losses: negative log-likelihoods, in nats. likeliest: whether no token had a larger logit, so that greedy
    decoding would have taken it (or one of equals).
    """

    losses: Float[np.ndarray, " targets"]
    likeliest: Bool[np.ndarray, " targets"]


def losses(runner: Runner, sequences: Sequence[Sequence[int]]) -> list[Float[np.ndarray, " targets"]]:
    """The losses that `token_scores` finds. Raises as it does."""
    return [scores.losses for scores in token_scores(runner, sequences)]


def token_scores(runner: Runner, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
    """Scores of every token but the first of each sequence; lengths may differ.

    The log-sum-exp is folded over the blocks of the head, in float32: no array has the vocabulary's width for
    more than one chunk. Raises InvalidInputError for sequences below two tokens, or too long ones.
    """
    for ids in sequences:
        check_length(runner, 0, len(ids))
        if len(ids) < 2:
            raise InvalidInputError(
                "token ids",
                got="a sequence of one token",
                expected="at least two",
                fix="the first token of a sequence has no loss",
            )
    runner.devices.agree(sequences=digest_ids(sequences))
    result: list[TokenScores] = []
    for group in _groups(runner, sequences):
        folds: dict[tuple[int, int], steps.Fold] = {}

        def head(record: Record, row: int, sequence: int, chunk: Chunk, folds=folds) -> object:
            first = int(chunk.start[0])
            fold = folds.get((sequence, first)) or _new_fold(runner, sequences[sequence], chunk)
            folds[sequence, first] = steps.fold_step(
                record,
                chunk.x,
                fold,
                runner.devices.everywhere(np.int32(row)),
                runner.embedding.vocabulary,
                mesh=runner.devices.mesh,
            )
            return folds[sequence, first]

        _pass(runner, sequences, group, head)
        for sequence in group:
            own = [fold for (of, _), fold in folds.items() if of == sequence]
            result.append(_scores_of(runner.devices.wait(own), len(sequences[sequence]) - 1))
    return result


def _scores_of(folds: Sequence[steps.Fold], targets: int) -> TokenScores:
    """The scores of one sequence, from the folds of its chunks; what is behind its last target is padding."""
    losses = [np.asarray(steps.fold_losses(fold)) for fold in folds]
    likeliest = [np.asarray(fold.at_target) == np.asarray(fold.largest) for fold in folds]
    return TokenScores(np.concatenate(losses)[:targets], np.concatenate(likeliest)[:targets])


def _new_fold(runner: Runner, ids: Sequence[int], chunk: Chunk) -> steps.Fold:
    """An empty fold for a chunk of some token ids: each position's target is the token after it."""
    size, first = chunk.x.shape[1], int(chunk.start[0])
    targets = np.zeros(size, np.int32)
    following = ids[first + 1 : first + 1 + size]
    targets[: len(following)] = following
    lowest, zeros = np.full(size, -np.inf, np.float32), np.zeros(size, np.float32)
    return steps.Fold(*runner.devices.everywhere((targets, lowest, zeros, zeros)))


def _groups(runner: Runner, sequences: Sequence[Sequence[int]]) -> Iterator[range]:
    """Indices of successive sequences whose chunks fill the positions that the plan has room for."""
    first, taken = 0, 0
    for i, ids in enumerate(sequences):
        positions = round_up(len(ids), CHUNK)
        if i > first and taken + positions > runner.shape.positions:
            yield range(first, i)
            first, taken = i, 0
        taken += positions
    if sequences:
        yield range(first, len(sequences))


def _pass(runner: Runner, sequences: Sequence[Sequence[int]], group: range, head: Head) -> None:
    """One pass over the layers for some sequences; calls `head` for each of its blocks and every chunk."""
    batch = {i: embed(runner, sequences[i], 0, chunk=chunk_for(len(sequences[i]))) for i in group}
    final: list[None] = []
    row = 0

    def step(index: int, record: Record) -> object:
        nonlocal row
        if index < runner.layers:
            cache = runner.new_cache()
            for chunks in batch.values():
                cache = apply_layer(runner, record, chunks, cache, row=0)
            return batch[group[-1]][-1].x
        if not final:
            for chunks in batch.values():
                for i, chunk in enumerate(chunks):
                    x = steps.final_step(runner.decoder, runner.final, chunk.x, mesh=runner.devices.mesh)
                    chunks[i] = Chunk(x, chunk.start, chunk.length)
            final.append(None)
        result = [head(record, row, i, chunk) for i, chunks in batch.items() for chunk in chunks]
        row += steps.block_rows(record, runner.devices.mesh)
        return result

    runner.executor.run(step)
