"""Which modules of a model are its blocks: patterns of dotted paths, "encoder.layers.*". Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from endor_jax.errors import InvalidInputError

SHOWN = 8
"""Paths that an error names, at most."""


def matching(paths: Iterable[str], patterns: str | Sequence[str]) -> tuple[str, ...]:
    """The dotted paths that a pattern matches, step by step, in the order of the patterns.

    A `*` stands for anything within one step. What one pattern matches is ordered by its numbers: block_2
    comes before block_10. Raises InvalidInputError for a pattern that matches nothing, for fewer than two
    modules, and for modules inside one another.
    """
    known = list(dict.fromkeys(paths))
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = sorted((path for path in known if _matches(path, pattern)), key=_numbers_as_such)
        if not matched:
            raise InvalidInputError(
                f"blocks {pattern!r}",
                got="no module of that path",
                expected=f"some of {_some(known)}",
                fix='write a pattern of dotted paths, such as "blocks.*" or "block_*"',
            )
        found |= dict.fromkeys(matched)
    if len(found) < 2:
        raise InvalidInputError(
            f"blocks {patterns!r}",
            got=f"one module, {next(iter(found), 'or none')}",
            expected="a stack of at least two",
            fix="a stack that scan or vmap made is one module whose parameters have a leading axis: stream "
            "the function that is scanned with endor.stream (docs/embedding.md)",
        )
    for path in found:
        above = next((other for other in found if path.startswith(f"{other}.")), None)
        if above is not None:
            raise InvalidInputError(
                f"blocks {patterns!r}",
                got=f"{path}, which is inside {above}",
                expected="modules apart from each other",
                fix="choose one of them",
            )
    return tuple(found)


def _matches(path: str, pattern: str) -> bool:
    steps, wanted = path.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(map(fnmatch.fnmatchcase, steps, wanted))


def _numbers_as_such(path: str) -> list[tuple[int, str]]:
    pieces = re.findall(r"\d+|\D+", path)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def _some(paths: Sequence[str]) -> str:
    more = len(paths) - SHOWN
    return ", ".join(paths[:SHOWN]) + (f" and {more} more" if more > 0 else "") if paths else "none"
