"""Layers' sparsities: against the official scaling of OWL, the budget kept, and what is refused."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError
from endor_jax.prune.allocate import OUTLIER, SPREAD, outlier_ratio, owl, uniform
from tests.prune import transcriptions

layers = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=12)


def test_the_ratio_equals_loops_over_the_paper() -> None:
    random = np.random.default_rng(0)
    scores = [np.exp(2 * random.standard_normal(shape)).astype(np.float32) for shape in ((9, 30), (20, 7))]
    ratio = float(outlier_ratio([jnp.asarray(matrix) for matrix in scores]))
    assert 0 < ratio < 1
    assert ratio == pytest.approx(transcriptions.outlier_ratio(scores, OUTLIER), rel=1e-6)


def test_equal_scores_have_no_outliers() -> None:
    assert float(outlier_ratio([jnp.full((4, 4), 3.0)])) == 0


def test_layers_of_one_size_are_scaled_as_the_official_code_does() -> None:
    ratios = list(np.random.default_rng(0).random(12))
    for sparsity in (0.3, 0.5, 0.7):
        expected = transcriptions.owl(ratios, sparsity, SPREAD)
        assert owl(ratios, [5] * 12, sparsity=sparsity) == pytest.approx(expected)
        assert max(expected) - min(expected) == pytest.approx(2 * SPREAD)


@given(layers, st.sampled_from((0.0, 0.01, 0.5, 0.95)) | st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_the_budget_is_kept_and_more_outliers_are_never_sparser(
    sizes: list[tuple[float, int]], sparsity: float, spread: float
) -> None:
    ratios, elements = [ratio for ratio, _ in sizes], [count for _, count in sizes]
    shares = owl(ratios, elements, sparsity=sparsity, spread=spread)
    assert np.average(shares, weights=elements) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= share < 1 for share in shares)
    ordered = [share for _, share in sorted(zip(ratios, shares, strict=True))]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(ordered))


def test_larger_layers_weigh_more() -> None:
    small, large = owl([0.0, 0.1], [1, 3], sparsity=0.5)
    assert (small, large) == pytest.approx((0.5 + 0.12, 0.5 - 0.04))


def test_layers_alike_and_uniform() -> None:
    assert owl([0.2, 0.2, 0.2], [1, 2, 3], sparsity=0.4) == uniform(3, sparsity=0.4) == (0.4, 0.4, 0.4)


@pytest.mark.parametrize(
    ("ratios", "elements", "sparsity", "spread", "message"),
    [
        ([0.1], [1], 1.0, 0.1, "got sparsity 1.0, expected 0 or more and below 1"),
        ([0.1], [1], 0.5, -0.1, "got spread -0.1, expected 0 or more"),
        ([0.1], [1, 2], 0.5, 0.1, "got 1 ratios and elements .1, 2., expected one number of elements"),
        ([], [], 0.5, 0.1, "got 0 ratios and elements .*, expected one number of elements"),
        ([0.1], [0], 0.5, 0.1, "got 1 ratios and elements .0., expected one number of elements"),
        ([math.nan], [1], 0.5, 0.1, "got ratios .nan., expected finite numbers"),
    ],
)
def test_what_it_refuses(
    ratios: list[float], elements: list[int], sparsity: float, spread: float, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"allocation: {message}"):
        owl(ratios, elements, sparsity=sparsity, spread=spread)
