"""Moving a part from a host buffer to the device."""

from __future__ import annotations

from typing import TypeAlias

import jax
import numpy as np

from endor_jax.streaming.ring import aligned_buffer

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no types


def put(slot: np.ndarray, size_bytes: int, device: Device) -> jax.Array:
    """The first `size_bytes` of a uint8 slot as a (size / 4,) uint32 array on the device.

    The transfer may still be running: the slot may be written again only after `block_until_ready`. On CPU
    the bytes are copied at once, because `device_put` there aliases the slot; and not by
    `jnp.array(copy=True)`, which copies twice, into memory that malloc then keeps.
    """
    if device.platform == "cpu":
        copy = aligned_buffer(size_bytes)
        np.copyto(copy, slot[:size_bytes])
        slot = copy
    return adopt(slot, size_bytes, device)


def adopt(buffer: np.ndarray, size_bytes: int, device: Device) -> jax.Array:
    """The same of a buffer that is never written again: on CPU, it becomes the array, without a copy."""
    return jax.device_put(buffer[:size_bytes].view(np.uint32), device)
