"""Samplers: frozen settings, and pure functions from logits to candidates and to a token id.

The steps and their order are those of transformers' `generate`: repetition penalty, temperature, top_k,
top_p, min_p. Each later step sees only the candidates that the earlier ones left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from endor_jax.errors import InvalidInputError, OptionError


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    temperature: 0 takes the most likely token (the lowest id among equals); above, logits are divided by it.
    top_p: only the most likely tokens whose probabilities reach this sum are candidates ("nucleus sampling",
    arXiv 1904.09751; lower ids first among equals). seed: the same seed, settings and logits give the same
    tokens. top_k: only the k largest logits are candidates, with all that equal the k-th; 0 keeps all.
    min_p: only tokens at least this many times as likely as the likeliest are candidates (arXiv 2407.01082).
    repetition_penalty: positive logits of tokens that the prompt or the generation has are divided by it,
    negative ones multiplied (arXiv 1909.05858); 1 changes nothing, and it works with temperature 0 too.
    Raises OptionError for a value outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        infinite = float("inf")
        _check("temperature", self.temperature, 0 <= self.temperature < infinite, "0 or more", "0 is greedy")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1", "1 keeps all tokens")
        _check("seed", self.seed, self.seed >= 0, "0 or more", "choose another number")
        _check("top_k", self.top_k, self.top_k >= 0, "0 or more", "0 keeps all tokens")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1", "0 keeps all tokens")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0 < penalty < infinite, "above 0", "1 changes nothing")


def _check(name: str, value: object, holds: bool, expected: str, fix: str) -> None:
    if not holds:
        raise OptionError("sampler", got=f"{name} {value}", expected=expected, fix=fix)


def sample(
    logits: Float[np.ndarray, " vocabulary"],
    sampler: Sampler,
    random: np.random.Generator,
    *,
    seen: Sequence[int] = (),
) -> int:
    """The next token id from float32 logits. `random` is advanced once unless the choice is greedy.

    seen: ids of the prompt and of what was generated so far; only a repetition penalty looks at them.
    Raises InvalidInputError for logits whose maximum is not finite, and for a negative id in `seen`.
    """
    _check_logits(logits)
    if sampler.temperature == 0:
        return int(np.argmax(_penalised(logits, sampler.repetition_penalty, seen)))
    ids, probabilities = candidates(logits, sampler, seen=seen)
    return int(ids[random.choice(len(ids), p=probabilities)])


def candidates(
    logits: Float[np.ndarray, " vocabulary"], sampler: Sampler, *, seen: Sequence[int] = ()
) -> tuple[Integer[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """Ids that may come next under a temperature above 0, most likely first, and their float64 probabilities.

    Sorts only what top_k (or min_p, where top_p is 1) leaves.
    """
    scores = _penalised(logits, sampler.repetition_penalty, seen).astype(np.float64)
    ids = np.arange(len(scores))
    if 0 < sampler.top_k < len(scores):
        kth = np.partition(scores, -sampler.top_k)[-sampler.top_k]
        ids = np.flatnonzero(scores >= kth)
        scores = scores[ids]
    # The largest is subtracted first: divided by a tiny temperature it would be infinite. The others may be.
    with np.errstate(over="ignore"):
        scaled = (scores - scores.max()) / sampler.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    threshold = sampler.min_p * probabilities.max()
    if sampler.min_p > 0 and sampler.top_p == 1:
        likely = np.flatnonzero(probabilities >= threshold)
        ids, probabilities = ids[likely], probabilities[likely]
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    # A token stays if those before it do not reach top_p yet: the most likely one always does. With top_p 1
    # all stay, which rounding in the sum must not change.
    before = np.cumsum(ranked) - ranked
    kept = int(np.count_nonzero(before < sampler.top_p)) if sampler.top_p < 1 else len(ranked)
    kept = int(np.count_nonzero(ranked[:kept] >= threshold))  # sums rescale both sides alike
    return ids[order[:kept]], ranked[:kept] / ranked[:kept].sum()


def _check_logits(logits: Float[np.ndarray, " vocabulary"]) -> None:
    """NaN would be chosen by argmax, and an infinite maximum makes every probability NaN."""
    largest = logits.max()
    if not np.isfinite(largest):
        raise InvalidInputError(
            "logits",
            got=f"a maximum of {largest}",
            expected="a finite number",
            fix="float16 overflows above 65504: convert with --dtype bfloat16 or float32",
        )


def _penalised(
    logits: Float[np.ndarray, " vocabulary"], penalty: float, seen: Sequence[int]
) -> Float[np.ndarray, " vocabulary"]:
    """The logits themselves without a penalty, else a float64 copy in which each seen id is penalised once.

    Ids past the last logit are left out, as transformers does: the model cannot produce them.
    """
    if penalty == 1 or not len(seen):
        return logits
    ids = np.unique(np.asarray(seen, np.int64))
    if ids[0] < 0:
        raise InvalidInputError("token ids", got=str(ids[0]), expected="0 or more", fix="encode text first")
    ids = ids[ids < len(logits)]
    scores = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        penalised = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
    limit = np.finfo(np.float64).max  # an absurd penalty must not make a logit infinite
    scores[ids] = penalised.clip(-limit, limit)
    return scores
