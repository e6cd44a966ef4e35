"""The journal of a writer: what is finished in a directory that is no checkpoint yet, and the lock on it.

`endor.journal` lies in the destination while something is written there. Its first line says what is made,
from what and how; every further line names one finished part with all that the manifest will say about it.
Lines are appended and synced after what they speak of. Each starts with the digest of its own text: the first
line whose digest does not match, be it torn by a crash or damaged, ends the journal, and what came after it
counts as not done.

The file is also the lock: whoever writes holds it by `flock`, which the system lets go of when the process
ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from endor_jax.errors import DestinationBusyError, DestinationExistsError
from endor_jax.store.digest import digest_bytes
from endor_jax.store.files import sync_directory
from endor_jax.store.manifest import JOURNAL_FILE

JOURNAL_VERSION = 1

Entry = Mapping[str, Any]
"""One line of a journal: a JSON object."""

_BEGINNING = re.compile(rb"[0-9a-f]{0,16}|[0-9a-f]{16} (\{[^\n]*)?")
"""What a writer that was killed in the first line may have left: of the digest, the space, the object."""


class Journal:
    """The journal in a directory, locked while it is open; `header` and `entries` are what was found in it.

    The directory must exist; the file is made if it is missing. header: None if there is no whole first
    line. Raises DestinationBusyError if another process has it open, DestinationExistsError if something of
    that name is no file of ours. `close` twice is fine.
    """

    def __init__(self, directory: Path):
        self.path = directory / JOURNAL_FILE
        self._handle: int | None = _locked(self.path, create=True)
        try:
            lines, whole = _content(self.path, self._handle)
        except BaseException:
            self.close()
            raise
        self.header: Entry | None = lines[0] if lines else None
        self.entries: tuple[Entry, ...] = tuple(lines[1:])
        if lines:
            os.ftruncate(self._held, whole)  # what follows the last whole line would garble the next one

    @property
    def locked(self) -> bool:
        """Whether it is open, and so the lock held."""
        return self._handle is not None

    @property
    def empty(self) -> bool:
        """Whether nothing at all is in the file."""
        return os.fstat(self._held).st_size == 0

    @property
    def _held(self) -> int:
        assert self._handle is not None, "the journal is closed"
        return self._handle

    def start(self, header: Entry) -> None:
        """Forgets what is in the journal and writes the first line."""
        os.ftruncate(self._held, 0)
        self.header, self.entries = header, ()
        self._append(header)
        sync_directory(self.path.parent)

    def add(self, entry: Entry) -> None:
        """Appends one line; when this returns it is on disk."""
        self._append(entry)

    def _append(self, entry: Entry) -> None:
        rest = memoryview(to_line(entry))
        while rest:
            rest = rest[os.write(self._held, rest) :]
        os.fsync(self._held)

    def remove(self) -> None:
        """Takes the file away and lets go of the lock."""
        self.path.unlink(missing_ok=True)
        sync_directory(self.path.parent)
        self.close()

    def close(self) -> None:
        """Lets go of the lock and leaves the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def peek(directory: Path) -> Entry | None:
    """The first line of the journal in a directory, None if there is none. Writes nothing.

    Raises DestinationBusyError if a writer is at work there, DestinationExistsError if something else has the
    journal's name: a link, a pipe, a file with anything but whole lines or the beginning of the first.
    """
    lines = peek_lines(directory)
    return lines[0] if lines else None


def peek_lines(directory: Path) -> tuple[Entry, ...]:
    """All whole lines of the journal in a directory. Raises as `peek`."""
    path = directory / JOURNAL_FILE
    try:
        handle = _locked(path, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    try:
        return tuple(_content(path, handle)[0])
    finally:
        os.close(handle)


def read_lines(data: bytes) -> tuple[list[Entry], int]:
    """The lines of a journal up to the first that is not whole or no JSON object, and how many bytes they
    take."""
    found: list[Entry] = []
    whole = 0
    for line in data.split(b"\n")[:-1]:  # behind the last line end: nothing, or a torn line
        digest, _, text = line.partition(b" ")
        if digest.decode("ascii", "replace") != digest_bytes(text):
            break
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):  # a digest is no seal: anyone may have written it
            break
        if not isinstance(entry, dict):
            break
        found.append(entry)
        whole += len(line) + 1
    return found, whole


def to_line(entry: Entry) -> bytes:
    """A line: the digest of its text, the text."""
    text = json.dumps(entry, separators=(",", ":")).encode()
    return digest_bytes(text).encode() + b" " + text + b"\n"


def _locked(path: Path, *, create: bool) -> int:
    """A descriptor of the file, locked for this process alone."""
    while True:
        handle = _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND if create else os.O_RDONLY)
        try:
            # Those who only look share the lock, so that they are in nobody's way but a writer's.
            fcntl.flock(handle, (fcntl.LOCK_EX if create else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if _is_still(path, handle):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise DestinationBusyError(
                f"destination {path.parent}",
                got="another process writing there",
                expected="one writer",
                fix="wait until it is done, or choose another path",
            ) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its writer finished and removed it between our two calls: look again


def _opened(path: Path, flags: int) -> int:
    """A descriptor of a file itself: neither through links nor waiting at pipes."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _not_ours(path, "a link or something else that is no file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _not_ours(path, "something that is no file")
    return handle


def _content(path: Path, handle: int) -> tuple[list[Entry], int]:
    """What `read_lines` gives for an open file, which must be a journal."""
    with open(handle, "rb", closefd=False) as file:
        data = file.read()
    lines, whole = read_lines(data)
    if not lines and not _BEGINNING.fullmatch(data):
        raise _not_ours(path, "a file that is no journal")
    return lines, whole


def _not_ours(path: Path, got: str) -> DestinationExistsError:
    return DestinationExistsError(
        f"journal {path}",
        got=got,
        expected="what a writer left, or nothing",
        fix="choose another path, or remove it first",
    )


def _is_still(path: Path, handle: int) -> bool:
    """Whether the file that was opened is the one at the path."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False
