"""Samplers: frozen settings, and a pure function from logits to a token id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from endor_jax.errors import OptionError


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    temperature: 0 takes the most likely token (the lowest id among equals); above, logits are divided by it.
    top_p: only the most likely tokens whose probabilities reach this sum are candidates ("nucleus sampling",
    arXiv 1904.09751). seed: the same seed, settings and logits give the same tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise OptionError(
                "sampler", got=f"temperature {self.temperature}", expected="0 or more", fix="0 is greedy"
            )
        if not 0 < self.top_p <= 1:
            raise OptionError(
                "sampler", got=f"top_p {self.top_p}", expected="above 0, at most 1", fix="1 keeps all tokens"
            )
        if self.seed < 0:
            raise OptionError(
                "sampler", got=f"seed {self.seed}", expected="0 or more", fix="choose another number"
            )


def sample(logits: Float[np.ndarray, " vocabulary"], sampler: Sampler, random: np.random.Generator) -> int:
    """The next token id from float32 logits. `random` is advanced once unless the choice is greedy."""
    if sampler.temperature == 0:
        return int(np.argmax(logits))
    # The largest is subtracted first: divided by a tiny temperature it would be infinite. The others may be.
    with np.errstate(over="ignore"):
        scaled = (logits.astype(np.float64) - logits.max()) / sampler.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    # A token stays if those before it do not reach top_p yet: the most likely one always does. With top_p 1
    # all stay, which rounding in the sum must not change.
    before = np.cumsum(ranked) - ranked
    kept = int(np.count_nonzero(before < sampler.top_p)) if sampler.top_p < 1 else len(ranked)
    ranked = ranked[:kept] / ranked[:kept].sum()
    return int(order[random.choice(kept, p=ranked)])
