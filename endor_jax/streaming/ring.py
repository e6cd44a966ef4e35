"""The host ring: page-aligned slots, allocated once, that parts are read into, and nothing grows."""

from __future__ import annotations

import mmap

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.memory import aligned_buffer


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
