"""Moving a part from a host buffer to the device."""

from __future__ import annotations

from typing import TypeAlias

import jax
import numpy as np

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no types


def put(buffer: np.ndarray, size_bytes: int, device: Device) -> jax.Array:
    """The first `size_bytes` of a uint8 buffer as a (size / 4,) uint32 array on the device.

    The transfer may still be running: the buffer may be written again only after `block_until_ready`. Where
    device and host share memory, nothing is copied (if the buffer is aligned): the array is the buffer, which
    may be written again only when nothing that was computed from the array is still running.
    """
    return jax.device_put(buffer[:size_bytes].view(np.uint32), device)


def shares_memory(device: Device) -> bool:
    """Whether arrays on the device are where the host has them: on CPU."""
    return device.platform == "cpu"
