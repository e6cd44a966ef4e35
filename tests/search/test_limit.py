"""How a quality budget is written, and what cannot be searched with one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import OptionError
from endor_jax.search.limit import check_asked, parse_increase


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5%", 0.05),
        ("0.05", 0.05),
        (".05", 0.05),
        ("5 %", 0.05),
        (" 7.5% ", 0.075),
        ("500%", 5.0),
        ("0", 0.0),
    ],
)
def test_percent_and_fraction_mean_the_same(text, value):
    assert parse_increase(text) == value


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_every_whole_percent_is_exact(percent):
    assert parse_increase(f"{percent}%") == percent / 100


@pytest.mark.parametrize("text", ["-5%", "-0.05", "", "%", "five", "5%%", "nan", "inf", "1e-2", "٥%", "5,5%"])
def test_what_is_no_budget(text):
    with pytest.raises(OptionError, match=r"max perplexity increase: got .* a percentage or a fraction"):
        parse_increase(text)


@pytest.mark.parametrize(
    ("text", "either"), [("5", "5% or 500%"), ("1.5", "1.5% or 150%"), ("1", "1% or 100%")]
)
def test_a_number_that_may_mean_percents_is_not_guessed(text, either):
    with pytest.raises(OptionError, match=f"write {either}"):
        parse_increase(text)


@pytest.mark.parametrize("increase", [-0.01, math.nan, math.inf])
def test_a_limit_is_a_number(increase):
    with pytest.raises(OptionError, match=f"got {increase}, expected 0 or more, and finite"):
        check_asked(ConvertSettings(prune="wanda", sparsity=0.5), increase, 40)


@pytest.mark.parametrize(
    ("asked", "blocks", "message"),
    [
        (ConvertSettings(), 40, "got it without pruning"),
        (ConvertSettings(prune="wanda", structure="2:4"), 40, "got it with structure='2:4'"),
        (ConvertSettings(prune="wanda", sparsity=0.5), 0, "scored blocks: got 0, expected 1 or more"),
    ],
)
def test_what_leaves_nothing_to_search(asked, blocks, message):
    with pytest.raises(OptionError, match=message):
        check_asked(asked, 0.05, blocks)
