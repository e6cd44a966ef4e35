"""The objects of a checkpoint: read whole or by ranges into the caller's buffer, listed, written, deleted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import tensorstore as ts

from endor_jax.errors import CorruptCheckpointError, EndorError, IncompleteCheckpointError
from endor_jax.location import ObjectPath
from endor_jax.store.remote.driver import REQUESTS, open_driver
from endor_jax.store.remote.refusals import COPY_AGAIN, refused

REQUEST_BYTES = 4 * 2**20
"""Of one range: enough that a request's latency is not what it takes; docs/object-stores.md measures it."""
FETCH_BYTES = 2 * REQUESTS * REQUEST_BYTES
"""Most memory that answers take which are under way, TensorStore's copy and Python's."""
ANSWER_SECONDS = 60.0
"""A request that is not answered by then, TensorStore's retries included, is sent once more ..."""
ATTEMPTS = 2
"""... and then given up. Of requests that TensorStore gave up there is no second attempt."""
SLOWEST_BYTES_PER_SECOND = 2**20
"""For each of so many bytes that are written, an answer may take a second longer."""
ABSENT = b"\x02"
"""The generation that TensorStore gives to what is not there."""

T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """An object's bytes, and the generation that a write can ask for."""

    data: bytes
    generation: bytes


class Objects:
    """The objects below a prefix. Its methods may be called from several threads.

    bytes_fetched: of objects, that came over the network. All methods raise StorageError for a store that
    refuses, cannot be reached or does not answer, NotFoundError for a bucket that is not there.
    """

    def __init__(self, root: ObjectPath):
        self.root = root
        self.bytes_fetched = 0
        self._lock = threading.Lock()
        self._room = threading.Semaphore(REQUESTS)
        try:
            self._store = open_driver(root)
        except EndorError:
            raise
        except Exception as error:
            raise refused(error, root, "a place that can be opened") from None

    def get(self, name: str) -> Held | None:
        """A whole object; None if there is none."""
        result = self._answer(name, "to read it", lambda: self._store.read(name))
        if result.state != "value":
            return None
        return Held(self._counted(result.value), result.stamp.generation)

    def read(self, name: str) -> bytes:
        """A whole object. Raises IncompleteCheckpointError if there is none."""
        held = self.get(name)
        if held is None:
            raise self.missing(name)
        return held.data

    def read_into(self, name: str, into: np.ndarray, start: int = 0) -> None:
        """Bytes `start` and following of an object, as many as the (n,) uint8 buffer has, by several ranges.

        Raises IncompleteCheckpointError if there is none, CorruptCheckpointError if it is shorter.
        """
        waiting: deque[tuple[int, Callable[[], ts.Future[ts.KvStore.ReadResult]], ts.Future]] = deque()
        try:
            for first in range(0, into.shape[0], REQUEST_BYTES):
                last = min(first + REQUEST_BYTES, into.shape[0])
                # Room is for all who read here. Who has ranges under way takes one in instead of waiting.
                while not self._room.acquire(blocking=not waiting):
                    self._take(name, into, waiting)
                issue = self._issue(name, start + first, start + last)
                waiting.append((first, issue, issue()))
            while waiting:
                self._take(name, into, waiting)
        finally:
            for _ in waiting:  # an error: what is under way is forgotten, and stops
                self._room.release()

    def _take(self, name: str, into: np.ndarray, waiting: deque) -> None:
        """Copies the oldest range under way to its place."""
        first, issue, future = waiting[0]
        value = self._range(name, issue, future).value
        into[first : first + len(value)] = np.frombuffer(value, np.uint8)
        self._counted(value)
        waiting.popleft()
        self._room.release()

    def _issue(
        self, name: str, start: int, stop: int | None
    ) -> Callable[[], ts.Future[ts.KvStore.ReadResult]]:
        return lambda: self._store.read(name, byte_range=slice(start, stop))

    def _range(
        self,
        name: str,
        issue: Callable[[], ts.Future[ts.KvStore.ReadResult]],
        future: ts.Future[ts.KvStore.ReadResult] | None = None,
    ) -> ts.KvStore.ReadResult:
        result = self._answer(name, "to read it", issue, future)
        if result.state != "value":
            raise self.missing(name)
        return result

    def read_ends(self, starts: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """Names, and the bytes of each object from where it says to the end; raises as `read_into`.

        All are asked for at once: they should be few.
        """
        issues = {name: self._issue(name, start, None) for name, start in starts.items()}
        under_way = {name: issue() for name, issue in issues.items()}
        for name, issue in issues.items():
            yield name, self._counted(self._range(name, issue, under_way.pop(name)).value)

    def check_lengths(self, lengths: Mapping[str, int]) -> None:
        """Raises IncompleteCheckpointError or CorruptCheckpointError unless all are there, and so long.

        Asks for the end of every object, four bytes, because a length cannot be asked for.
        """
        for name, end in self.read_ends({name: length - 4 for name, length in lengths.items()}):
            if len(end) != 4:
                raise CorruptCheckpointError(
                    f"object {self.root / name}",
                    got=f"{lengths[name] - 4 + len(end):,} bytes",
                    expected=f"{lengths[name]:,}",
                    fix=f"it is too long, or that of another part; {COPY_AGAIN}",
                )

    def names(self) -> list[str]:
        """The names of all objects below the prefix, in order."""
        keys = self._answer("", "to list what is there", lambda: self._store.list())
        return sorted(key.decode("utf-8", "replace") for key in keys)

    def put(self, name: str, data: bytes, *, over: bytes | None = None) -> bytes | None:
        """Writes a whole object, at once for whoever reads it; returns its generation.

        over: the generation of what may be replaced (`ABSENT` for nothing), if not anything; None is
        returned, and nothing written, if something else is there.
        """
        seconds = ANSWER_SECONDS + len(data) / SLOWEST_BYTES_PER_SECOND
        written = self._answer(
            name, "to write it", lambda: self._store.write(name, data, if_equal=over), seconds=seconds
        ).generation
        if written:
            return written
        # A write whose answer was lost is sent again, and finds itself.
        held = self.get(name)
        return held.generation if held is not None and held.data == data else None

    def delete(self, name: str) -> None:
        """Deletes an object, if it is there."""
        self._answer(name, "to delete it", lambda: self._store.write(name, None))

    def missing(self, name: str) -> IncompleteCheckpointError:
        """The error for an object that a manifest lists and that is not there."""
        return IncompleteCheckpointError(
            f"object {self.root / name}",
            got="no such object",
            expected="this object, which the manifest lists",
            fix=COPY_AGAIN,
        )

    def _counted(self, data: bytes) -> bytes:
        with self._lock:
            self.bytes_fetched += len(data)
        return data

    def _answer(
        self,
        name: str,
        expected: str,
        issue: Callable[[], ts.Future[T]],
        future: ts.Future[T] | None = None,
        *,
        seconds: float | None = None,
    ) -> T:
        """What a request gives; a request that hangs is sent once more. Raises as `refused` says, whatever
        TensorStore raises: its text has the answer's body."""
        seconds = ANSWER_SECONDS if seconds is None else seconds
        path = self.root / name if name else self.root
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return (issue() if future is None else future).result(timeout=seconds)
            except TimeoutError as error:
                future = None  # what hangs is given up
                if attempt == ATTEMPTS:
                    raise refused(error, path, f"{expected} within {ATTEMPTS} × {seconds:g} s") from None
            except Exception as error:  # TensorStore's status decides the class, NotImplementedError too
                raise refused(error, path, expected) from None
        raise AssertionError("every attempt returns or raises")
