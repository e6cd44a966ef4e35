"""The timeline of a stream: what each stage did and how long the schedule waited for it.

Totals are always kept, for they cost next to nothing; single spans only for who asks (`endor trace`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any, Literal, TypeAlias

import jax

Stage = Literal["read", "put", "step", "wait for read", "wait for transfer", "wait for step"]

Ends: TypeAlias = "queue.SimpleQueue[tuple[str, float, int, Any] | None]"
"""Record, when it was issued, bytes, result."""
WAITS: tuple[Stage, ...] = ("wait for read", "wait for transfer", "wait for step")


@dataclass(frozen=True)
class Span:
    """Something that went on from `start_seconds` to `end_seconds`, by the clock of `time.perf_counter`.

    issued_seconds: when the schedule issued it; it may have had to wait for its turn. size_bytes: read or
    transferred, else 0. lane: which of the reads that were under way at once, else 0.
    """

    stage: Stage
    record: str
    issued_seconds: float
    start_seconds: float
    end_seconds: float
    size_bytes: int = 0
    lane: int = 0


@dataclass(frozen=True)
class Stages:
    """Totals of some passes; subtract two for those in between.

    read_bytes, read_busy_seconds: what readers read, and the time in which at least one of them did. The
    waits are those of the schedule: for a record to be read, for it to arrive, for the device to be done
    with a step. Whichever is longest names the stage that everything else waited for.
    """

    passes: int = 0
    pass_seconds: float = 0.0
    read_bytes: int = 0
    read_busy_seconds: float = 0.0
    read_wait_seconds: float = 0.0
    transfer_wait_seconds: float = 0.0
    step_wait_seconds: float = 0.0

    def __sub__(self, before: Stages) -> Stages:
        return Stages(*(b - a for a, b in zip(astuple(before), astuple(self), strict=True)))


class Timeline:
    """Collects times. Its methods may be called from several threads.

    keep: also keep every span, and when steps and transfers really ended; a thread waits for them then.
    spans: those kept, in no order.
    """

    def __init__(self, *, keep: bool = False):
        self.keep = keep
        self.spans: list[Span] = []
        self._lock = threading.Lock()
        self._waited: dict[Stage, float] = {stage: 0.0 for stage in WAITS}
        self._passes, self._pass_seconds = 0, 0.0
        self._read_bytes, self._read_busy, self._busy_since = 0, 0.0, 0.0
        self._lanes: list[bool] = []
        self._watchers: dict[Stage, tuple[threading.Thread, Ends]] = {}

    @property
    def stages(self) -> Stages:
        """Totals up to now."""
        with self._lock:
            going_on = time.perf_counter() - self._busy_since if any(self._lanes) else 0.0
            return Stages(
                passes=self._passes,
                pass_seconds=self._pass_seconds,
                read_bytes=self._read_bytes,
                read_busy_seconds=self._read_busy + going_on,
                read_wait_seconds=self._waited["wait for read"],
                transfer_wait_seconds=self._waited["wait for transfer"],
                step_wait_seconds=self._waited["wait for step"],
            )

    @contextlib.contextmanager
    def reading(self, record: str, size_bytes: int) -> Iterator[None]:
        """Around a read."""
        with self._lock:
            start = time.perf_counter()
            if not any(self._lanes):
                self._busy_since = start
            lane = self._lanes.index(False) if False in self._lanes else len(self._lanes)
            self._lanes[lane : lane + 1] = [True]
        try:
            yield
        finally:
            with self._lock:
                end = time.perf_counter()
                self._lanes[lane] = False
                self._read_bytes += size_bytes
                if not any(self._lanes):
                    self._read_busy += end - self._busy_since
                if self.keep:
                    self.spans.append(Span("read", record, start, start, end, size_bytes, lane))

    @contextlib.contextmanager
    def waiting(self, stage: Stage, record: str) -> Iterator[None]:
        """Around a wait of the schedule."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            with self._lock:
                self._waited[stage] += end - start
            if self.keep:
                self.spans.append(Span(stage, record, start, start, end))

    def ends_with(self, stage: Stage, record: str, result: Any, *, size_bytes: int = 0) -> None:
        """Something that begins now and ends when `result`, arrays in any pytree, is ready."""
        if self.keep:
            if stage not in self._watchers:  # of its own: a transfer may end while a step goes on
                ends: Ends = queue.SimpleQueue()
                watcher = threading.Thread(
                    target=self._watch, args=(stage, ends), name="endor-timeline", daemon=True
                )
                self._watchers[stage] = watcher, ends
                watcher.start()
            self._watchers[stage][1].put((record, time.perf_counter(), size_bytes, result))

    def _watch(self, stage: Stage, ends: Ends) -> None:
        free_at = 0.0
        while (item := ends.get()) is not None:
            record, issued, size_bytes, result = item
            with contextlib.suppress(Exception):  # the schedule, which waits for it too, has it raised
                jax.block_until_ready(result)
            end = time.perf_counter()
            # Steps run one after another, and so do transfers: what was issued early waits for its turn.
            start = max(issued, free_at)
            free_at = end
            self.spans.append(Span(stage, record, issued, start, end, size_bytes))
            del item, result

    def passed(self, seconds: float) -> None:
        """After a pass."""
        with self._lock:
            self._passes += 1
            self._pass_seconds += seconds

    def close(self) -> None:
        """Waits for what has begun to end. Idempotent."""
        for watcher in self.abandon():
            watcher.join()

    def abandon(self) -> list[threading.Thread]:
        """As `close`, but waits for nothing: garbage is collected anywhere, also in a thread that watches.

        Returns those threads, which end soon.
        """
        watchers, self._watchers = self._watchers, {}
        for _, ends in watchers.values():
            ends.put(None)
        return [watcher for watcher, _ in watchers.values()]
