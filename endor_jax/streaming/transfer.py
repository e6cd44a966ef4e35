"""Moving a part from a host buffer to the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def put(buffer: np.ndarray, size_bytes: int, device: jax.Device) -> jax.Array:
    """The first `size_bytes` of a uint8 buffer as a (size / 4,) uint32 array on the device.

    The transfer may still be running: the buffer may be written again only after `block_until_ready`. On CPU
    the bytes are copied at once, because `device_put` there would alias the buffer.
    """
    words = buffer[:size_bytes].view(np.uint32)
    if device.platform == "cpu":
        return jnp.array(words, copy=True, device=device)
    return jax.device_put(words, device)
