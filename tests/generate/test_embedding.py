"""Rows of the compressed embedding are those of the decoded matrix."""

from __future__ import annotations

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import InvalidInputError
from endor_jax.generate.embedding import Embedding, rows


@pytest.fixture
def embedding(checkpoint):
    with endor.open(checkpoint) as opened:
        record = opened.manifest.record("embedding")
        assert len(record.parts) > 1 or "untied" not in str(checkpoint)
        held = opened.read_record(record)
        matrix = opened.read_tensor("embedding", "weight")
    return Embedding(tuple(np.asarray(w) for w in held.words), held.layout["weight"]), matrix


def test_rows_are_those_of_the_matrix(embedding):
    compressed, matrix = embedding
    vocabulary = compressed.vocabulary
    random = np.random.default_rng(0)
    for ids in (
        [0],
        [vocabulary - 1],
        list(range(vocabulary)),
        random.integers(0, vocabulary, 50).tolist(),
        [7, 7, 0],
    ):
        got = rows(compressed, ids)
        assert got.dtype == matrix.dtype
        np.testing.assert_array_equal(got.view(np.uint16), matrix[ids].view(np.uint16))


@pytest.mark.parametrize("offset", [-1, 0])
def test_ids_outside_the_vocabulary_are_refused(embedding, offset):
    compressed, _ = embedding
    bad = -1 if offset else compressed.vocabulary
    with pytest.raises(InvalidInputError, match=rf"id {bad}, expected 0 to {compressed.vocabulary - 1}"):
        rows(compressed, [0, bad])
