"""Which sparsity is tried next: bisection on whole percents, as pure functions of what was found so far.

Of a method whose quality only falls as sparsity rises it finds the highest that holds. Of any other it ends
too, with one that holds while the next percent does not.
"""

from __future__ import annotations

from collections.abc import Mapping

LOWEST, FIRST, HIGHEST = 1, 50, 95
"""Percents: the lowest and the highest that are tried, and what is tried first."""


def next_percent(held: Mapping[int, bool]) -> int | None:
    """What is to be tried now, None when nothing is. held: whether each percent that was tried holds."""
    low, high = LOWEST - 1, HIGHEST + 1  # the dense model holds; above the highest nothing is asked
    percent = FIRST
    while percent in held:
        low, high = (percent, high) if held[percent] else (low, percent)
        percent = (low + high) // 2
        if percent == low:
            return None
    return percent


def best_percent(held: Mapping[int, bool]) -> int | None:
    """The highest that holds, None if nothing does."""
    return max((percent for percent, its in held.items() if its), default=None)
