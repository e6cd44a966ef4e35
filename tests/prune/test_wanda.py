"""Wanda against loops over its paper's equation, and the sums that calibration makes for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax.errors import InvalidInputError
from endor_jax.prune.magnitude import apply_mask, magnitude_mask
from endor_jax.prune.statistics import add_gram, add_squared_norms, no_gram, no_squared_norms
from endor_jax.prune.structure import MATRIX, ROW, Structure, drop_count, parse_structure
from endor_jax.prune.wanda import wanda, wanda_scores
from tests.prune import transcriptions

STRUCTURES = [ROW, MATRIX, parse_structure("2:4"), parse_structure("3:5")]


def problem(seed: int, *, rows: int = 6, columns: int = 22) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and inputs whose norms differ by orders of magnitude."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((50, columns)) * 10 ** random.uniform(-2, 2, columns)
    return random.standard_normal((rows, columns)).astype(np.float32), inputs.astype(np.float32)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.name)
@pytest.mark.parametrize("seed", range(3))
def test_equals_loops_over_the_paper(structure: Structure, seed: int) -> None:
    weight, inputs = problem(seed)
    for sparsity in [None] if structure.scope == "group" else [0.0, 0.3, 0.5, 0.77]:
        norms = add_squared_norms(no_squared_norms(22), jnp.asarray(inputs))
        mask = wanda(weight, norms.sums, sparsity=sparsity, structure=structure)
        expected = transcriptions.wanda(weight, inputs, sparsity, structure)
        np.testing.assert_array_equal(np.asarray(mask), expected)
        missing = np.count_nonzero(~expected) // (1 if structure.scope == "matrix" else len(weight))
        assert missing == drop_count(structure, sparsity, weight.shape)


def test_inputs_of_equal_norm_make_it_magnitude_and_scale_does_not_matter() -> None:
    weight, inputs = problem(3)
    same = np.full(22, 7.0, np.float32)
    np.testing.assert_array_equal(np.asarray(wanda(weight, same, sparsity=0.6)), magnitude_mask(weight, 0.6))
    norms = np.square(inputs).sum(axis=0)
    np.testing.assert_array_equal(
        np.asarray(wanda(weight, norms, sparsity=0.6)),
        np.asarray(wanda(weight * 4, norms / 1024, sparsity=0.6)),
    )


def test_natural_zeros_go_first_and_leave_no_negative_zero() -> None:
    weight = np.array([[-0.0, 3, 0, -2, 5, -0.0, 1, 0.5]], np.float32)
    mask = np.asarray(wanda(weight, np.ones(8, np.float32), sparsity=0.5))
    assert mask.tolist() == [[False, True, False, True, True, False, True, False]]
    assert not np.signbit(apply_mask(weight, mask)[~mask]).any()


def test_scores_of_bfloat16_weights_are_float32() -> None:
    scores = wanda_scores(jnp.array([[-3.0, 2.0]], jnp.bfloat16), jnp.array([4.0, 9.0]))
    assert scores.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(scores), [[6, 6]])


def test_sums_of_batches_are_those_of_all_inputs() -> None:
    inputs = np.random.default_rng(0).standard_normal((2, 3, 5, 8)).astype(np.float32)
    gram, norms = no_gram(8), no_squared_norms(8)
    for batch in jnp.asarray(inputs):
        gram, norms = jax.jit(add_gram)(gram, batch), jax.jit(add_squared_norms)(norms, batch)
    flat = inputs.reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(np.asarray(gram.products), flat.T @ flat, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(norms.sums), np.square(flat).sum(axis=0), rtol=1e-6)
    assert int(gram.rows) == int(norms.rows) == 30


def test_inputs_of_half_the_bits_are_summed_in_float32() -> None:
    ones = jnp.ones((3000, 2), jnp.bfloat16)
    assert np.asarray(add_gram(no_gram(2), ones).products).tolist() == [[3000, 3000]] * 2
    assert np.asarray(add_squared_norms(no_squared_norms(2), ones).sums).tolist() == [3000, 3000]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_and_sums_that_are_not_finite(bad: float) -> None:
    weight, sums = np.ones((2, 4), np.float32), np.ones(4, np.float32)
    broken = weight.copy()
    broken[1, 2] = bad
    with pytest.raises(InvalidInputError, match="pruning: got NaN or infinity among the weights"):
        wanda(broken, sums, sparsity=0.5)
    with pytest.raises(InvalidInputError, match="pruning: got NaN or infinity among the calibration sums"):
        wanda(weight, broken[1], sparsity=0.5)


def test_sums_of_no_input_or_of_another_matrix() -> None:
    weight = np.ones((2, 4), np.float32)
    with pytest.raises(InvalidInputError, match="got calibration sums that are all zero"):
        wanda(weight, no_squared_norms(4).sums, sparsity=0.5)
    with pytest.raises(InvalidInputError, match=r"got calibration sums of shape \(5,\), expected \(4,\)"):
        wanda(weight, np.ones(5, np.float32), sparsity=0.5)
