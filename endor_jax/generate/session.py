"""A session: one conversation, whose keys and values stay in the cache from turn to turn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from endor_jax.errors import InvalidInputError, StreamError
from endor_jax.generate.continuation import Continuation, Token, Wishes, agree_on, wishes_for
from endor_jax.generate.pipeline import Pass, Pipeline, meter_of, run_pass
from endor_jax.generate.sampling import Sampler
from endor_jax.generate.statistics import Statistics
from endor_jax.text import Tokenizer, render


class Session:
    """One sequence's cache, and the messages of a chat; made by `Model.session`.

    Whatever a prompt has in common with what the cache holds is not computed again: give the whole
    conversation every time. messages: {"role", "content"} of the turns so far; may be changed between turns.
    statistics: of the latest generation.
    """

    def __init__(self, pipeline: Pipeline, tokenizer: Tokenizer | None):
        self._pipeline, self._tokenizer = pipeline, tokenizer
        self._caches = pipeline.new_caches()
        self._held: list[int] = []
        self._turn = 0
        self.messages: list[dict[str, str]] = []
        self.statistics: Statistics | None = None

    @property
    def room(self) -> int:
        """Tokens that a conversation can have in all."""
        return self._pipeline.shape.context

    def reply(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        sampler: Sampler | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Token]:
        """Yields the tokens of the answer to a user's message, in the model's chat template.

        max_tokens: by default what the context has room for. The message and the answer, as far as it was
        taken, become part of `messages`. Raises InvalidInputError for a model without a chat template, and
        when the conversation fills the context.
        """
        asked = {"role": "user", "content": text}
        ids = chat_ids(self._tokenizer, [*self.messages, asked])
        most = max(self.room - len(ids), 1) if max_tokens is None else max_tokens
        return self._remembered(asked, self.generate(ids, wishes_for(most, sampler, stop)))

    def _remembered(self, asked: dict[str, str], tokens: Iterator[Token]) -> Iterator[Token]:
        answer = {"role": "assistant", "content": ""}
        self.messages += [asked, answer]
        for token in tokens:
            answer["content"] += token.text
            yield token

    def generate(self, ids: Sequence[int], wishes: Wishes) -> Iterator[Token]:
        """Yields the tokens that follow `ids`, of which what the cache holds is not computed again.

        Raises InvalidInputError if they exceed the context, StreamError when a generation is resumed after
        another one was begun in this session.
        """
        check_room(self._pipeline, len(ids), wishes.max_tokens)
        agree_on(self._pipeline.runner, [ids], wishes)
        self._turn += 1
        return self._generate(list(ids), wishes, self._turn)

    def _generate(self, ids: list[int], wishes: Wishes, turn: int) -> Iterator[Token]:
        # The last token always passes: its logits are what is wanted.
        cached = min(_common(self._held, ids), len(ids) - 1)
        sequence = Continuation(self._tokenizer, ids, wishes=wishes, held=cached)
        meter = meter_of(self._pipeline)
        while sequence.finish_reason is None:
            if turn != self._turn:
                raise StreamError(
                    "session",
                    got="a generation resumed after the next one was begun",
                    expected="one at a time",
                    fix="finish it first, or open another session",
                )
            clock = time.perf_counter()
            del self._held[sequence.held :]  # a pass that fails half-way leaves nothing usable behind it
            feed = sequence.feed(row=0)
            logits = run_pass(self._pipeline, Pass(self._caches, [feed]))
            self._held += feed.ids
            try:
                token = sequence.accept(logits[0])
            except BaseException:
                self._held.clear()  # logits that cannot be: nor may what led to them be gone on from
                raise
            seconds = time.perf_counter() - clock
            if sequence.held == len(ids):
                meter.prompt_pass(len(ids), 1, seconds, cached=cached)
            else:
                meter.token_pass(1, seconds)
            self.statistics = meter.statistics
            yield token


def chat_ids(tokenizer: Tokenizer | None, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a conversation, up to where the next answer begins.

    Raises InvalidInputError without a tokenizer or a chat template, or for messages that it refuses.
    """
    if tokenizer is None:
        raise InvalidInputError(
            "chat",
            got="a checkpoint without a tokenizer",
            expected="tokenizer.json and a chat template",
            fix="put the tokenizer's files beside the source and convert again",
        )
    return tokenizer.encode(render(tokenizer, messages), add_special=False)


def check_room(pipeline: Pipeline, prompt_tokens: int, max_tokens: int) -> None:
    """Raises InvalidInputError unless a prompt and what is to follow it fit into the context."""
    room = pipeline.shape.context
    if prompt_tokens + max_tokens > room:
        raise InvalidInputError(
            "generation",
            got=f"{prompt_tokens} prompt tokens and max_tokens {max_tokens}",
            expected=f"at most {room} in all",
            fix="shorten the prompt, lower max_tokens, or load with a larger context",
        )
    if prompt_tokens == 0:
        raise InvalidInputError("token ids", got="none", expected="at least one", fix="pass a prompt")


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences have in common from their start."""
    count = 0
    for mine, other in zip(first, second, strict=False):
        if mine != other:
            break
        count += 1
    return count
