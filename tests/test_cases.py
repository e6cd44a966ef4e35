"""A spread of cases leaves no value out, and everything is every combination."""

from __future__ import annotations

import itertools

import pytest

from tests.cases import spread


@pytest.mark.parametrize("sizes", [(14, 19), (12, 3, 2), (3, 5), (4, 3)])
def test_a_third_of_the_cases_has_every_value(sizes):
    axes = [range(size) for size in sizes]
    taken = spread(*axes, every=3, complete=False)
    whole = list(itertools.product(*axes))
    assert set(taken) < set(whole)
    assert len(whole) // 4 < len(taken) <= -(-len(whole) // 3) + 1
    for axis, values in enumerate(axes):
        assert {case[axis] for case in taken} == set(values)
    assert spread(*axes, every=3, complete=True) == whole


def test_a_spread_that_would_leave_a_value_out_is_refused():
    with pytest.raises(ValueError, match=r"axis 0: no case has its values \[1, 4\]"):
        spread(range(6), range(2), every=3, complete=False)
