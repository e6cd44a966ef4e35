"""`Peers`: the other processes of the run, as this one works, waits and ends with them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar

import jax

from endor_jax.errors import PeerError
from endor_jax.peers.ending import Ending, exit_code
from endor_jax.peers.standing import Failure
from endor_jax.peers.watch import Watch

KNOWN_SECONDS = 2.0
"""How long an error of a collective waits to be explained: whoever dies takes all its connections along."""

SHORTEST_NAP_SECONDS, LONGEST_NAP_SECONDS, NAP_SHARE = 20e-6, 2e-3, 1 / 32
"""Between two looks at arrays that are not ready: the last in parts of the wait so far."""

T = TypeVar("T")


class Peers:
    """The other processes of the run; a context in which all work on it is done.

    When the context is left by an error, all other processes end with a PeerError that names this process
    and its error; when one of them fails, this one leaves the context with that PeerError, at the latest
    timeout_seconds after the other one was last heard. After either, Python ends at once when it ends,
    with the error's exit code (`exit_code`), whatever the devices are still waiting for.
    """

    def __init__(self, watch: Watch, ending: Ending, *, index: int, processes: int, timeout_seconds: float):
        self.index, self.processes, self.timeout_seconds = index, processes, timeout_seconds
        self._watch, self._ending = watch, ending
        self._closed = False

    def wait(self, arrays: T) -> T:
        """`jax.block_until_ready`, but it ends when another process fails: raises PeerError then."""
        with self._watch.waiting():
            start = time.monotonic()
            for array in jax.tree.leaves(arrays):
                while isinstance(array, jax.Array) and not array.is_deleted() and not array.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
                    self._look()
                    waited = NAP_SHARE * (time.monotonic() - start)
                    time.sleep(min(max(waited, SHORTEST_NAP_SECONDS), LONGEST_NAP_SECONDS))
            try:
                return jax.block_until_ready(arrays)
            except jax.errors.JaxRuntimeError as error:
                raise self.explained(error) from error

    def progress(self) -> None:
        """Says that this process gets on, where that takes long without a `wait`."""
        self._look()
        self._watch.moved()

    def agree(self, values: Mapping[str, str]) -> None:
        """Compares what must be equal in all processes. Raises PeerError, the same in all, if it is not."""
        every = self._watch.exchange(json.dumps(dict(values)))
        if every is None:
            self._look()
        assert every is not None
        first, *others = [json.loads(each) for each in every]
        for process, other in enumerate(others, start=1):
            for name in [*first, *(name for name in other if name not in first)]:
                if first.get(name) != other.get(name):
                    failure = Failure(
                        process,
                        got=f"{name} {other.get(name)}",
                        expected=f"{first.get(name)} as in process 0",
                        fix="start all processes with the same checkpoint and the same options",
                    )
                    raise failure.error(self.processes)

    def fail(self, error: BaseException) -> None:
        """Tells all others that this process ends by an error; without effect once the run has failed."""
        self._ending.end_with(exit_code(error))
        text = f"{type(error).__name__}: {error}".strip(": ")[:4000]
        failure = Failure(
            self.index,
            got=f"its own error, {text}",
            expected="none",
            fix="see what it says, and start all again",
        )
        self._watch.fail(failure)

    def close(self) -> None:
        """Waits until all processes are done, and ends the connections; after a failure only the latter.

        Idempotent. Raises PeerError if another process fails instead.
        """
        if self._closed:
            return
        try:
            if self._watch.failure is None and self._watch.exchange("done", last=True) is not None:
                # Now, while all are here. JAX would do it when the process ends, which may be much later.
                jax.distributed.shutdown()
                self._ending.restore()
            else:
                self._look()
        except BaseException as error:
            self._ending.end_with(exit_code(error))
            raise
        finally:
            self._end()

    def _end(self) -> None:
        self._closed = True
        self._watch.close()

    def _look(self) -> None:
        """Raises PeerError if a process has failed."""
        failure = self._watch.failure
        if failure is not None:
            error = failure.error(self.processes)
            self._ending.end_with(exit_code(error))
            raise error

    def explained(self, error: BaseException) -> BaseException:
        """The PeerError that explains an error of a collective, if there is one; else the error."""
        deadline = time.monotonic() + min(KNOWN_SECONDS, self.timeout_seconds)
        while self._watch.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            self._look()
        except PeerError as known:
            return known
        return error

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            if isinstance(error, jax.errors.JaxRuntimeError):
                explained = self.explained(error)
                if explained is not error:
                    raise explained from error
            self.fail(error)
        finally:
            self._end()


def wait_with(peers: Peers | None, arrays: T) -> T:
    """`jax.block_until_ready`; over several processes it ends with a PeerError when one of them fails."""
    return jax.block_until_ready(arrays) if peers is None else peers.wait(arrays)
