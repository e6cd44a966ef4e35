"""Tests check every annotation of the package, of plain functions and of those with arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError

from endor_jax.arrays import round_up
from endor_jax.format.values import Codec
from tests.typechecker import checked, wrap

hook = wrap(typechecker=checked)
"""What the import hook puts before every function and class."""
Matrix = Float[np.ndarray, "rows columns"]


@hook
def plain(x: int, *, other: list[str]) -> str:
    """Returns what it is given."""
    return other[0] * x if x else other  # pyright: ignore[reportReturnType]


@hook
def with_arrays(x: Matrix, y: Matrix) -> Matrix:
    return x[:1] if y.max() > 1 else x


@hook
def numbers(upto: int) -> Iterator[int]:
    yield from range(upto)


@hook
@dataclass(frozen=True)
class Pair:
    one: int
    other: str = ""

    @hook
    def of(self, x: int) -> Later:
        return Later(x)


class Later:
    def __init__(self, x: int) -> None:
        self.x = x


def anything(x: Any) -> Any:
    """Hides from pyright what type x has."""
    return x


def test_arguments_and_results_of_plain_functions_are_checked():
    assert plain(2, other=["a"]) == "aa"
    with pytest.raises(TypeCheckError, match="plain"):
        plain(anything("2"), other=["a"])
    with pytest.raises(TypeCheckError, match="plain"):
        plain(2, other=anything([1]))
    with pytest.raises(TypeCheckError):
        plain(0, other=["a"])


def test_axes_of_one_name_are_compared():
    x = np.ones((2, 3), np.float32)
    assert with_arrays(x, x) is x
    with pytest.raises(TypeCheckError, match=r"parameters of .*with_arrays"):
        with_arrays(x, x.T)
    with pytest.raises(TypeCheckError, match=r"return value of .*with_arrays"):
        with_arrays(x, 2 * x)


def test_fields_are_checked_and_names_that_come_later_are_no_error():
    assert Pair(1, "2").of(3).x == 3
    with pytest.raises(TypeCheckError, match="Pair"):
        Pair(anything("1"))


def test_a_generator_is_checked_when_it_is_called():
    assert list(numbers(3)) == [0, 1, 2]
    with pytest.raises(TypeCheckError):
        numbers(anything("3"))


def define(scale: float) -> Callable[..., Any]:
    @hook
    def scaled(x: Matrix, by: int = 1) -> Matrix:
        return x * scale if by == 1 else x[:, :by]

    return scaled


def test_every_definition_of_a_nested_function_is_checked_and_computes_its_own():
    x = np.ones((2, 3), np.float32)
    for scale in (1.0, 2.0, 3.0):
        scaled = define(scale)
        np.testing.assert_array_equal(scaled(x), scale * x)
        for arguments in ((np.ones(3, np.float32), 1), (x, "2")):
            with pytest.raises(TypeCheckError, match=r"parameters of .*scaled"):
                scaled(*arguments)
        with pytest.raises(TypeCheckError, match=r"return value of .*scaled"):
            scaled(x, by=2)  # columns are other ones than those of x


def two_of_one_name(of_numbers: bool) -> Callable[..., Any]:
    if of_numbers:

        @hook
        def same(x: int) -> int:  # pyright: ignore[reportRedeclaration]
            return x
    else:

        @hook
        def same(x: str) -> str:
            return x

    return same


def test_nested_functions_of_one_name_have_their_own_checkers():
    for _ in range(2):
        assert two_of_one_name(True)(3) == 3
        assert two_of_one_name(False)("3") == "3"
        for of_numbers, wrong in ((True, "3"), (False, 3)):
            with pytest.raises(TypeCheckError):
                two_of_one_name(of_numbers)(wrong)


def test_a_checker_of_a_nested_function_is_made_once():
    def nested(x: int) -> int:
        return x

    def again(x: int) -> int:
        return x

    first = checked(nested)
    again.__qualname__ = nested.__qualname__
    assert checked(again) is first
    again.__annotations__ = {"x": str, "return": int}
    assert checked(again) is not first


def test_the_package_is_checked():
    with pytest.raises(TypeCheckError):
        round_up(anything("3"), 4)
    with pytest.raises(TypeCheckError):
        Codec("packed", anything("2"))
