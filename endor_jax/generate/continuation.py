"""One sequence while it is generated: what it holds, how its next token is chosen, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Literal

import numpy as np
from jaxtyping import Float

from endor_jax.errors import InvalidInputError, OptionError
from endor_jax.generate.runner import Feed, Runner, digest_ids
from endor_jax.generate.sampling import Sampler, sample
from endor_jax.text import StopStrings, StreamingDecoder, Tokenizer

FinishReason = Literal["end", "stop", "length"]
"""An end-of-text token, a stop string, or max_tokens."""


@dataclass(frozen=True)
class Wishes:
    """What is asked of a generation: most new tokens, the sampler, strings before which the text ends."""

    max_tokens: int
    sampler: Sampler
    stop: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, Integral) or self.max_tokens < 1:
            raise OptionError(
                "generation",
                got=f"max_tokens {self.max_tokens}",
                expected="a whole number, at least 1",
                fix="ask for more",
            )


def wishes_for(max_tokens: int, sampler: Sampler | None, stop: Sequence[str]) -> Wishes:
    """What a caller asked for, greedy without a sampler. Raises OptionError for what cannot be."""
    StopStrings(stop)  # which says what is wrong with them
    return Wishes(max_tokens, sampler or Sampler(), tuple(stop))


def agree_on(runner: Runner, prompts: Sequence[Sequence[int]], wishes: Wishes) -> None:
    """Raises PeerError unless every process of the run goes on from the same ids with the same wishes."""
    own = {"max tokens": wishes.max_tokens, "stop strings": wishes.stop} | asdict(wishes.sampler)
    runner.devices.agree(prompts=digest_ids(prompts), **own)


@dataclass(frozen=True)
class Token:
    """A generated token. `text` is what became certain with it; empty while a character is incomplete.

    finish_reason: of the last token, why it is the last.
    """

    id: int
    text: str
    finish_reason: FinishReason | None = None


class Continuation:
    """A prompt and what has been generated from it.

    ids: both. held: how many of them the cache has. finish_reason: None until it ends.
    Raises InvalidInputError for stop strings without a tokenizer.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, prompt_ids: Sequence[int], *, wishes: Wishes, held: int = 0
    ):
        if wishes.stop and tokenizer is None:
            raise InvalidInputError(
                "stop strings",
                got="a checkpoint without a tokenizer",
                expected="none",
                fix="look at the token ids yourself, or convert again with tokenizer.json beside the source",
            )
        self.ids = list(prompt_ids)
        self.held = held
        self.finish_reason: FinishReason | None = None
        self._prompt_tokens = len(self.ids)
        self._wishes = wishes
        self._random = np.random.default_rng(wishes.sampler.seed)
        self._ends = tokenizer.eos_ids if tokenizer else frozenset[int]()
        self._decoder = StreamingDecoder(tokenizer, prompt_ids=self.ids) if tokenizer else None
        self._stops = StopStrings(wishes.stop)

    @property
    def generated(self) -> list[int]:
        """The ids behind the prompt."""
        return self.ids[self._prompt_tokens :]

    def feed(self, row: int) -> Feed:
        """What has to pass through the model for the next token."""
        return Feed(row, self.ids[self.held :], self.held)

    def accept(self, logits: Float[np.ndarray, " vocabulary"]) -> Token:
        """Chooses the next token from the logits that `feed` gave."""
        self.held = len(self.ids)
        token = sample(logits, self._wishes.sampler, self._random, seen=self.ids)
        self.ids.append(token)
        if token in self._ends:
            self.finish_reason = "end"
        elif len(self.ids) == self._prompt_tokens + self._wishes.max_tokens:
            self.finish_reason = "length"
        text = self._text(token)
        if self._stops.stopped:  # the text ends before the stop string, whatever else would end it
            self.finish_reason = "stop"
        return Token(token, text, self.finish_reason)

    def _text(self, token: int) -> str:
        if self._decoder is None:
            return ""
        text = self._stops.feed(self._decoder.feed(token))
        if self.finish_reason is not None:
            text += self._stops.feed(self._decoder.finish()) + self._stops.finish()
        return text
