"""The prefetcher: reader threads that fill ring slots with parts, in the order they will be needed, for ever.

Readers only fill slots; they never touch a device. The order is cyclic: after the last part of a pass comes
the first of the next. Whatever goes wrong in a reader is kept and raised where the part is taken.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from endor_jax.errors import EndorError, StreamError
from endor_jax.store.manifest import Part
from endor_jax.streaming.ring import Ring

READERS = 2
"""Reader threads: one reads while the other verifies or waits for a slot."""


@dataclass(frozen=True)
class Wanted:
    """One part of the cyclic order, with the record it belongs to (for errors)."""

    record: str
    part: Part


class Prefetcher:
    """Reads `order` over and over into the slots of `ring`; `take` hands the parts out in that order.

    read: fills a buffer with a part. A slot must go back to the ring when its bytes are no longer needed.
    """

    def __init__(self, order: Sequence[Wanted], ring: Ring, *, read: Callable[[Part, np.ndarray], None]):
        self._order, self._ring, self._read = tuple(order), ring, read
        self._ticket = itertools.count()
        self._taken = 0
        self._filled: dict[int, np.ndarray | EndorError] = {}
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"endor-reader-{i}", daemon=True)
            for i in range(READERS if order else 0)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while True:
            # Slots are given out in the order of tickets, or a late part could starve an early one.
            with self._turn:
                slot = self._ring.acquire()
                if slot is None:
                    return
                ticket = next(self._ticket)
            wanted = self._order[ticket % len(self._order)]
            result: np.ndarray | EndorError = slot
            try:
                self._read(wanted.part, slot)
            except BaseException as error:  # whatever it is: the consumer waits for this part
                result = _named(error, wanted)
            with self._changed:
                self._filled[ticket] = result
                self._changed.notify_all()
            if isinstance(result, EndorError):
                return

    def take(self) -> np.ndarray:
        """The slot that holds the next part, waiting for it if need be.

        Raises what went wrong while reading it, with record and file named; StreamError after `close`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._taken in self._filled or self._closed)
            if self._closed:
                raise closed_error()
            result = self._filled[self._taken]
            if isinstance(result, EndorError):
                raise result
            del self._filled[self._taken]
            self._taken += 1
            return result

    def close(self) -> None:
        """Stops the readers and waits for them. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._ring.close()
        if threading.current_thread() in self._threads:  # collecting garbage, it closed an abandoned stream
            return
        for thread in self._threads:
            thread.join()
        self._filled.clear()


def _named(error: BaseException, wanted: Wanted) -> EndorError:
    """The same error, saying for which record it happened."""
    where = f"record {wanted.record}, "
    if isinstance(error, EndorError):
        named = type(error)(where + error.where, got=error.got, expected=error.expected, fix=error.fix)
    else:
        named = StreamError(
            f"{where}part {wanted.part.path}",
            got=f"{type(error).__name__}: {error}",
            expected=f"{wanted.part.length_bytes:,} bytes",
            fix="see whether the checkpoint's disk is still there",
        )
    named.__cause__ = error
    return named


def closed_error(failure: BaseException | None = None) -> StreamError:
    """What a call after `close` raises, or after the error that closed it."""
    after = "close()" if failure is None else f"{type(failure).__name__}, which closed it"
    return StreamError(
        "stream",
        got=f"a call after {after}",
        expected="an open stream",
        fix="use it inside its with block" if failure is None else "open it again",
    )
