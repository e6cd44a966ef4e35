"""The journal of a writer to an object store: an object that is replaced with every line, and the lock on it.

Its lines are those of a local journal; behind them one says who is writing. Nobody can lock an object, but a
write can ask for what it replaces: whoever goes on with what another writer left takes the journal over, and
the other, if it still lives, finds that out with its next line, and so before it writes a manifest. Nothing
is taken over from a writer of this host that still lives.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from endor_jax.errors import DestinationBusyError, DestinationExistsError
from endor_jax.store.journal import Entry, read_lines, to_line
from endor_jax.store.manifest import JOURNAL_FILE
from endor_jax.store.remote.objects import ABSENT, Objects

_OWNER = "owner"
"""The member that only the line about the writer has."""


class ObjectJournal:
    """The journal below a prefix, ours while it is open; `header` and `entries` are what was found in it.

    Raises as `Journal`, in every method: DestinationBusyError if another process writes there, or has taken
    it over; and what `Objects` raises.
    """

    def __init__(self, objects: Objects):
        self._objects = objects
        lines, self._generation = _read(objects)
        self.header: Entry | None = lines[0] if lines else None
        self.entries: tuple[Entry, ...] = tuple(lines[1:])
        self._lines = [to_line(line) for line in lines]
        self.locked = True
        # The token, so that no two writers ever store the same bytes: a store tells them apart by a digest.
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        self._write(owner=True)

    @property
    def empty(self) -> bool:
        """Whether it has no line but ours."""
        return not self._lines

    def start(self, header: Entry) -> None:
        """Forgets what is in the journal and writes the first line."""
        self.header, self.entries, self._lines = header, (), [to_line(header)]
        self._write(owner=True)

    def add(self, entry: Entry) -> None:
        """Appends one line; when this returns it is stored."""
        self._lines.append(to_line(entry))
        self._write(owner=True)

    def _write(self, *, owner: bool) -> None:
        last = [to_line({_OWNER: self._owner})] if owner else []
        data = b"".join([*self._lines, *last])
        generation = self._objects.put(JOURNAL_FILE, data, over=self._generation)
        if generation is None:
            self.locked = False
            raise _busy(self._objects, "another process that has taken over what is written there")
        self._generation = generation

    def remove(self) -> None:
        """Takes the object away and lets go of the lock."""
        self._objects.delete(JOURNAL_FILE)
        self.locked = False

    def close(self) -> None:
        """Lets go of the lock and leaves the object."""
        if self.locked:
            self.locked = False
            self._write(owner=False)


def peek_objects(objects: Objects) -> tuple[Entry, ...]:
    """All whole lines of the journal below a prefix. Raises as `peek`; writes nothing."""
    lines, _ = _read(objects)
    return tuple(lines)


def _read(objects: Objects) -> tuple[list[Entry], bytes]:
    """Lines, and the generation that a write must replace. Raises DestinationBusyError if their writer is a
    process of this host that still lives."""
    held = objects.get(JOURNAL_FILE)
    if held is None:
        return [], ABSENT
    lines, _ = read_lines(held.data)
    if held.data and not lines:
        raise DestinationExistsError(
            f"journal {objects.root / JOURNAL_FILE}",
            got="an object that is no journal",
            expected="what a writer left, or nothing",
            fix="choose another place, or remove it first",
        )
    owners = [line[_OWNER] for line in lines if _OWNER in line]
    owner = owners[-1] if owners else None
    if isinstance(owner, dict) and _lives(owner):
        raise _busy(objects, f"another process, number {owner.get('pid')} on this host, writing there")
    return [line for line in lines if _OWNER not in line], held.generation


def _lives(owner: Mapping[str, Any]) -> bool:
    """Whether the writer is a process of this host that is still there, and no other with its number: in a
    container that was started again, the first process has the number that the killed one had."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid) and owner.get("started") in (None, _started(pid))


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has asked how."""
    fields = _stat(pid)
    return bool(fields) and fields[0] == "Z"


def _started(pid: int) -> str | None:
    """When a process was started, in ticks since this machine was; None where the system does not say."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else None


def _stat(pid: int) -> list[str]:
    """What Linux says of a process (proc(5), /proc/pid/stat), from its state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _busy(objects: Objects, got: str) -> DestinationBusyError:
    return DestinationBusyError(
        f"destination {objects.root}",
        got=got,
        expected="one writer",
        fix="wait until it is done, or choose another place",
    )
