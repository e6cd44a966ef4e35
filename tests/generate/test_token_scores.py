"""Scores of given tokens: their losses, and whether greedy decoding would have taken them."""

from __future__ import annotations

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import InvalidInputError
from tests.tiny_models import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base = tmp_path_factory.mktemp("token_scores")
    endor.convert(write_tiny(base / "source"), base / "dst")
    with endor.load(base / "dst", context=300, batch=2) as loaded:
        yield loaded


def test_the_likeliest_tokens_are_those_of_the_largest_logits(model):
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 320, length).tolist() for length in (2, 140, 130, 290)]
    for ids in sequences:  # every third token is the one that greedy decoding takes
        for place in range(1, len(ids), 3):
            ids[place] = int(model.logits([ids[:place]])[0, -1].argmax()) if place < 40 else ids[place]
    found = model.token_scores(sequences)
    for ids, scores in zip(sequences, found, strict=True):
        expected = model.logits([ids])[0, :-1].argmax(axis=1) == ids[1:]
        np.testing.assert_array_equal(scores.likeliest, expected)
        assert expected.any()
    for scores, losses in zip(found, model.losses(sequences), strict=True):
        np.testing.assert_array_equal(scores.losses, losses)


@pytest.mark.parametrize(("ids", "message"), [([3], "a sequence of one token"), ([3] * 301, "at most 300")])
def test_sequences_that_have_no_scores(model, ids, message):
    with pytest.raises(InvalidInputError, match=message):
        model.token_scores([ids])


def test_short_sequences_go_in_short_chunks_whatever_shares_their_pass(model, monkeypatch):
    from endor_jax.generate import scoring

    sizes, inner = [], scoring.chunks_of
    monkeypatch.setattr(
        scoring, "chunks_of", lambda *a, **named: sizes.append(named["chunk"]) or inner(*a, **named)
    )
    sequences = [(np.arange(length) % 320).tolist() for length in (20, 60, 128)]
    together = model.token_scores(sequences)
    assert sizes == [32, 64, 128]
    for ids, scores in zip(sequences, together, strict=True):
        (alone,) = model.token_scores([ids])
        np.testing.assert_array_equal(alone.losses, scores.losses)
