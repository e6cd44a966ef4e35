"""Weights for inputs that have changed: least squares, nothing where nothing changed, and what is refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax.errors import InvalidInputError
from endor_jax.prune.factor import inverse_factor
from endor_jax.prune.retarget import retarget
from endor_jax.prune.statistics import add_cross, add_gram, no_cross, no_gram

DAMPING = 0.01


def problem(change: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, correlated inputs x of a dense model, x̃ of a pruned one."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((200, 20)) @ random.standard_normal((20, 20))
    moved = inputs + change * random.standard_normal(inputs.shape) + change * inputs[:, ::-1]
    weight = random.standard_normal((7, 20))
    return weight.astype(np.float32), inputs.astype(np.float32), moved.astype(np.float32)


def answer(weight: np.ndarray, inputs: np.ndarray, moved: np.ndarray) -> np.ndarray:
    gram = add_gram(no_gram(20), jnp.asarray(moved)).products
    cross = add_cross(no_cross(20), jnp.asarray(inputs), jnp.asarray(moved))
    assert int(cross.rows) == 200
    factor = inverse_factor(gram, damping=DAMPING)
    return np.asarray(
        retarget(weight, factor, gram_products=gram, cross_products=cross.products, strength=1.0)
    )


def test_it_is_the_least_squares_answer() -> None:
    weight, inputs, moved = problem(0.3)
    h = moved.astype(np.float64).T @ moved
    c = inputs.astype(np.float64).T @ moved
    added = DAMPING * np.diagonal(h).mean() * np.eye(20)
    expected = weight @ (c + added) @ np.linalg.inv(h + added)
    result = answer(weight, inputs, moved)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    before, after = (np.square(w @ moved.T - weight @ inputs.T).sum() for w in (weight, result))
    assert after < 0.5 * before


def test_inputs_that_did_not_change_leave_every_bit() -> None:
    weight, inputs, _ = problem(0.0)
    np.testing.assert_array_equal(answer(weight, inputs, inputs), weight)


def test_what_it_refuses() -> None:
    weight, inputs, _ = problem(0.0)
    gram = inputs.T @ inputs
    factor = inverse_factor(gram)
    with pytest.raises(InvalidInputError, match="got NaN or infinity among the calibration sums"):
        retarget(weight, factor, gram_products=gram, cross_products=gram * np.float32(np.inf))
    with pytest.raises(InvalidInputError, match="got calibration sums that are all zero"):
        retarget(weight, factor, gram_products=gram, cross_products=gram * 0)
