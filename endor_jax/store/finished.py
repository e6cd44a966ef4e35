"""A part that is on disk, as the journal notes it: all that the manifest will say, and how to check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.errors import ResumeError
from endor_jax.format.stats import TensorStats
from endor_jax.location import Location
from endor_jax.store.digest import digest_bytes
from endor_jax.store.manifest import Part
from endor_jax.store.part import DATA_FILE, METADATA_FILE


@dataclass(frozen=True)
class FinishedPart:
    """One part on disk.

    metadata, rest: digests of its metadata file, and of what follows the part's bytes in its data file.
    stats, escapes: what was counted, by tensor. note: what the caller wants to know when it goes on.
    """

    part: Part
    metadata: str
    rest: str
    stats: Mapping[str, TensorStats]
    escapes: Mapping[str, int]
    note: Mapping[str, Any]


def to_entry(finished: FinishedPart) -> dict[str, Any]:
    """Its line in the journal."""
    return asdict(finished)


def from_entry(directory: Location, entry: Mapping[str, Any]) -> FinishedPart:
    """The part of a line in the journal of `directory`. Raises ResumeError if it is none."""
    try:
        part = Part(**(entry["part"] | {"digests": tuple(entry["part"]["digests"])}))
        numbers = (part.length_bytes, part.buffer_bytes, part.chunk_bytes)
        if not isinstance(part.path, str) or not all(isinstance(number, int) for number in numbers):
            raise TypeError("a path is text, and bytes are whole numbers")
        stats = {name: TensorStats(**its) for name, its in entry["stats"].items()}
        return FinishedPart(
            part, entry["metadata"], entry["rest"], stats, dict(entry["escapes"]), dict(entry["note"])
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ResumeError(
            f"journal in {directory}",
            got=f"a line that cannot be read ({type(error).__name__}: {error})",
            expected="the lines that this version writes",
            fix="remove the directory and begin again",
        ) from error


def rest_of(directory: Path, part: Part) -> str:
    """The digest of what follows a part's own bytes in its data file: padding, the index, its crc32c."""
    with (directory / part.path / DATA_FILE).open("rb") as file:
        file.seek(part.length_bytes)
        return digest_bytes(file.read())


def is_sound(directory: Path, finished: FinishedPart) -> bool:
    """Whether every byte of a part is what the journal says, in its place and not behind a link, and nothing
    lies beside it."""
    place, part = directory / finished.part.path, finished.part
    try:
        if any(each.is_symlink() for each in (place, *place.rglob("*"))):
            return False
        files = {str(file.relative_to(place)) for file in place.rglob("*") if not file.is_dir()}
        if files != {METADATA_FILE, DATA_FILE}:
            return False
        if digest_bytes((place / METADATA_FILE).read_bytes()) != finished.metadata:
            return False
        with (place / DATA_FILE).open("rb") as file:
            left = part.length_bytes
            for digest in part.digests:
                count = min(part.chunk_bytes, left)
                if digest_bytes(file.read(count)) != digest:
                    return False
                left -= count
        return left == 0 and rest_of(directory, part) == finished.rest
    except FileNotFoundError:
        return False
