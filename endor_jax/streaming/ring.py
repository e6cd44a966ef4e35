"""The host ring: page-aligned slots, allocated once, that parts are read into, and nothing grows."""

from __future__ import annotations

import mmap

import numpy as np

from endor_jax.arrays import round_up


def aligned_buffer(size_bytes: int) -> np.ndarray:
    """(size,) uint8, zeroed, at a page boundary: what O_DIRECT, pinning and fast copies want.

    Mapped, not allocated: malloc keeps large blocks after they are freed, a mapping goes back at once.
    """
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: faulting in small pages costs five times a copy
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size_bytes]


class Ring:
    """`count` slots of `size_bytes` in one block of memory. The schedule sees to it that one is free when it
    is acquired; so it belongs to the thread that walks the schedule.

    memory: all of it, (bytes,) uint8.
    """

    def __init__(self, count: int, size_bytes: int):
        pitch = round_up(size_bytes, mmap.PAGESIZE)
        self.size_bytes = size_bytes
        self.memory = aligned_buffer(count * pitch)
        self._free = [self.memory[i * pitch : i * pitch + size_bytes] for i in range(count)]

    def acquire(self) -> np.ndarray:
        """A free slot."""
        return self._free.pop()

    def release(self, slot: np.ndarray) -> None:
        """Gives a slot back; nothing may read it any more."""
        self._free.append(slot)

    def close(self) -> None:
        """Lets go of the memory. Idempotent."""
        self._free.clear()
        self.memory = aligned_buffer(0)
