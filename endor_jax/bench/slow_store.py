"""A checkpoint on a disk of a fixed rate, slower than the one it is on: what is read takes bytes / rate."""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from endor_jax.errors import OptionError
from endor_jax.store.manifest import Part
from endor_jax.store.reader import Checkpoint


class SlowCheckpoint(Checkpoint):
    """Reads of n bytes, by however many threads at once, take n / rate seconds in all.

    Each is over when its bytes are read and their time has come; a disk that was idle saves up nothing.
    """

    def __init__(self, path: str | os.PathLike[str], *, reader: str | None, bytes_per_second: float):
        """Opens it, as Checkpoint does. Raises as that does, OptionError for a rate that is not positive."""
        if not bytes_per_second > 0:
            raise OptionError(
                "rate",
                got=f"{bytes_per_second:g} bytes per second",
                expected="more than 0",
                fix="say 500MB for example",
            )
        super().__init__(path, reader=reader)
        self.bytes_per_second = bytes_per_second
        self._free_at, self._turn = 0.0, threading.Lock()

    def read_part(self, part: Part, *, into: np.ndarray) -> None:
        """As Checkpoint does, and no sooner than the disk would be done with it and all before it."""
        with self._turn:
            self._free_at = (
                max(time.perf_counter(), self._free_at) + part.length_bytes / self.bytes_per_second
            )
            over = self._free_at
        super().read_part(part, into=into)
        time.sleep(max(over - time.perf_counter(), 0.0))
