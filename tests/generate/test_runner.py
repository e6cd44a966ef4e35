"""Tokens through the layers: however a sequence is cut into passes and chunks, the logits are the same."""

from __future__ import annotations

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import InvalidInputError
from endor_jax.generate.runner import Feed, advance

# Other shapes may sum in another order.
TOLERANCE = 1e-4


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def caches(model, sequences=1):
    return model._pipeline.runner.new_caches(sequences)


def advanced(model, state, tokens, *, start):
    return advance(model._pipeline.runner, state, [Feed(0, tokens, start)])[0]


@pytest.fixture(scope="module", params=["llama", "untied", "opt"])
def model(request, tiny_checkpoints, tmp_path_factory):
    """In float32: of bfloat16 activations, a sum that rounds the other way is a tenth of a logit later on."""
    source = tiny_checkpoints[request.param].parent / "source"
    exact = tmp_path_factory.mktemp("float32") / request.param
    endor.convert(source, exact, dtype="float32", prune="magnitude", sparsity=0.5)
    with endor.load(exact, context=290) as loaded:
        yield loaded


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 257, 290])
def test_a_prompt_in_chunks_equals_scoring_it(model, length):
    sequence = ids(length)
    expected = model.logits([sequence])[0]
    assert expected.shape == (length, model.vocabulary_size)
    got = advanced(model, caches(model), sequence, start=0)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(got, expected[-1], atol=TOLERANCE)


def test_token_by_token_equals_all_at_once(model):
    sequence, state = ids(20), caches(model)
    expected = model.logits([sequence])[0]
    for i, token in enumerate(sequence):
        got = advanced(model, state, [token], start=i)
        np.testing.assert_allclose(got, expected[i], atol=TOLERANCE)


@pytest.mark.parametrize(("first", "second"), [(1, 128), (100, 100), (127, 2), (128, 128), (129, 100)])
def test_a_prompt_in_pieces_equals_the_whole(model, first, second):
    sequence, state = ids(first + second), caches(model)
    expected = model.logits([sequence])[0]
    advanced(model, state, sequence[:first], start=0)
    got = advanced(model, state, sequence[first:], start=first)
    np.testing.assert_allclose(got, expected[-1], atol=TOLERANCE)


def test_a_piece_that_has_no_room_for_padding(model):
    # The cache has 384 positions: a chunk of 128 from 257 on would be written from 256 on instead.
    sequence, state = ids(265), caches(model)
    expected = model.logits([sequence])[0]
    advanced(model, state, sequence[:257], start=0)
    got = advanced(model, state, sequence[257:], start=257)
    np.testing.assert_allclose(got, expected[-1], atol=TOLERANCE)


@pytest.mark.parametrize("length", [1, 127, 128, 129])
def test_decoding_after_prompts_of_every_fill(model, length):
    sequence, state = ids(length + 4), caches(model)
    expected = model.logits([sequence])[0]
    advanced(model, state, sequence[:length], start=0)
    for i in range(length, length + 4):
        got = advanced(model, state, sequence[i : i + 1], start=i)
        np.testing.assert_allclose(got, expected[i], atol=TOLERANCE)


def test_padding_never_leaks(model):
    """What a padded chunk leaves behind changes no bit of what later tokens see."""
    sequence = ids(150)
    one, other = caches(model), caches(model)
    advanced(model, one, sequence[:5], start=0)
    advanced(model, other, ids(128, seed=9), start=0)  # fills the cache with something else
    advanced(model, other, sequence[:5], start=0)
    for i in range(5, 12):
        got = [advanced(model, state, sequence[i : i + 1], start=i) for state in (one, other)]
        np.testing.assert_array_equal(*got)


def test_sequences_of_a_batch_do_not_see_each_other(model):
    batch = [ids(130, seed) for seed in range(3)]
    together = model.logits(batch)
    for row, sequence in zip(together, batch, strict=True):
        np.testing.assert_array_equal(row, model.logits([sequence])[0])


def test_the_context_is_full_or_refused(model):
    assert model.logits([ids(290)]).shape[1] == 290
    with pytest.raises(InvalidInputError, match="got 291 tokens, expected at most 290"):
        model.logits([ids(291)])
    state = caches(model)
    advanced(model, state, ids(289), start=0)
    advanced(model, state, [1], start=289)
    with pytest.raises(InvalidInputError, match="got 291 tokens"):
        advanced(model, state, [1], start=290)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "one length"),
        ([[]], "expected at least one"),
        ([[1, 2], [1]], r"sequences of lengths \[1, 2\]"),
        ([[1, 700]], "id 700, expected 0 to"),
        ([[-1]], "id -1"),
    ],
)
def test_wrong_ids_are_refused_and_harm_nothing(model, batch, message):
    with pytest.raises(InvalidInputError, match=message):
        model.logits(batch)
    assert model.logits([[1]]).shape[1] == 1
