"""The prefetcher: reader threads that fill slots with parts, in the order in which they were asked for.

Readers only fill slots; they never touch a device. Whatever goes wrong in a reader is raised where the
record is taken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from endor_jax.errors import EndorError, StreamError
from endor_jax.store.manifest import Part

Slots = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Reading:
    """A record whose parts are being read: a slot and a future for each."""

    record: str
    parts: tuple[Part, ...]
    slots: Slots
    futures: tuple[Future[None], ...]


class Prefetcher:
    """Reads records with `reads` threads; `take` hands them out in the order of `request`.

    read: fills a slot with a part; the name of the record comes with it.
    """

    def __init__(self, read: Callable[[str, Part, np.ndarray], None], *, reads: int):
        self._read = read
        self._queue: deque[Reading] = deque()
        self._closed = False
        self._pool = ThreadPoolExecutor(reads, thread_name_prefix="endor-reader")

    def request(self, record: str, parts: Sequence[Part], slots: Slots) -> None:
        """Has the parts of a record read into as many slots. Raises StreamError after `close`."""
        try:
            futures = tuple(
                self._pool.submit(self._read, record, part, slot)
                for part, slot in zip(parts, slots, strict=True)
            )
        except RuntimeError as error:  # the pool was shut down, or the system has no thread left
            raise closed_error() if self._closed else named(error, record, parts[0]) from error
        self._queue.append(Reading(record, tuple(parts), slots, futures))

    def take(self) -> Slots:
        """The filled slots of the next record, waiting for them if need be.

        Raises what went wrong while reading it, with record and file named, now and whenever it is called
        again; StreamError after `close`.
        """
        queue = self._queue  # which `close` replaces, perhaps in another thread
        if self._closed:
            raise closed_error()
        reading = queue[0]
        for part, future in zip(reading.parts, reading.futures, strict=True):
            try:
                error = future.exception()
            except CancelledError:
                raise closed_error() from None
            if error is not None:
                raise named(error, reading.record, part)
        if self._closed:
            raise closed_error()
        return queue.popleft().slots

    def abandon(self) -> None:
        """As `close`, where nobody did: the readers end when this object goes, and that is not waited for.

        Garbage is collected anywhere, also in a reader, or where a lock is held that a reader needs to end.
        """
        self._closed = True
        for reading in self._queue:
            for future in reading.futures:
                future.cancel()

    def close(self) -> None:
        """Stops the readers and waits for what they are reading. Idempotent."""
        self._closed = True
        reading = threading.current_thread().name.startswith("endor-reader")
        self._pool.shutdown(wait=not reading, cancel_futures=True)
        self._queue = deque()


def named(error: BaseException, record: str, part: Part) -> EndorError:
    """The same error, saying for which record it happened."""
    where = f"record {record}, "
    if isinstance(error, EndorError):
        same = type(error)(where + error.where, got=error.got, expected=error.expected, fix=error.fix)
    else:
        same = StreamError(
            f"{where}part {part.path}",
            got=f"{type(error).__name__}: {error}",
            expected=f"{part.length_bytes:,} bytes",
            fix="see whether the checkpoint's disk is still there",
        )
    same.__cause__ = error
    return same


def closed_error(failure: BaseException | None = None) -> StreamError:
    """What a call after `close` raises, or after the error that closed it."""
    after = "close()" if failure is None else f"{type(failure).__name__}, which closed it"
    return StreamError(
        "stream",
        got=f"a call after {after}",
        expected="an open stream",
        fix="use it inside its with block" if failure is None else "open it again",
    )
