"""How much memory there is to plan with: the machine's free memory where the user gave no budget."""

from __future__ import annotations

import contextlib

import jax.numpy as jnp

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.memory import free_host_bytes
from endor_jax.streaming.cuda_runtime import find_runtime, unclaimed_bytes
from endor_jax.streaming.memory_pools import free_in_pool
from endor_jax.streaming.sizes import parse_size
from endor_jax.streaming.transfer import Device

FREE_SHARE = 0.9
"""Share of the free memory that default budgets take."""
HOST_SHARE = 0.2
"""Of that, the host budget's part where device and host are one memory."""


def default_device() -> Device:
    """Where JAX puts arrays when nobody says: its first device, or that of `jax.default_device`."""
    return next(iter(jnp.zeros(()).devices()))


def budgets(
    device: Device, device_memory: str | int | None, host_memory: str | int | None, *, devices: int = 1
) -> tuple[int, int]:
    """Device and host budget in bytes: what was asked for, else 90 % of what is free.

    devices: how many like `device` this process has in the stream; the device budget is that of each.

    On CPU both are one memory: default budgets share the 90 %, and what one budget was given is not free for
    the other, which keeps a tenth at least. Raises InvalidInputError where a device does not tell how much
    memory it has.
    """
    device_asked = None if device_memory is None else parse_size(device_memory)
    host_asked = None if host_memory is None else parse_size(host_memory)
    free = int(FREE_SHARE * free_host_bytes())
    if device.platform == "cpu":
        host = (
            int(HOST_SHARE * free) if device_asked is None else max(free - devices * device_asked, free // 10)
        )
        on_device = max(free - (host if host_asked is None else host_asked), 0) // devices
    else:
        host = free
        on_device = int(FREE_SHARE * free_device_bytes(device)) if device_asked is None else 0
    return on_device if device_asked is None else device_asked, host if host_asked is None else host_asked


def free_device_bytes(device: Device) -> int:
    """What JAX's own pool on the device can still give out, as far as other processes have left it room."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        raise InvalidInputError(
            f"device {device}",
            got="no figure for its memory",
            expected="one, to take 90 % of it",
            fix="give a budget: device_memory (--device-memory)",
        )
    unclaimed = None
    if device.platform == "gpu":
        with contextlib.suppress(UnsupportedError):  # not CUDA: what the pool says stands
            unclaimed = unclaimed_bytes(find_runtime(), device.local_hardware_id or 0)
    return free_in_pool(stats, unclaimed_bytes=unclaimed)
