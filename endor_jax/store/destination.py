"""Whether a path can be written to: what is there already, whose it is, and whether there is room."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from endor_jax.errors import DestinationExistsError, EndorError, ResumeError, StorageError
from endor_jax.location import Location, ObjectPath
from endor_jax.store.journal import JOURNAL_VERSION, Entry, peek, peek_lines
from endor_jax.store.manifest import JOURNAL_FILE, MANIFEST_FILE, PARTS

_PART = re.compile(r".+\.\d+")
_TEMPORARY = f"{MANIFEST_FILE}.tmp"


@contextmanager
def refusals(path: Location, expected: str, *, resume: bool) -> Iterator[None]:
    """Turns what a file system refuses into one StorageError that says how to go on."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EndorError) and not isinstance(error, StorageError):
            raise
        again = "run the same command again: it goes on where it stopped"
        lift = "make room, or lift what refuses"
        if isinstance(path, ObjectPath) and isinstance(error, StorageError):
            lift = error.fix.removesuffix(", and run it again")
        raise StorageError(
            f"destination {path}",
            got=error.got if isinstance(error, StorageError) else error.strerror or str(error),
            expected=expected,
            fix=f"{lift}; then " + (again if resume else "remove the directory and begin again"),
        ) from error


def check_destination(
    path: Path, *, resume: bool = False, header: Entry | None = None, locked: bool = False
) -> None:
    """Raises unless a checkpoint can be written to `path`: nothing is there, an empty directory or, with
    `resume`, what an interrupted writer left.

    header, locked: the first line of the journal, from whoever holds the lock on it. Reads only. Raises
    DestinationExistsError, DestinationBusyError if a writer is at work there, StorageError if the file system
    refuses.
    """
    with refusals(path, "to read what is there", resume=resume):
        _check_destination(path, resume=resume, header=header, locked=locked)


def _check_destination(path: Path, *, resume: bool, header: Entry | None, locked: bool) -> None:
    if not locked:  # raises too if something of the journal's name is none
        header = peek(path)
    if not path.is_dir():
        if os.path.lexists(path):
            raise _exists(path, "a file")
        return
    names = {entry.name for entry in path.iterdir()} - ({JOURNAL_FILE} if locked else set())
    if header is None:
        if names - {JOURNAL_FILE}:  # a journal without a first line was killed in it: nothing to lose
            finished = MANIFEST_FILE in names
            raise _exists(path, "a finished checkpoint" if finished else "a directory that is not empty")
        return
    if not _is_directory(path / PARTS):  # whatever lies behind a link is not ours to clear away
        raise _exists(path, f"{PARTS!r} that is a link or a file beside a journal")
    foreign = sorted(names - {name.split("/")[0] for name in known_entries(path, header)} - {PARTS})
    foreign += [f"{PARTS}/{name}" for name in _inside(path / PARTS) if not _PART.fullmatch(name)]
    if foreign:
        raise _exists(path, f"{foreign[0]!r} beside what an interrupted conversion left")
    if not resume and any(_inside(path / PARTS)):
        raise DestinationExistsError(
            f"destination {path}",
            got=f"what an interrupted {header.get('by', 'writer')} left",
            expected="a path where nothing is yet",
            fix="remove it first, or, if it was a conversion, go on with it (without --no-resume)",
        )


def _is_directory(path: Path) -> bool:
    """Whether a path is a directory itself, not by way of a link, or nothing at all."""
    return not os.path.lexists(path) or (path.is_dir() and not path.is_symlink())


def _inside(directory: Path) -> list[str]:
    """The names in a directory, which is not followed if it is a link."""
    listed = directory.is_dir() and not directory.is_symlink()
    return sorted(entry.name for entry in directory.iterdir()) if listed else []


def known_entries(path: Path, header: Entry | None) -> list[str]:
    """What lies in `path` that a writer with this journal may have put there: files, and parts."""
    if header is None:
        return []
    files = header.get("files")
    names = [JOURNAL_FILE, MANIFEST_FILE, _TEMPORARY, *(files if isinstance(files, dict) else ())]
    names = [name for name in names if _is_file_in(path, name)]
    return names + [f"{PARTS}/{name}" for name in _inside(path / PARTS) if _PART.fullmatch(name)]


def _is_file_in(path: Path, name: str) -> bool:
    """Whether `name` is a file in a directory: a journal may have come from outside, and what it names must
    not make us remove anything elsewhere, nor any directory."""
    inside = name not in ("", ".", "..") and "/" not in name and "\0" not in name
    return inside and os.path.lexists(path / name) and ((path / name).is_symlink() or (path / name).is_file())


def _exists(path: Path, got: str) -> DestinationExistsError:
    return DestinationExistsError(
        f"destination {path}",
        got=got,
        expected="a path where nothing is yet",
        fix="choose another path, or remove it first",
    )


def check_resumable(path: Path, job: Mapping[str, Any]) -> None:
    """Raises ResumeError if a writer with another job left something in `path` that is finished. Reads only.

    Raises DestinationBusyError or StorageError as `check_destination` does.
    """
    with refusals(path, "to read what is there", resume=True):
        lines = peek_lines(path)
        finished = len(lines) > 1 or (path / MANIFEST_FILE).exists()
    if lines and finished:
        check_job(path, lines[0], {"journal": JOURNAL_VERSION} | dict(job))


def check_job(path: Location, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ResumeError, naming the first difference, unless a journal is that of the same job."""
    now = json.loads(json.dumps(now))  # tuples become lists, as they were read
    difference = _difference(before, now)
    if difference is not None:
        name, old, new = difference
        raise ResumeError(
            f"destination {path}",
            got=f"{name} {new}",
            expected=f"{old}, as when it was interrupted",
            fix="go on as it was begun, or remove the directory and begin again",
        )


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, str, str] | None:
    """Name, old and new value of the first member in which two JSON values differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            deeper = _difference(before.get(key), now.get(key), f"{name} {key}".strip())
            if deeper is not None:
                return deeper
        return None
    return None if before == now else (name, repr(before), repr(now))


def check_room(path: Path, need_bytes: int) -> None:
    """Raises StorageError unless the file system of `path` has room for so many bytes more."""
    there = path
    while not there.exists():
        there = there.absolute().parent
    system = os.statvfs(there)
    free = system.f_bavail * system.f_frsize
    if need_bytes > free:
        raise StorageError(
            f"destination {path}",
            got=f"{free:,} bytes free on its file system",
            expected=f"about {need_bytes:,} to write",
            fix="make room, or choose another place; nothing was written",
        )


def taken_bytes(path: Path) -> int:
    """Bytes that the files below a path take. Raises StorageError."""
    with refusals(path, "to read what is there", resume=True):
        if not path.is_dir():
            return 0
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
