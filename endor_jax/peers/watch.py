"""The watch: a thread in which a process says how far it is, hears it of the others, and judges them.

The lines form a star: process 0 has one to each of the others, and passes on what it hears.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from endor_jax.peers.ending import exit_code, leave
from endor_jax.peers.line import Line, close_all
from endor_jax.peers.standing import SAME_CALLS, Failure, Standing, apart, behind, said, silent

MOST_BEAT_SECONDS = 1.0
BEATS_PER_TIMEOUT = 20
"""Beats come at least every second, and this often in the time after which silence is a failure."""


class Watch:
    """Watches from its start to `close`; its methods are for one other thread, in which the run goes on.

    lines: to process 0, or to all others. failure: the first one known, which is the same in all processes
    unless several fail at once. If the run has not closed this object timeout_seconds after a failure,
    because it is in a call that does not return, the process ends here, with the error on stderr.
    """

    def __init__(self, lines: Mapping[int, Line], *, index: int, processes: int, timeout_seconds: float):
        now = time.monotonic()
        self._lines = dict(lines)
        self._index, self._processes, self._timeout = index, processes, timeout_seconds
        self._own = Standing(now, now)
        self._standings = {i: Standing(now, now) for i in range(processes) if i != index}
        self.failure: Failure | None = None
        self._failed_at = 0.0
        self._lock = threading.Lock()
        self._answers: dict[int, dict[int, Mapping[str, Any]]] = {}
        """Of process 0: what each process has said in a round of `exchange`."""
        self._agreed: dict[int, list[str]] = {}
        self._round = 0
        self._over = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endor-peers", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def waiting(self, *, talking: bool = False) -> Iterator[None]:
        """Around a wait for what other processes take part in. talking: for what they say."""
        self._own = said(self._own, self._own.moves, True, now=time.monotonic(), talking=talking)
        try:
            yield
        finally:
            self._own = said(self._own, self._own.moves + 1, False, now=time.monotonic())

    def moved(self) -> None:
        """Progress between waits."""
        own = self._own
        self._own = said(own, own.moves + 1, own.waiting, now=time.monotonic())

    def exchange(self, value: str, *, last: bool = False) -> list[str] | None:
        """Says something to all, and waits for what they say: the values of all processes in order.

        last: from then on, processes may leave. None after a failure.
        """
        self._round += 1
        message = {"kind": "say", "round": self._round, "process": self._index, "value": value, "last": last}
        with self.waiting(talking=True):
            if self._index == 0:
                self._hear_value(message)
            else:
                self._send(0, message)
            while self._round not in self._agreed and self.failure is None:
                time.sleep(0.002)
        return self._agreed.pop(self._round, None)

    def fail(self, failure: Failure) -> None:
        """Makes it the failure of the run, and tells the others, unless there is one already."""
        with self._lock:
            if self.failure is not None or self._over:
                return
            self._failed_at = time.monotonic()
            self.failure = failure
        message = {"kind": "failure", "failure": vars(failure)}
        for process in list(self._lines):
            self._send(process, message)

    def close(self) -> None:
        """Ends the thread and the lines. Idempotent."""
        self._closing.set()
        self._thread.join()
        lines, self._lines = self._lines, {}
        close_all(lines.values())

    def _send(self, process: int, message: Mapping[str, Any]) -> None:
        """A line that has ended is found out where it is read."""
        with contextlib.suppress(OSError):
            self._lines[process].send(message)

    def _run(self) -> None:
        beat_seconds = min(MOST_BEAT_SECONDS, self._timeout / BEATS_PER_TIMEOUT)
        ended: set[int] = set()
        beaten = looked = time.monotonic()
        while not self._closing.is_set():
            lines = {line: process for process, line in self._lines.items() if process not in ended}
            readable = select.select(list(lines), [], [], beat_seconds / 2)[0]
            for line in readable:
                ended |= self._listen(lines[line], line)
            now = time.monotonic()
            if (
                now - looked > self._timeout / 2
            ):  # it was this process that was stopped: hear the others first
                self._pardon(now)
            elif self.failure is None and not self._over:
                self._judge(now)
            looked = now
            if now - beaten >= beat_seconds:
                self._beat()
                beaten = now
            if self.failure is not None and now - self._failed_at > self._timeout:
                self._leave(self.failure)

    def _listen(self, process: int, line: Line) -> set[int]:
        """What a process says. It itself, if its line has ended."""
        try:
            for message in line.receive():
                self._hear(process, message)
        except (OSError, ValueError, LookupError, TypeError) as error:
            how = "" if isinstance(error, OSError) else f" after a message that is none: {error}"
            self.fail(
                Failure(
                    process,
                    got=f"the end of its connection{how}",
                    expected="an open one",
                    fix="see whether it was killed or crashed, and start all processes again",
                )
            )
            return {process}
        return set()

    def _hear(self, process: int, message: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if message["kind"] == "beat":
            for name, (moves, waiting, talking) in message["standings"].items():
                if int(name) != self._index:
                    before = self._standings[int(name)]
                    self._standings[int(name)] = said(before, moves, waiting, now=now, talking=talking)
        elif message["kind"] == "failure":
            self.fail(Failure(**message["failure"]))
        elif message["kind"] == "say":
            self._hear_value(message)
        elif message["kind"] == "said":
            self._over = self._over or message["last"]
            self._agreed[message["round"]] = message["values"]
        self._standings[process] = replace(self._standings[process], heard_seconds=now)

    def _hear_value(self, message: Mapping[str, Any]) -> None:
        """Process 0: what a process has said in a round; when all have, they are told."""
        with self._lock:
            answers = self._answers.setdefault(message["round"], {})
            answers[message["process"]] = message
            if len(answers) < self._processes:
                return
            del self._answers[message["round"]]
            values = [answers[i]["value"] for i in range(self._processes)]
            done = [i for i, answer in sorted(answers.items()) if answer["last"]]
            uneven = 0 < len(done) < self._processes
            self._over = self._over or (message["last"] and not uneven)
        if uneven:
            self.fail(
                Failure(
                    done[0],
                    got="the end of its work, while others go on",
                    expected="the same calls in all processes",
                    fix=SAME_CALLS,
                )
            )
            return
        for process in list(self._lines):
            self._send(process, {**message, "kind": "said", "values": values})
        self._agreed[message["round"]] = values

    def _beat(self) -> None:
        known = {self._index: self._own} | (self._standings if self._index == 0 else {})
        values = {str(i): (each.moves, each.waiting, each.talking) for i, each in known.items()}
        for process in list(self._lines):
            self._send(process, {"kind": "beat", "standings": values})

    def _pardon(self, now: float) -> None:
        """Counts from now on what was heard before this process was stopped itself."""
        for i, each in self._standings.items():
            self._standings[i] = replace(each, heard_seconds=now, moved_seconds=now)

    def _judge(self, now: float) -> None:
        connected = {i: self._standings[i] for i in self._lines}
        limits = {"now": now, "timeout_seconds": self._timeout}
        failure = (
            silent(connected, **limits)
            or behind(self._standings, self._own, **limits)
            or apart({**self._standings, self._index: self._own}, **limits)
        )
        if failure is not None:
            self.fail(failure)

    def _leave(self, failure: Failure) -> None:
        error = failure.error(self._processes)
        sys.stderr.write(f"endor: {error}\n")
        leave(exit_code(error))
