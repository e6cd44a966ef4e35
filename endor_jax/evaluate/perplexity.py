"""Perplexity: exp of the mean negative log-likelihood of a text's tokens, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from endor_jax.errors import InvalidInputError
from endor_jax.generate.model import Model


@dataclass(frozen=True)
class Perplexity:
    """value: exp(mean loss); standard_error: of value, taking token losses as independent; tokens: scored."""

    value: float
    standard_error: float
    tokens: int


def perplexity(
    model: Model,
    token_ids: Sequence[int],
    *,
    sequence_length: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Cuts a text into blocks of `sequence_length` tokens and scores every token but the first of each.

    As many blocks as the model's plan has activations for pass through a layer while it is on the device. The
    rest that fills no block is left out. progress: called with (blocks done, blocks in all). Raises
    InvalidInputError if there is no whole block, or none with a token to score.
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
    at_once = model.sequences_per_pass(sequence_length)
    losses: list[np.ndarray] = []
    for first in range(0, len(blocks), at_once):
        if progress is not None:
            progress(first, len(blocks))
        losses += model.losses(blocks[first : first + at_once])
    joined = np.concatenate(losses).astype(np.float64)
    value = float(np.exp(joined.mean()))
    error = value * float(joined.std(ddof=1)) / np.sqrt(joined.size) if joined.size > 1 else 0.0
    return Perplexity(value, float(error), joined.size)
