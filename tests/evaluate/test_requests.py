"""What a harness asks: likelihoods are those of the logits, every token is scored once, generations stop."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import endor_jax as endor
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.evaluate.requests import (
    encode_pair,
    generations,
    loglikelihoods,
    prefix_id,
    text_loglikelihoods,
    windows,
)
from tests.tiny_models import END, LLAMA, write_tiny

CONTEXT = 40
HARNESS = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("requests")
    endor.convert(write_tiny(base / "source", tokenizer=True), base / "dst")
    return base / "dst"


@pytest.fixture(scope="module")
def model(checkpoint):
    with endor.load(checkpoint, context=CONTEXT, batch=2) as loaded:
        yield loaded


def by_hand(model, ids: list[int], count: int) -> tuple[float, bool]:
    """Log-likelihood of the last `count` ids, in float64, and whether each has the largest logit."""
    logits = model.logits([ids])[0].astype(np.float64)
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    places = range(len(ids) - count, len(ids))
    return sum(logs[i - 1, ids[i]] for i in places), all(logs[i - 1].argmax() == ids[i] for i in places)


def greedy_byte(model, context: str) -> str | None:
    """The letter that greedy decoding continues with, if it is one."""
    best = int(model.logits([model.encode(context)])[0, -1].argmax())
    text = model.tokenizer.decode([best])
    return text if model.encode(text) == [best] and text.strip() else None


def test_likelihoods_of_continuations(model):
    letters = [chr(c) for c in range(33, 127)]
    context = next(c for c in letters if greedy_byte(model, c))
    pairs = [
        ("Hello", " world"),
        ("Hello ", "world"),
        ("x", "y"),
        ("", "abc"),
        (context, greedy_byte(model, context)),
    ]
    answers = loglikelihoods(model, pairs)
    assert answers.shortened == 0
    assert answers.values[0] == answers.values[1]  # a space belongs to what follows
    for (value, greedy), (context, continuation) in zip(answers.values, pairs, strict=True):
        before = model.encode(context.rstrip()) or [END]
        ids = before + model.encode(context[len(context.rstrip()) :] + continuation)
        expected, likeliest = by_hand(model, ids, len(ids) - len(before))
        assert value == pytest.approx(expected, rel=1e-5)
        assert greedy == likeliest
    assert answers.values[-1][1]
    assert not answers.values[0][1]


def test_a_long_context_loses_its_beginning_and_that_is_counted(model):
    whole = "abcdefgh" * 10
    pairs = [(whole, "xyz"), (whole[-(CONTEXT - 3) :], "xyz"), ("a", "b")]
    answers = loglikelihoods(model, pairs)
    assert answers.shortened == 1
    assert answers.values[0] == answers.values[1]


def test_progress_and_order_whatever_the_lengths(model):
    pairs = [("a" * length, "bc") for length in (3, 30, 7, 12, 38)]
    seen = []
    answers = loglikelihoods(model, pairs, progress=lambda *each: seen.append(each))
    assert answers.values == [loglikelihoods(model, [pair]).values[0] for pair in pairs]
    assert seen == [(0, 5), (2, 5), (4, 5)]


@pytest.mark.parametrize("length", [1, 39, 40, 41, 100])
def test_likelihoods_of_texts(model, length):
    text = "The quick brown fox. " * 5
    (value,) = text_loglikelihoods(model, [text[:length]]).values
    ids = [END, *model.encode(text[:length])]
    expected = 0.0
    for end in range(2, len(ids) + 1):  # every token, in the window that it belongs to
        first = (end - 2) // (CONTEXT - 1) * (CONTEXT - 1)
        last = min(first + CONTEXT, len(ids))
        start = max(0, last - CONTEXT)
        expected += by_hand(model, ids[start:end], 1)[0]
    assert value == pytest.approx(expected, rel=1e-5)


def test_several_texts_are_apart(model):
    texts = ["one text", "", "another one, longer than the context of the model is"]
    together = text_loglikelihoods(model, texts).values
    assert together == pytest.approx(
        [text_loglikelihoods(model, [text]).values[0] for text in texts], rel=1e-6
    )
    assert together[1] == 0


@given(length=st.integers(0, 50), context=st.integers(2, 12))
def test_windows_score_every_token_once_with_as_much_before_it_as_fits(length, context):
    ids = list(range(length))
    found = windows(ids, -1, context)
    assert [i for part, count in found for i in part[len(part) - count :]] == ids
    everything = [-1, *ids]
    for part, count in found:
        assert 0 < count < len(part) <= context
        place = everything.index(part[-1]) + 1
        assert part == everything[max(0, place - context) : place]


@pytest.mark.skipif(not HARNESS, reason="no lm_eval (pip install 'endor_jax[eval]')")
@given(length=st.integers(0, 50), context=st.integers(2, 12))
def test_windows_are_those_of_the_harness(length, context):
    from lm_eval.utils import get_rolling_token_windows

    ids = list(range(length))
    expected = [
        ([*before, scored[-1]], len(scored))
        for before, scored in get_rolling_token_windows(ids, -1, max_seq_len=context - 1, context_len=1)
    ]
    assert windows(ids, -1, context) == expected


@pytest.mark.skipif(not HARNESS, reason="no lm_eval (pip install 'endor_jax[eval]')")
@given(context=st.text("ab \n", max_size=5), continuation=st.text("ab \n", min_size=1, max_size=5))
def test_texts_become_tokens_as_in_the_harness(model, context, continuation):
    from lm_eval.api.model import TemplateLM

    class Harness(TemplateLM):
        eot_token_id = END

        def tok_encode(self, string, add_special_tokens=None, **_):
            return model.tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests, **_):
            return [request[1:] for request in requests]

        loglikelihood_rolling = generate_until = None

    class Request:
        args = (context, continuation)

    if context.strip() or not context:  # of nothing but space the harness makes no token at all
        (expected,) = Harness().loglikelihood([Request()], disable_tqdm=True)
        assert encode_pair(model.tokenizer, context, continuation) == expected


def test_generations_follow_their_prompts(model):
    asked = [
        ("Hello", {"until": ["\n"], "max_gen_toks": 6}),
        ("x" * 60, {"max_gen_toks": 6}),
        ("Hello", {"max_tokens": 9}),
    ]
    seen = []
    answers = generations(model, asked, progress=lambda *each: seen.append(each))
    prompts = [model.encode("Hello"), model.encode("x" * (CONTEXT - 6)), model.encode("Hello")]
    for text, prompt, stop, most in zip(answers.values, prompts, (["\n"], [], []), (6, 6, 9), strict=True):
        assert text == model.complete(prompt, max_tokens=most, stop=stop).text
    assert answers.shortened == 1
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_generations_stop_and_sample(model):
    whole = generations(model, [("Hello", {"max_gen_toks": 20})]).values[0]
    stop = whole[2:4]
    assert generations(model, [("Hello", {"max_gen_toks": 20, "until": stop})]).values == [
        whole.split(stop)[0]
    ]
    settings = {"max_gen_toks": 20, "temperature": 2.0}
    assert generations(model, [("Hello", settings)]).values == [whole]
    assert generations(model, [("Hello", settings | {"do_sample": True, "top_k": 50})]).values != [whole]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_beams": 4, "top_p": 1.0}, UnsupportedError, "generation_kwargs: got num_beams"),
        (
            {"max_gen_toks": CONTEXT},
            InvalidInputError,
            "got 40 tokens, expected fewer than the context of 40",
        ),
        ({}, InvalidInputError, "got 256 tokens"),
    ],
)
def test_generations_that_cannot_be(model, settings, error, message):
    with pytest.raises(error, match=message):
        generations(model, [("Hello", settings)])


@pytest.mark.parametrize("continuation", ["", "x" * CONTEXT])
def test_continuations_without_a_score(model, continuation):
    with pytest.raises(InvalidInputError, match=f"got {len(continuation)} tokens, expected 1 to 39"):
        loglikelihoods(model, [("Hello", continuation)])


def test_models_without_a_tokenizer_or_a_first_token(model, tmp_path):
    endor.convert(write_tiny(tmp_path / "source", LLAMA), tmp_path / "dst")
    with (
        endor.load(tmp_path / "dst", context=CONTEXT) as silent,
        pytest.raises(InvalidInputError, match=r"no tokenizer\.json"),
    ):
        loglikelihoods(silent, [("a", "b")])
    bare = dataclasses.replace(model.tokenizer, bos_id=None, eos_ids=frozenset())
    with pytest.raises(InvalidInputError, match="neither a start nor an end token"):
        prefix_id(bare)
    assert prefix_id(dataclasses.replace(bare, eos_ids=frozenset({9, 7}))) == 7
    assert prefix_id(dataclasses.replace(bare, bos_id=3, eos_ids=frozenset({1}))) == 3
