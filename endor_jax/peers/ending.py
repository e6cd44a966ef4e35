"""How a process ends whose run has failed: with its error's exit code, in bounded time.

Collectives that never complete, and JAX's own end, would keep it from that. At exit JAX waits for what is
under way on the devices, then for all processes at a barrier, and ends the process by abort() when one does
not come. And as soon as process 0 is gone, JAX calls abort() in all others, from a thread of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

from endor_jax.errors import EndorError

LOOK_SECONDS = 0.05

HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def exit_code(error: BaseException) -> int:
    """What a process ends with that ends by this error."""
    if isinstance(error, EndorError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def leave(code: int) -> None:
    """Ends the process now: what was written is flushed, and nothing else happens."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


class Ending:
    """From now on the end of this process is ours, until `restore`.

    failed: whether the run has failed. seconds: how long abort() is put off then, while the error is raised
    and said; and before, how long it may take until the failure is known.
    """

    def __init__(self, failed: Callable[[], bool], *, seconds: float):
        self._failed, self._seconds = failed, seconds
        self._code: int | None = None
        self._restored = False
        atexit.register(self._at_exit)
        # Not Python's `signal`: its handlers run in the main thread, after abort() would have ended it. This
        # one runs in the thread that aborts, and goes on with abort() when it returns.
        self._set = ctypes.CDLL(None).signal
        self._set.restype, self._set.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
        self._handler = HANDLER(self._aborting)
        self._before = self._set(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def end_with(self, code: int) -> None:
        """When Python ends, it is at once and with this code: what is registered with `atexit` before this
        object was made does not run, JAX's end among it."""
        self._code = code

    def restore(self) -> None:
        """The process ends as it would without us. Idempotent."""
        if not self._restored:
            atexit.unregister(self._at_exit)
            self._set(signal.SIGABRT, self._before)
            self._restored = True

    def _at_exit(self) -> None:
        if self._code is not None:
            leave(self._code)

    def _aborting(self, number: int) -> None:
        """In the thread that calls abort(): gives the others time to say why, if it is for a failed run."""
        known = time.monotonic() + min(self._seconds, 2.0)
        while not self._failed() and time.monotonic() < known:
            time.sleep(LOOK_SECONDS)
        if self._failed():
            time.sleep(2 * self._seconds)
