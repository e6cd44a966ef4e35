"""Two models on the same tokens: losses of both, the divergence of their predictions, whether they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from endor_jax.evaluate.perplexity import check_blocks
from endor_jax.generate.model import Model

POSITIONS = 64
"""Positions whose logits of both models are on the device at once."""


@dataclass(frozen=True)
class TokenFigures:
    """What was found for every token but the first of each block, given those before it in the block.

    losses_a, losses_b: negative log-likelihoods, in nats. divergence: KL(a ‖ b) of the predictions for this
    token, in nats. agrees: whether both think the same token the likeliest.
    """

    losses_a: Float[np.ndarray, "blocks targets"]
    losses_b: Float[np.ndarray, "blocks targets"]
    divergence: Float[np.ndarray, "blocks targets"]
    agrees: Bool[np.ndarray, "blocks targets"]


def compare_tokens(
    a: Model,
    b: Model,
    blocks: Int[np.ndarray, "blocks length"],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TokenFigures:
    """Scores blocks of token ids with two models of one vocabulary.

    Some blocks at a time: as many as both models' plans have activations for. Of those the float32 logits of
    both are in host memory (`logits_bytes`), and each model is streamed once for them.
    progress: called with (blocks done, blocks in all). Raises InvalidInputError for no blocks, or for blocks
    below two tokens or longer than a context.
    """
    check_blocks(blocks)
    count, length = blocks.shape
    at_once = min(model.sequences_per_pass(length) for model in (a, b))
    found: list[tuple[np.ndarray, ...]] = []
    for first in range(0, count, at_once):
        if progress is not None:
            progress(first, count)
        group = blocks[first : first + at_once]
        for block, logits_a, logits_b in zip(group, a.logits(group), b.logits(group), strict=True):
            found.append(_figures_of_block(block, logits_a, logits_b))
    return TokenFigures(*(np.stack(each) for each in zip(*found, strict=True)))


def logits_bytes(vocabulary: int, *, length: int, at_once: int) -> int:
    """Host memory that `compare_tokens` takes for logits of both models, `at_once` blocks at a time."""
    return 2 * 4 * at_once * length * vocabulary


def _figures_of_block(block: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """The figures of one block, without its last position, whose prediction has no target."""
    targets = np.append(block[1:], np.int32(0)).astype(np.int32)
    pieces = [slice(first, first + POSITIONS) for first in range(0, len(block), POSITIONS)]
    figures = [_figures(a[piece], b[piece], targets[piece]) for piece in pieces]
    return tuple(np.concatenate(each)[:-1] for each in zip(*figures, strict=True))


@jax.jit
def _figures(
    a: Float[Array, "positions vocabulary"],
    b: Float[Array, "positions vocabulary"],
    targets: Int[Array, " positions"],
) -> tuple[
    Float[Array, " positions"],
    Float[Array, " positions"],
    Float[Array, " positions"],
    Bool[Array, " positions"],
]:
    """Losses of both, KL(a ‖ b), agreement, from the logits of some positions, in float32."""
    log_a, log_b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    losses_a, losses_b = (
        -jnp.take_along_axis(each, targets[:, None], axis=1)[:, 0] for each in (log_a, log_b)
    )
    # Σ p log(p/q) = Σ p log(p/q) − p + q, because both sum to one. So no term is negative, and for nearly
    # equal models the terms do not cancel: rounding is small beside a small divergence.
    p, difference = jnp.exp(log_a), log_a - log_b
    near = jnp.abs(difference) < 1
    small = jnp.where(near, difference, 0.0)
    terms = jnp.where(near, p * (small + jnp.expm1(-small)), p * (difference - 1) + jnp.exp(log_b))
    return losses_a, losses_b, terms.sum(axis=1), jnp.argmax(a, axis=1) == jnp.argmax(b, axis=1)
