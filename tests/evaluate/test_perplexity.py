"""Perplexity is exp of the mean negative log-likelihood, whatever is held in memory at once."""

from __future__ import annotations

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import InvalidInputError
from endor_jax.evaluate.finite import finite
from endor_jax.evaluate.perplexity import (
    losses_of_blocks,
    of_losses,
    ordered_blocks,
    perplexity,
    perplexity_of_blocks,
)
from tests.tiny_models import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base = tmp_path_factory.mktemp("perplexity")
    endor.convert(write_tiny(base / "source"), base / "dst")
    with endor.load(base / "dst", context=130) as loaded:
        yield loaded


def by_the_formula(model, ids: list[int], length: int) -> tuple[float, float, int]:
    losses = []
    for first in range(0, len(ids) - length + 1, length):
        block = ids[first : first + length]
        logits = model.logits([block])[0].astype(np.float64)
        likelihood = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses += [-np.log(likelihood[i, block[i + 1]]) for i in range(length - 1)]
    value = np.exp(np.mean(losses))
    error = value * np.std(losses, ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return float(value), float(error), len(losses)


@pytest.mark.parametrize(("count", "length"), [(100, 10), (109, 10), (130, 130), (2, 2), (20, 19)])
def test_it_is_the_formula(model, count, length):
    ids = np.random.default_rng(count).integers(0, 320, count).tolist()
    result = perplexity(model, ids, sequence_length=length)
    value, error, tokens = by_the_formula(model, ids, length)
    assert result.value == pytest.approx(value, rel=1e-5)
    assert result.standard_error == pytest.approx(error, rel=1e-5)
    assert result.tokens == tokens == count // length * (length - 1)


def test_what_is_held_at_once_changes_nothing(model, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 320, 100).tolist()
    whole = perplexity(model, ids, sequence_length=10)
    assert model.sequences_per_pass(10) == 2  # of the 256 positions of the context, in chunks of 128
    monkeypatch.setattr(type(model), "sequences_per_pass", lambda self, length: 10)
    assert perplexity(model, ids, sequence_length=10) == whole


@pytest.mark.parametrize(
    ("count", "length", "message"),
    [
        (9, 10, "got 9 tokens, expected at least one block of 10"),
        (0, 10, "got 0 tokens"),
        (10, 1, "sequence_length 1, expected at least 2"),
        (10, 0, "sequence_length 0"),
        (200, 131, "at most 130"),
    ],
)
def test_what_cannot_be_scored(model, count, length, message):
    with pytest.raises(InvalidInputError, match=message):
        perplexity(model, [1] * count, sequence_length=length)


def test_blocks_score_as_their_tokens_do(model):
    ids = np.random.default_rng(1).integers(0, 320, 95)
    blocks = ordered_blocks(ids.tolist(), 10)
    assert blocks.shape == (9, 10)
    assert perplexity_of_blocks(model, blocks) == perplexity(model, ids.tolist(), sequence_length=10)
    backwards = perplexity_of_blocks(model, blocks[::-1])
    assert backwards.value == pytest.approx(perplexity_of_blocks(model, blocks).value, rel=1e-6)


@pytest.mark.parametrize(("shape", "message"), [((0, 10), "got none"), ((3, 1), "sequence_length 1")])
def test_blocks_without_a_target(model, shape, message):
    with pytest.raises(InvalidInputError, match=message):
        perplexity_of_blocks(model, np.zeros(shape, np.int32))


def test_losses_of_blocks_are_those_of_the_model(model):
    blocks = np.random.default_rng(2).integers(0, 320, (3, 10)).astype(np.int32)
    found = losses_of_blocks(model, blocks)
    assert (found.dtype, found.shape) == (np.float32, (3, 9))
    np.testing.assert_allclose(found, np.stack(model.losses(blocks)), rtol=1e-6)
    assert perplexity_of_blocks(model, blocks) == of_losses(found.ravel())


@pytest.mark.parametrize("losses", [[1000.0, 1000.0], [np.inf, 1.0], [np.nan, 1.0], [np.inf, np.nan]])
def test_a_broken_model_has_a_perplexity_that_is_not_finite_and_null_in_json(losses):
    result = of_losses(np.array(losses, np.float32))  # without a warning, which would be an error here
    assert not np.isfinite(result.value)
    values = {"inside": [{"value": result.value, "tokens": result.tokens}], "data": "inf", "none": None}
    assert finite(values) == {"inside": [{"value": None, "tokens": 2}], "data": "inf", "none": None}


def test_progress_counts_blocks(model):
    seen = []
    perplexity_of_blocks(model, np.zeros((5, 10), np.int32), progress=lambda *each: seen.append(each))
    assert seen == [(0, 5), (2, 5), (4, 5)]
