"""The host ring: a fixed number of page-aligned buffers that parts are read into, and nothing grows."""

from __future__ import annotations

import mmap
import threading

import numpy as np


def aligned_buffer(size_bytes: int) -> np.ndarray:
    """(size,) uint8, zeroed, at a page boundary: what O_DIRECT, pinning and fast copies want.

    Mapped, not allocated: malloc keeps large blocks after they are freed, a mapping goes back at once.
    """
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: faulting in small pages costs five times a copy
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size_bytes]


class Ring:
    """`count` slots of `size_bytes`. Readers acquire, the transfer releases; `close` wakes all who wait."""

    def __init__(self, count: int, size_bytes: int):
        self.size_bytes = size_bytes
        self._free = [aligned_buffer(size_bytes) for _ in range(count)]
        self._changed = threading.Condition()
        self._closed = False

    def acquire(self) -> np.ndarray | None:
        """A free slot, waiting for one if need be; None once the ring is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            return None if self._closed else self._free.pop()

    def release(self, slot: np.ndarray) -> None:
        """Gives a slot back; nothing may read it any more."""
        with self._changed:
            if not self._closed:
                self._free.append(slot)
                self._changed.notify()

    def close(self) -> None:
        """Lets go of the memory and wakes all who wait. Idempotent."""
        with self._changed:
            self._closed = True
            self._free.clear()
            self._changed.notify_all()
