"""The ring and the transfer: bounded, aligned, and no array depends on a slot that was given back."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from endor_jax.memory import aligned_buffer
from endor_jax.streaming.ring import Ring
from endor_jax.streaming.transfer import put, shares_memory


@pytest.mark.parametrize("size", [0, 1, 4096, 100_001, 3 * 2**20])
def test_buffers_are_aligned_and_zeroed(size: int) -> None:
    buffer = aligned_buffer(size)
    assert buffer.shape == (size,)
    assert not buffer.any()
    assert buffer.ctypes.data % 4096 == 0 or size == 0
    buffer[:] = 1


@pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
def test_slots_are_aligned_and_apart(size: int) -> None:
    ring = Ring(3, size)
    slots = [ring.acquire() for _ in range(3)]
    for i, slot in enumerate(slots):
        assert slot.shape == (size,)
        assert slot.ctypes.data % 4096 == 0 or size == 0
        slot[:] = i
    assert all((slot == i).all() for i, slot in enumerate(slots))
    assert all(np.shares_memory(slot, ring.memory) for slot in slots if size)


def test_ring_gives_out_what_it_has_and_no_more() -> None:
    ring = Ring(2, 4096)
    first = ring.acquire()
    ring.acquire()
    with pytest.raises(IndexError):  # a schedule that asks for more is wrong: nobody would give one back
        ring.acquire()
    ring.release(first)
    assert ring.acquire() is first


def test_close_lets_go_of_the_memory() -> None:
    ring = Ring(2, 4096)
    ring.close()
    ring.close()
    assert ring.memory.size == 0


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
