"""Perplexity: exp of the mean negative log-likelihood of a text's tokens, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num

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
    """Cuts a text into blocks of `sequence_length` tokens and scores them: `perplexity_of_blocks`.

    Raises InvalidInputError if there is no whole block, or none with a token to score.
    """
    return perplexity_of_blocks(model, ordered_blocks(token_ids, sequence_length), progress=progress)


def perplexity_of_blocks(
    model: Model,
    blocks: Int[np.ndarray, "blocks length"],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Scores every token but the first of each block of token ids, given those before it in the block.

    As many blocks as the model's plan has activations for pass through a layer while it is on the device.
    progress: called with (blocks done, blocks in all). Raises InvalidInputError for no blocks, or for blocks
    below two tokens or longer than the context.
    """
    return of_losses(losses_of_blocks(model, blocks, progress=progress).ravel())


def losses_of_blocks(
    model: Model,
    blocks: Int[np.ndarray, "blocks length"],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "blocks targets"]:
    """Float32 negative log-likelihoods, in nats, of the tokens that `perplexity_of_blocks` scores.

    progress, and what is raised: as there.
    """
    check_blocks(blocks)
    at_once = model.sequences_per_pass(blocks.shape[1])
    losses: list[np.ndarray] = []
    for first in range(0, len(blocks), at_once):
        if progress is not None:
            progress(first, len(blocks))
        losses += model.losses(blocks[first : first + at_once])
    return np.stack(losses)


def ordered_blocks(token_ids: Sequence[int], length: int) -> Int[np.ndarray, "blocks length"]:
    """A text cut every `length` tokens, in its own order; the rest that fills no block is left out. int32.

    Raises InvalidInputError if there is no whole block, or for a length below 2.
    """
    if length < 2:
        raise _too_short(length)
    whole = len(token_ids) // length
    if whole == 0:
        raise InvalidInputError(
            "perplexity",
            got=f"{len(token_ids)} tokens",
            expected=f"at least one block of {length}",
            fix="give a longer text or a smaller sequence length",
        )
    return np.asarray(token_ids[: whole * length], np.int32).reshape(whole, length)


def check_blocks(blocks: Int[np.ndarray, "blocks length"]) -> None:
    """Raises InvalidInputError for no blocks, or blocks in which no token has one before it."""
    if len(blocks) == 0:
        raise InvalidInputError(
            "blocks of a text", got="none", expected="at least one", fix="give a longer text"
        )
    if blocks.shape[1] < 2:
        raise _too_short(blocks.shape[1])


def of_losses(losses: Num[np.ndarray, " tokens"]) -> Perplexity:
    """The perplexity of tokens whose negative log-likelihoods these are; not finite for a broken model."""
    each = losses.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(np.exp(each.mean()))
        return Perplexity(value, value * standard_error(each), each.size)


def standard_error(values: Num[np.ndarray, " tokens"]) -> float:
    """Of the mean of some values, taking them as independent; 0.0 for a single one."""
    return float(values.std(ddof=1)) / values.size**0.5 if values.size > 1 else 0.0


def _too_short(length: int) -> InvalidInputError:
    return InvalidInputError(
        "perplexity",
        got=f"sequence_length {length}",
        expected="at least 2",
        fix="the first token of a block is not scored",
    )
