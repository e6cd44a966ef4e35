"""What a test harness asks of a model: likelihoods of continuations and of whole texts, and generations.

Texts become tokens as in lm-evaluation-harness (`TemplateLM`, version 0.4), so that figures can be set beside
those of other models. Where a request is longer than the model's context its beginning is left out; how often
that happened is part of every answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.generate.model import Model
from endor_jax.generate.sampling import Sampler
from endor_jax.generate.scoring import TokenScores
from endor_jax.text import Tokenizer

DEFAULT_MAX_TOKENS = 256
MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What a request may call the most tokens of its generation."""
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answers(Generic[T]):
    """values: one per request, in order. shortened: requests whose beginning did not fit the context."""

    values: list[T]
    shortened: int


def loglikelihoods(
    model: Model, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None
) -> Answers[tuple[float, bool]]:
    """Of each (context, continuation): log-likelihood of the continuation in nats, and whether it is greedy.

    Greedy: at every token of it no other was likelier. progress: called with (requests done, in all).
    Raises InvalidInputError for a model without a tokenizer, and for a continuation without a token of its
    own or with more than the context holds.
    """
    tokenizer = _tokenizer(model)
    encoded = [encode_pair(tokenizer, *pair) for pair in pairs]
    for (_, continuation), (_, text) in zip(encoded, pairs, strict=True):
        if not 0 < len(continuation) < model.context:
            raise InvalidInputError(
                f"continuation {text[:40]!r}",
                got=f"{len(continuation)} tokens",
                expected=f"1 to {model.context - 1}, with at least one before them",
                fix="mend the task, or load the model with a larger context",
            )
    whole = [[*context, *continuation] for context, continuation in encoded]
    found = _scores(model, [ids[-model.context :] for ids in whole], progress)
    counts = [len(continuation) for _, continuation in encoded]
    values = [_sum(scores, count) for scores, count in zip(found, counts, strict=True)]
    return Answers(values, sum(len(ids) > model.context for ids in whole))


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of both; spaces at the end of the context count to the continuation, as tokens have them.

    An empty context is the token that texts begin with.
    """
    if not context:
        prefix, ids = prefix_id(tokenizer), tokenizer.encode(continuation, add_special=False)
        return (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)
    bare = context.rstrip()
    if not bare:  # nothing but space
        bare = context
    whole, before = tokenizer.encode(context + continuation), tokenizer.encode(bare)
    return before, whole[len(before) :]


def text_loglikelihoods(
    model: Model, texts: Sequence[str], *, progress: Progress | None = None
) -> Answers[float]:
    """Log-likelihood of every token of each text, in nats, after the token that texts begin with.

    A text longer than the context goes in windows: each of its tokens is scored once, in the last window with
    as much before it as fits; so none is shortened. Raises as `loglikelihoods` does.
    """
    tokenizer = _tokenizer(model)
    prefix = prefix_id(tokenizer)
    pieces = [
        (number, ids, count)
        for number, text in enumerate(texts)
        for ids, count in windows(tokenizer.encode(text, add_special=False), prefix, model.context)
    ]
    found = _scores(model, [ids for _, ids, _ in pieces], progress)
    values = [0.0] * len(texts)
    for (number, _, count), scores in zip(pieces, found, strict=True):
        values[number] += _sum(scores, count)[0]
    return Answers(values, 0)


def windows(ids: Sequence[int], prefix: int, context: int) -> list[tuple[list[int], int]]:
    """(token ids of at most `context`, how many at their end are to be scored), for all tokens of a text."""
    step, everything = context - 1, [prefix, *ids]
    found = []
    for first in range(0, len(ids), step):
        end = min(first + step, len(ids)) + 1
        found.append((everything[max(0, end - context) : end], end - first - 1))
    return found


def generations(
    model: Model, requests: Sequence[tuple[str, Mapping[str, Any]]], *, progress: Progress | None = None
) -> Answers[str]:
    """The text that follows each (context, settings), up to a string of `until`; greedy unless `do_sample`.

    Settings as lm-evaluation-harness has them: until, do_sample, SAMPLING, and MAX_TOKENS (256). Requests
    with equal settings go through the model together. Raises UnsupportedError for another setting,
    InvalidInputError for a generation as long as the context, and what `Model.complete_batch` raises.
    """
    tokenizer = _tokenizer(model)
    values = [""] * len(requests)
    shortened = done = 0
    groups: dict[str, list[int]] = {}
    for number, (_, settings) in enumerate(requests):
        groups.setdefault(repr(sorted(settings.items())), []).append(number)
    for numbers in groups.values():
        sampler, stop, most = _wishes(requests[numbers[0]][1])
        if most >= model.context:
            raise InvalidInputError(
                "generation",
                got=f"{most} tokens",
                expected=f"fewer than the context of {model.context}",
                fix="load the model with a larger context, or set max_gen_toks in the task",
            )
        prompts = [tokenizer.encode(requests[number][0]) for number in numbers]
        fitting = [ids[-(model.context - most) :] for ids in prompts]
        shortened += sum(len(a) < len(b) for a, b in zip(fitting, prompts, strict=True))
        for index, answer in model.complete_batch(fitting, max_tokens=most, sampler=sampler, stop=stop):
            values[numbers[index]] = answer.text
            done += 1
            if progress is not None:
                progress(done, len(requests))
    return Answers(values, shortened)


def _wishes(settings: Mapping[str, Any]) -> tuple[Sampler, list[str], int]:
    """How to sample, where to stop, how many tokens at most."""
    known = {"until", "do_sample", *SAMPLING, *MAX_TOKENS}
    if unknown := sorted(set(settings) - known):
        raise UnsupportedError(
            "generation_kwargs",
            got=", ".join(unknown),
            expected=f"of {', '.join(sorted(known))}",
            fix="leave it out of the task",
        )
    until = settings.get("until") or []
    stop = [until] if isinstance(until, str) else list(until)
    most = next((settings[name] for name in MAX_TOKENS if name in settings), DEFAULT_MAX_TOKENS)
    chosen = {name: settings[name] for name in SAMPLING if name in settings}
    sampled = settings.get("do_sample", False)
    chosen["temperature"] = chosen.get("temperature", 1.0) if sampled else 0.0
    return Sampler(**chosen), [text for text in stop if text], int(most)


def _scores(model: Model, sequences: Sequence[Sequence[int]], progress: Progress | None) -> list[TokenScores]:
    """Scores of all sequences, in their order; the longest go first, as many at once as there is room for."""
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    found: dict[int, TokenScores] = {}
    while len(found) < len(order):
        if progress is not None:
            progress(len(found), len(order))
        first = len(found)
        group = order[first : first + model.sequences_per_pass(len(sequences[order[first]]))]
        found |= zip(group, model.token_scores([sequences[index] for index in group]), strict=True)
    return [found[index] for index in range(len(order))]


def _sum(scores: TokenScores, count: int) -> tuple[float, bool]:
    """Log-likelihood of the last `count` tokens, summed in float64, and whether all were the likeliest."""
    return -float(scores.losses[-count:].sum(dtype="float64")), bool(scores.likeliest[-count:].all())


def prefix_id(tokenizer: Tokenizer) -> int:
    """The token before a text that has nothing before it: the start token, or an end token where none is.

    Raises InvalidInputError for a tokenizer with neither.
    """
    candidates = sorted(tokenizer.eos_ids) if tokenizer.bos_id is None else [tokenizer.bos_id]
    if not candidates:
        raise InvalidInputError(
            "tokenizer",
            got="neither a start nor an end token",
            expected="one, to stand before the first token of a text",
            fix="name bos_token or eos_token in tokenizer_config.json and convert again",
        )
    return candidates[0]


def _tokenizer(model: Model) -> Tokenizer:
    """The model's. Raises InvalidInputError where it has none."""
    if model.tokenizer is None:
        model.encode("")  # says so
    assert model.tokenizer is not None
    return model.tokenizer
