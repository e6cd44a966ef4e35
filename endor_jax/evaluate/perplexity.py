"""Perplexity: exp of the mean negative log-likelihood of a text's tokens, with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from endor_jax.errors import InvalidInputError
from endor_jax.generate.model import Model


@dataclass(frozen=True)
class Perplexity:
    """value: exp(mean loss); standard_error: of value, taking token losses as independent; tokens: scored."""

    value: float
    standard_error: float
    tokens: int


LOGITS_BYTES = 2**28
"""Most bytes of logits held at once: as many blocks as that is go through the layers together."""


def perplexity(model: Model, token_ids: Sequence[int], *, sequence_length: int = 512) -> Perplexity:
    """Cuts a text into blocks of `sequence_length` tokens and scores every token but the first of each.

    As many blocks as `LOGITS_BYTES` has room for pass through a layer while it is on the device. The rest
    that fills no block is left out. Raises InvalidInputError if there is no whole block, or none with a token
    to score.
    """
    if sequence_length < 2:
        raise InvalidInputError(
            "perplexity",
            got=f"sequence_length {sequence_length}",
            expected="at least 2",
            fix="the first token of a block is not scored",
        )
    blocks = [
        list(token_ids[first : first + sequence_length])
        for first in range(0, len(token_ids) - sequence_length + 1, sequence_length)
    ]
    if not blocks:
        raise InvalidInputError(
            "perplexity",
            got=f"{len(token_ids)} tokens",
            expected=f"at least one block of {sequence_length}",
            fix="give a longer text or a smaller sequence length",
        )
    at_once = max(1, LOGITS_BYTES // (4 * sequence_length * model.vocabulary_size))
    groups = [blocks[first : first + at_once] for first in range(0, len(blocks), at_once)]
    losses = np.concatenate([_group_losses(model, group) for group in groups])
    value = float(np.exp(losses.mean()))
    error = value * float(losses.std(ddof=1)) / np.sqrt(losses.size) if losses.size > 1 else 0.0
    return Perplexity(value, float(error), losses.size)


def _group_losses(model: Model, blocks: list[list[int]]) -> Float[np.ndarray, " tokens"]:
    """Losses of the scored tokens of some blocks."""
    logits = model.logits(blocks)
    return np.concatenate([_losses(logits[i, :-1], block[1:]) for i, block in enumerate(blocks)])


def _losses(
    logits: Float[np.ndarray, "length vocabulary"], targets: Sequence[int]
) -> Float[np.ndarray, " length"]:
    """Negative log-likelihoods, in float64, row by row to bound the temporaries."""
    rows = (row.astype(np.float64) for row in logits)
    return np.array(
        [_log_sum_exp(row) - row[target] for row, target in zip(rows, targets, strict=True)], np.float64
    )


def _log_sum_exp(row: np.ndarray) -> float:
    largest = row.max()
    return float(largest + np.log(np.exp(row - largest).sum()))
