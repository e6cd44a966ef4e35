"""Bisection finds the boundary of anything that only falls, and ends for everything else."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from endor_jax.search.bisection import FIRST, HIGHEST, LOWEST, best_percent, next_percent

PERCENTS = range(LOWEST, HIGHEST + 1)


def bisected(holds: Callable[[int], bool]) -> dict[int, bool]:
    held: dict[int, bool] = {}
    while (percent := next_percent(held)) is not None:
        assert percent in PERCENTS
        assert percent not in held
        held[percent] = holds(percent)
    return held


@given(st.integers(LOWEST - 1, HIGHEST))
def test_the_highest_that_holds_is_found_of_what_only_falls(boundary):
    held = bisected(lambda percent: percent <= boundary)
    assert best_percent(held) == (boundary or None)
    assert len(held) <= 7


@given(st.sets(st.sampled_from(PERCENTS)))
def test_of_anything_else_one_that_holds_below_one_that_does_not(good):
    held = bisected(lambda percent: percent in good)
    best = best_percent(held)
    assert best is None or best in good
    assert (best or LOWEST - 1) == HIGHEST or held[(best or LOWEST - 1) + 1] is False
    assert len(held) <= 7


@given(st.sets(st.sampled_from(PERCENTS)), st.data())
def test_what_is_tried_next_follows_from_what_was_tried(good, data):
    held = bisected(lambda percent: percent in good)
    order = list(held)
    count = data.draw(st.integers(0, len(order)))
    assert next_percent({percent: held[percent] for percent in order[:count]}) == [*order, None][count]


def test_half_is_tried_first():
    assert next_percent({}) == FIRST == 50
