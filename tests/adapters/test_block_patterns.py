"""Which modules a pattern of blocks means, and functions made anew that are one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from endor_jax.adapters.functions import Functions
from endor_jax.adapters.patterns import matching
from endor_jax.errors import InvalidInputError

PATHS = ["stem", *(f"block_{i}" for i in (10, 2, 0)), "block_2.mlp", "decoder", "decoder.layers.1"]
PATHS += ["decoder.layers.0", "encoder.layers.0"]


def test_numbers_are_ordered_as_numbers_and_patterns_as_given() -> None:
    assert matching(PATHS, "block_*") == ("block_0", "block_2", "block_10")
    both = ["encoder.layers.*", "decoder.layers.*"]
    assert matching(PATHS, both) == ("encoder.layers.0", "decoder.layers.0", "decoder.layers.1")
    assert matching(PATHS, ["block_2", "block_0", "block_*"]) == ("block_2", "block_0", "block_10")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("layers.*", r"blocks 'layers\.\*': got no module of that path, expected some of stem, block_10"),
        ("*", r"got decoder\.layers\.1, which is inside decoder"),
        ("stem", r"got one module, stem, expected a stack of at least two; a stack that scan or vmap made"),
        ([], "got one module, or none, expected a stack"),
        (["block_*", "block_2.mlp"], r"got block_2\.mlp, which is inside block_2, expected modules apart"),
    ],
)
def test_patterns_that_mean_no_stack(patterns: Any, message: str) -> None:
    if patterns == "*":
        patterns = ["*", "decoder.layers.1"]
    with pytest.raises(InvalidInputError, match=message):
        matching(PATHS, patterns)


def scaled(by: Any) -> Any:
    return lambda x: x * by


def test_functions_that_agree_become_one() -> None:
    one = Functions().one
    first = one(scaled(2))
    assert one(scaled(2)) is first
    inner = one(functools.partial(scaled(3), x=1.0))
    assert one(functools.partial(scaled(3), x=1.0)) is inner
    for other in (scaled(2.0), scaled(True), scaled(3), functools.partial(scaled(3), x=1), scaled(scaled(2))):
        assert one(other) is other
    negative = one(scaled(-0.0))
    assert one(scaled(0.0)) is not negative
    nested = one(scaled((1, scaled(2))))
    assert one(scaled((1, scaled(2)))) is nested


def test_functions_that_cannot_be_compared_stay_apart() -> None:
    one = Functions().one
    for what in (np.ones(2), jax.numpy.ones(2), [1]):
        first = one(scaled(what))
        assert one(scaled(what)) is not first

    def endless() -> Any:
        return endless

    assert one(endless) is endless
    assert one(3) == 3
