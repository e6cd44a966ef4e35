"""Names of structures, how many elements they drop, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError, OptionError
from endor_jax.prune.structure import (
    LARGEST_GROUP,
    MATRIX,
    ROW,
    Structure,
    drop_count,
    dropped,
    dropped_of_group,
    parse_structure,
)

GROUPS = [
    Structure("group", kept, of)
    for of in range(2, LARGEST_GROUP + 1)
    for kept in sorted({1, of // 2, of - 1})
]


@pytest.mark.parametrize("structure", [ROW, MATRIX, *GROUPS], ids=lambda structure: structure.name)
def test_a_name_is_read_back(structure: Structure) -> None:
    assert parse_structure(structure.name) == structure


@pytest.mark.parametrize(
    "text", ["", "rows", "2", "2:", ":4", "0:4", "4:4", "4:2", "16:33", "-2:4", "2:4 ", "2.0:4", "100:200"]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(
        OptionError, match=r"mask structure: got .* expected 'row', 'matrix' or N:M with 1 <= N"
    ):
        parse_structure(text)


@given(st.integers(0, 1000), st.integers(0, 10**7))
def test_at_least_the_share_asked_for_and_less_than_one_element_more(thousandths: int, count: int) -> None:
    exact = Fraction(thousandths, 1000) * count
    assert dropped(thousandths / 1000, count) == math.ceil(exact)


def test_the_share_of_a_short_group_is_rounded_up() -> None:
    two_of_four = parse_structure("2:4")
    assert [dropped_of_group(two_of_four, columns) for columns in range(5)] == [0, 1, 1, 2, 2]
    assert [dropped_of_group(parse_structure("3:4"), columns) for columns in range(5)] == [0, 1, 1, 1, 1]


def test_counts_per_row_per_matrix_and_of_groups() -> None:
    assert drop_count(ROW, 0.3, (7, 9)) == 3
    assert drop_count(MATRIX, 0.3, (7, 9)) == 19
    assert drop_count(parse_structure("2:4"), None, (7, 9)) == 5
    assert drop_count(parse_structure("4:8"), 0.5, (7, 16)) == 8
    assert ROW.sparsity is None
    assert MATRIX.sparsity is None
    assert parse_structure("1:4").sparsity == 0.75


@pytest.mark.parametrize("structure", [ROW, MATRIX])
@pytest.mark.parametrize("sparsity", [None, -0.01, 1.0, math.nan])
def test_sparsities_that_cannot_be(structure: Structure, sparsity: float | None) -> None:
    with pytest.raises(InvalidInputError, match=f"pruning: got sparsity {sparsity}, expected 0 or more and"):
        drop_count(structure, sparsity, (2, 2))


def test_groups_take_no_other_sparsity() -> None:
    with pytest.raises(
        InvalidInputError, match=r"got sparsity 0\.6 with the structure 2:4, expected none, or"
    ):
        drop_count(parse_structure("2:4"), 0.6, (2, 4))
