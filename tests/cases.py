"""Which cases of a table a run takes: a spread of them by default, every one with ENDOR_TEST_CASES=all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import Any

ALL = os.environ.get("ENDOR_TEST_CASES") == "all"
"""Whether every case of every table runs."""


def spread(*axes: Iterable[Any], every: int, complete: bool = ALL) -> list[tuple[Any, ...]]:
    """Of all combinations of a value from each axis, those whose numbers add up to a multiple of `every`.

    That is one in `every`, and each value is in one at least. complete: all of them.
    Raises ValueError if a value were in none.
    """
    listed = [list(axis) for axis in axes]
    numbers = list(itertools.product(*(range(len(values)) for values in listed)))
    taken = [each for each in numbers if complete or sum(each) % every == 0]
    for axis, values in enumerate(listed):
        left_out = set(range(len(values))) - {each[axis] for each in taken}
        if left_out:
            raise ValueError(f"axis {axis}: no case has its values {sorted(left_out)}; take more of them")
    return [tuple(values[i] for values, i in zip(listed, each, strict=True)) for each in taken]
