"""The ring and the transfer: bounded, aligned, and no array depends on a slot that was given back."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest

from endor_jax.streaming.ring import Ring, aligned_buffer
from endor_jax.streaming.transfer import put, shares_memory


@pytest.mark.parametrize("size", [0, 1, 4096, 100_001, 3 * 2**20])
def test_buffers_are_aligned_and_zeroed(size: int) -> None:
    buffer = aligned_buffer(size)
    assert buffer.shape == (size,)
    assert not buffer.any()
    assert buffer.ctypes.data % 4096 == 0 or size == 0
    buffer[:] = 1


def test_ring_gives_out_what_it_has() -> None:
    ring = Ring(2, 4096)
    first, second = ring.acquire(), ring.acquire()
    assert first is not None
    assert second is not None
    threading.Timer(0.02, ring.release, [first]).start()
    assert ring.acquire() is first


def test_close_wakes_all_who_wait() -> None:
    ring = Ring(0, 4096)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(ring.acquire())) for _ in range(3)]
    for thread in threads:
        thread.start()
    ring.close()
    ring.close()
    for thread in threads:
        thread.join(10)
    assert found == [None] * 3
    ring.release(aligned_buffer(4096))
    assert ring.acquire() is None


def test_where_memory_is_shared_the_array_is_the_slot() -> None:
    """So it may be written again only when what was computed from it is there: the executor sees to that."""
    device = jax.local_devices()[0]
    assert shares_memory(device)
    slot = aligned_buffer(8192)
    slot[:] = np.random.default_rng(0).integers(0, 256, slot.shape, np.uint8)
    array = put(slot, 4096, device)
    assert (array.shape, array.dtype) == ((1024,), np.uint32)
    assert array.unsafe_buffer_pointer() == slot.ctypes.data
    np.testing.assert_array_equal(array, slot[:4096].view(np.uint32))
