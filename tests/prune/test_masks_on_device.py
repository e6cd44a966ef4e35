"""Masks by bisection on the device against magnitude's NumPy masks, which are tested against a sort."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax.prune.magnitude import magnitude_mask
from endor_jax.prune.masks import keep_highest
from endor_jax.prune.structure import MATRIX, ROW, Structure, drop_count, parse_structure

STRUCTURES = [ROW, MATRIX, *(parse_structure(name) for name in ("1:2", "2:4", "3:7", "4:8", "31:32"))]
SHAPES = [(5, 4), (3, 70)]

sparsities = st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.7, 0.999)) | st.floats(0, 1, exclude_max=True)


@st.composite
def all_scores(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray:
    """Any non-negative float32 by bit pattern, or few distinct ones, which make many ties."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        return random.choice(np.array([0, 1e-45, 0.5, 1, np.inf], np.float32), shape)
    return random.integers(0, 0x7F80_0001, shape, dtype=np.uint32).view(np.float32)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=20)
@given(data=st.data(), sparsity=sparsities)
def test_equal_to_the_mask_of_the_same_magnitudes(
    structure: Structure, shape: tuple[int, int], data: st.DataObject, sparsity: float
) -> None:
    scores = data.draw(all_scores(shape))
    share = None if structure.scope == "group" else sparsity
    mask = keep_highest(jnp.asarray(scores), drop_count(structure, share, shape), structure=structure)
    np.testing.assert_array_equal(np.asarray(mask), magnitude_mask(scores, share, structure=structure))


def test_ties_across_rows_of_a_matrix_go_from_the_end() -> None:
    mask = keep_highest(jnp.ones((3, 4), jnp.float32), 6, structure=MATRIX)
    assert np.asarray(mask).tolist() == [[True] * 4, [True, True, False, False], [False] * 4]


def test_negative_zero_counts_as_zero_and_nan_as_the_highest() -> None:
    scores = jnp.array([[-0.0, 1.0, jnp.nan, 0.5]], jnp.float32)
    assert np.asarray(keep_highest(scores, 1, structure=ROW)).tolist() == [[False, True, True, True]]
    assert np.asarray(keep_highest(scores, 3, structure=ROW)).tolist() == [[False, False, True, False]]


def test_one_compilation_whatever_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    scores = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)
    keep_highest(scores, 1, structure=MATRIX)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for drop in range(25):
            mask = keep_highest(scores, drop, structure=MATRIX)
            assert np.asarray(mask).ravel().tolist() == [place >= drop for place in range(24)]
    assert not [record for record in caplog.messages if "Compiling" in record]
