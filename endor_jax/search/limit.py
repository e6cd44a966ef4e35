"""How much perplexity may increase: as it is written, and what can be searched with it."""

from __future__ import annotations

import math
import re

from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import OptionError

WHERE = "max perplexity increase"
_WRITTEN = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+) ?(?P<percent>%?)", re.ASCII)


def parse_increase(text: str) -> float:
    """The fraction that "5%" or "0.05" stands for.

    Raises OptionError for anything else, and for a plain number of 1 or more: whoever writes 5 may mean
    5 % or 500 %.
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise OptionError(
            WHERE,
            got=repr(text),
            expected="a percentage or a fraction, not negative",
            fix="5% and 0.05 mean the same",
        )
    number = float(found["number"])
    if found["percent"]:
        return number / 100
    if number >= 1:
        raise OptionError(
            WHERE,
            got=f"{text!r} without a percent sign",
            expected="a fraction below 1, or a percentage",
            fix=f"write {number:g}% or {100 * number:g}%, whichever it is",
        )
    return number


def check_asked(settings: ConvertSettings, max_increase: float, scored_blocks: int) -> None:
    """Raises OptionError unless there is something to search: a method whose sparsity can be chosen, a limit
    that is a number, blocks to score."""
    if not (math.isfinite(max_increase) and max_increase >= 0):
        raise OptionError(
            WHERE, got=str(max_increase), expected="0 or more, and finite", fix="0.05 allows 5 % more"
        )
    if settings.prune == "none":
        raise OptionError(
            WHERE,
            got="it without pruning",
            expected="a pruning method with it, whose sparsity is searched",
            fix="choose a method, wanda for example",
        )
    if settings.mask_structure.sparsity is not None:
        raise OptionError(
            WHERE,
            got=f"it with structure={settings.structure!r}",
            expected="a structure whose sparsity can be chosen",
            fix="leave the structure out: N:M is a sparsity",
        )
    if scored_blocks < 1:
        raise OptionError("scored blocks", got=str(scored_blocks), expected="1 or more", fix="raise it")
