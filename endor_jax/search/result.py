"""What a search found: every try, checks of some, the one that was chosen; and its JSON form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.evaluate.finite import finite
from endor_jax.store.journal import Entry


@dataclass(frozen=True)
class Quality:
    """A checkpoint beside the dense one, on the same tokens.

    increase: its perplexity over the dense one's, minus 1. standard_error: of increase, from the losses of
    both token by token, taking tokens as independent; much smaller than what the errors of the two
    perplexities would give. Neither is finite for a model that is broken.
    """

    perplexity: float
    dense_perplexity: float
    increase: float
    standard_error: float
    tokens: int

    def __str__(self) -> str:
        return f"{self.increase:+.2%} ± {self.standard_error:.2%}"


@dataclass(frozen=True)
class Try:
    """One sparsity that was tried. quality: on the text of the search. stored_bytes: of all files. check: on
    text that neither calibration nor search used, if that was looked at. held: whether all of that is within
    the limit."""

    percent: int
    quality: Quality
    stored_bytes: int
    held: bool
    check: Quality | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of zeros that was asked for in the layers' matrices."""
        return self.percent / 100


@dataclass(frozen=True)
class Search:
    """A search that found something. path: the checkpoint. dense_bytes: of all files of the dense one. tries:
    in the order they were made. chosen: one of them, whose check held.
    """

    path: Path
    max_increase: float
    dense_bytes: int
    tries: tuple[Try, ...]
    chosen: Try

    @property
    def check(self) -> Quality:
        """Of the chosen one."""
        assert self.chosen.check is not None
        return self.chosen.check


def to_json(search: Search) -> dict[str, Any]:
    """A search as JSON; null where a number is not finite, for it is also written to a file."""
    return {
        "path": str(search.path),
        "max_increase": search.max_increase,
        "sparsity": search.chosen.sparsity,
        "stored_bytes": search.chosen.stored_bytes,
        "dense_stored_bytes": search.dense_bytes,
        "tries": tries_json(search.tries),
        "check": finite(asdict(search.check)),
    }


def tries_json(tries: Sequence[Try]) -> list[dict[str, Any]]:
    """Tries as JSON, also those of a search that found nothing."""
    return [
        {
            "sparsity": each.sparsity,
            **finite(asdict(each.quality)),
            "stored_bytes": each.stored_bytes,
            "held": each.held,
            "check": None if each.check is None else finite(asdict(each.check)),
        }
        for each in tries
    ]


def try_entry(made: Try) -> Entry:
    """A try as a line of the journal."""
    return {
        "percent": made.percent,
        "quality": asdict(made.quality),
        "stored_bytes": made.stored_bytes,
    }


def try_of(entry: Entry, max_increase: float, check: Quality | None = None) -> Try:
    """The try in a line of the journal, and the check of it."""
    quality = Quality(**entry["quality"])
    held = holds(quality, max_increase) and (check is None or holds(check, max_increase))
    return Try(entry["percent"], quality, entry["stored_bytes"], held, check)


def holds(quality: Quality, max_increase: float) -> bool:
    """Whether a checkpoint is good enough: a limit accepts what is equal to it, and never NaN."""
    return quality.increase <= max_increase


def lowered_limit(tries: Sequence[Try], max_increase: float) -> float:
    """The increase to search with after checks that failed: lower by the factor by which a check was above
    what the search had seen, so that the next one may be expected to hold."""
    limit = max_increase
    for each in tries:
        if each.check is not None and not holds(each.check, max_increase):
            ratio = each.quality.increase / each.check.increase if math.isfinite(each.check.increase) else 0.5
            limit = min(limit, max_increase * ratio)
    return limit
