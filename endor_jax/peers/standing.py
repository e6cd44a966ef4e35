"""What is known of a process of the run, and when that is a failure: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from endor_jax.errors import PeerError


@dataclass(frozen=True)
class Standing:
    """How far a process says it is. Seconds are this process's `time.monotonic`.

    moves: how many signs of progress it has given, each ended wait among them. waiting: whether it waits now.
    talking: whether for what the other processes say, and not for devices. heard_seconds: when it last said
    something. moved_seconds: when any of the first three last changed.
    """

    heard_seconds: float
    moved_seconds: float
    moves: int = 0
    waiting: bool = False
    talking: bool = False


@dataclass(frozen=True)
class Failure:
    """A process that fails the run, and why; every process says the same of it."""

    process: int
    got: str
    expected: str
    fix: str

    def error(self, processes: int) -> PeerError:
        """What every process raises."""
        where = f"process {self.process} of {processes}, counted from 0"
        return PeerError(where, got=self.got, expected=self.expected, fix=self.fix)


def said(before: Standing, moves: int, waiting: bool, *, now: float, talking: bool = False) -> Standing:
    """The standing after a process has said how far it is, or another one has said so for it."""
    moved = (moves, waiting, talking) != (before.moves, before.waiting, before.talking)
    seconds = now if moved else before.moved_seconds
    return replace(before, moved_seconds=seconds, moves=moves, waiting=waiting, talking=talking)


def silent(standings: Mapping[int, Standing], *, now: float, timeout_seconds: float) -> Failure | None:
    """The first of these processes, connected with this one, that has said nothing for too long."""
    for process, standing in sorted(standings.items()):
        if now - standing.heard_seconds > timeout_seconds:
            return Failure(
                process,
                got=f"no sign of life for {timeout_seconds:g} seconds",
                expected="one at least every second",
                fix="see whether it was stopped, or its machine or the network is down, and start all again",
            )
    return None


SAME_CALLS = "let every process make the same calls, and take every generation to its end"


def apart(standings: Mapping[int, Standing], *, now: float, timeout_seconds: float) -> Failure | None:
    """Processes, this one among them, that all wait, too long, for different things: some for what others
    say, at a call, the others for devices, inside one. None of them would ever come."""
    talking = [process for process, each in sorted(standings.items()) if each.talking]
    still = all(each.waiting and now - each.moved_seconds > timeout_seconds for each in standings.values())
    if not still or not 0 < len(talking) < len(standings):
        return None
    return Failure(
        talking[0],
        got=f"a call, for {timeout_seconds:g} seconds, while others are still in the one before it",
        expected="the same calls in all processes",
        fix=SAME_CALLS,
    )


def behind(
    standings: Mapping[int, Standing], own: Standing, *, now: float, timeout_seconds: float
) -> Failure | None:
    """The first process that this one has been waiting for, too long, though it lives.

    It is one that does not wait itself and has not moved in all that time. Where all wait, they compute or
    exchange data together, however long that takes.
    """
    if not own.waiting or now - own.moved_seconds <= timeout_seconds:
        return None
    for process, standing in sorted(standings.items()):
        if not standing.waiting and now - standing.moved_seconds > timeout_seconds:
            return Failure(
                process,
                got=f"no progress for {timeout_seconds:g} seconds",
                expected="that it comes to the step in which others wait",
                fix="see what it does (its disk, its memory, its stdout), or allow a longer --peer-timeout",
            )
    return None
