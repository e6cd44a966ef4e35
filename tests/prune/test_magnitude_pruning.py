"""Magnitude pruning against a sort of every row, ties, zeros and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from endor_jax.arrays import bits_of
from endor_jax.errors import InvalidInputError
from endor_jax.prune.magnitude import apply_mask, magnitude_mask
from endor_jax.prune.structure import MATRIX, ROW, Structure, dropped, parse_structure
from tests import strategies
from tests.prune.transcriptions import mask_of_scores

sparsities = st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.7, 0.999)) | st.floats(0, 1, exclude_max=True)


def by_sorting(weight: np.ndarray, sparsity: float) -> np.ndarray:
    """Row by row: drop the smallest, of equals the one further right first."""
    return mask_of_scores(np.abs(weight.astype(np.float64)), sparsity, ROW)


@given(strategies.arrays(max_elements=600), sparsities)
def test_equals_a_sort_of_every_row(array: np.ndarray, sparsity: float) -> None:
    weight = array.reshape(-1, array.shape[-1])
    assume(not np.isnan(weight.astype(np.float32)).any())
    mask = magnitude_mask(weight, sparsity)
    np.testing.assert_array_equal(mask, by_sorting(weight, sparsity))


@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32 - 1), sparsities)
def test_few_distinct_values_make_many_ties(rows: int, columns: int, seed: int, sparsity: float) -> None:
    random = np.random.default_rng(seed)
    weight = random.choice(np.array([-1.0, -0.0, 0.0, 0.5, 1.0], np.float32), (rows, columns))
    mask = magnitude_mask(weight, sparsity)
    np.testing.assert_array_equal(mask, by_sorting(weight, sparsity))
    assert (np.count_nonzero(~mask, axis=1) == dropped(sparsity, columns)).all()


@pytest.mark.parametrize("structure", [MATRIX, *map(parse_structure, ("1:2", "2:4", "5:8", "2:3"))], ids=str)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32 - 1), sparsities)
def test_other_structures_equal_a_sort_too(
    structure: Structure, rows: int, columns: int, seed: int, sparsity: float
) -> None:
    random = np.random.default_rng(seed)
    weight = random.integers(-4, 5, (rows, columns)).astype(np.float32)
    share = None if structure.scope == "group" else sparsity
    mask = magnitude_mask(weight, share, structure=structure)
    np.testing.assert_array_equal(mask, mask_of_scores(np.abs(weight), share, structure))


@pytest.mark.parametrize("structure", [ROW, parse_structure("2:4")], ids=str)
def test_blocks_of_rows_give_the_mask_of_the_whole(structure: Structure) -> None:
    weight = np.random.default_rng(0).standard_normal((11, 30), np.float32)
    share = None if structure.scope == "group" else 0.4
    blocks = [magnitude_mask(weight[r : r + 3], share, structure=structure) for r in range(0, 11, 3)]
    np.testing.assert_array_equal(np.concatenate(blocks), magnitude_mask(weight, share, structure=structure))


def test_of_equals_the_right_one_is_dropped() -> None:
    weight = np.array([[1, -1, 1, -1], [2, 1, 1, 3]], np.float32)
    expected = [[True, True, False, False], [True, False, False, True]]
    assert magnitude_mask(weight, 0.5).tolist() == expected
    assert magnitude_mask(weight, 0.25).tolist() == [[True, True, True, False], [True, True, False, True]]


def test_natural_zeros_go_first_and_count() -> None:
    weight = np.array([[0, 1e-30, 0, 5, 0, 0.1]], np.float32)
    assert magnitude_mask(weight, 0.5).tolist() == [[False, True, False, True, False, True]]
    assert magnitude_mask(weight, 1 / 3).tolist() == [[True, True, False, True, False, True]]


def test_nothing_is_dropped_at_zero_and_almost_all_at_the_top() -> None:
    weight = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
    assert magnitude_mask(weight, 0.0).all()
    assert not magnitude_mask(weight, math.nextafter(1.0, 0.0)).any()


@given(strategies.arrays(max_elements=600), st.integers(0, 2**32 - 1))
def test_a_mask_leaves_no_negative_zero_and_no_other_bit_changed(array: np.ndarray, seed: int) -> None:
    mask = np.random.default_rng(seed).random(array.shape) < 0.5
    pruned = apply_mask(array, mask)
    assert pruned.dtype == array.dtype
    np.testing.assert_array_equal(bits_of(pruned), np.where(mask, bits_of(array), 0))


@pytest.mark.parametrize("sparsity", [-0.01, 1.0, 1.5, math.nan, math.inf])
def test_sparsities_that_cannot_be(sparsity: float) -> None:
    with pytest.raises(
        InvalidInputError, match=f"pruning: got sparsity {sparsity}, expected 0 or more and below"
    ):
        magnitude_mask(np.ones((2, 2), np.float32), sparsity)


def test_nan_has_no_magnitude() -> None:
    with pytest.raises(InvalidInputError, match="pruning: got NaN among the weights"):
        magnitude_mask(np.array([[1, np.nan]], np.float32).astype("bfloat16"), 0.5)


def test_infinities_are_the_largest() -> None:
    weight = np.array([[1, -np.inf, 3, np.inf]], np.float16)
    assert magnitude_mask(weight, 0.5).tolist() == [[False, True, False, True]]
