"""Paths that must not lie in one another: what is read, and what is written."""

from __future__ import annotations

from pathlib import Path

from endor_jax.errors import InvalidInputError


def check_apart(source: Path, destination: Path) -> None:
    """Raises InvalidInputError if the destination is the source, lies in it, or holds it."""
    read, written = source.resolve(), destination.resolve()
    if read == written:
        relation = "the source itself"
    elif read in written.parents:
        relation = "a place inside the source"
    elif written in read.parents:
        relation = "a directory that holds the source"
    else:
        return
    raise InvalidInputError(
        f"destination {destination}",
        got=relation,
        expected=f"a place apart from {source}",
        fix="choose another path: what is read is never written to",
    )
