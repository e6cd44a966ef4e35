"""What a search found: every try, the one that was chosen, and the check of it; and its JSON form."""

from __future__ import annotations

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
    """One sparsity that was tried. stored_bytes: of all files. held: whether the increase is within the
    limit."""

    percent: int
    quality: Quality
    stored_bytes: int
    held: bool

    @property
    def sparsity(self) -> float:
        """The fraction of zeros that was asked for in the layers' matrices."""
        return self.percent / 100


@dataclass(frozen=True)
class Search:
    """A search that found something. path: the checkpoint. dense_bytes: of all files of the dense one. tries:
    in the order they were made. check: of the chosen one, on text that neither calibration nor search used.
    """

    path: Path
    max_increase: float
    dense_bytes: int
    tries: tuple[Try, ...]
    chosen: Try
    check: Quality


def to_json(search: Search) -> dict[str, Any]:
    """A search as JSON; null where a number is not finite, for it is also written to a file."""
    return {
        "path": str(search.path),
        "max_increase": search.max_increase,
        "sparsity": search.chosen.sparsity,
        "stored_bytes": search.chosen.stored_bytes,
        "dense_stored_bytes": search.dense_bytes,
        "tries": [
            {
                "sparsity": each.sparsity,
                **finite(asdict(each.quality)),
                "stored_bytes": each.stored_bytes,
                "held": each.held,
            }
            for each in search.tries
        ],
        "check": finite(asdict(search.check)),
    }


def try_entry(made: Try) -> Entry:
    """A try as a line of the journal."""
    return {
        "percent": made.percent,
        "quality": asdict(made.quality),
        "stored_bytes": made.stored_bytes,
    }


def try_of(entry: Entry, max_increase: float) -> Try:
    """The try in a line of the journal."""
    quality = Quality(**entry["quality"])
    return Try(entry["percent"], quality, entry["stored_bytes"], holds(quality, max_increase))


def holds(quality: Quality, max_increase: float) -> bool:
    """Whether a checkpoint is good enough: a limit accepts what is equal to it, and never NaN."""
    return quality.increase <= max_increase
