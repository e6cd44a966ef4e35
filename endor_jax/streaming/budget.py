"""How much memory there is to plan with: the machine's free memory where the user gave no budget."""

from __future__ import annotations

import os

from endor_jax.streaming.sizes import parse_size
from endor_jax.streaming.transfer import Device

FREE_SHARE = 0.9
"""Share of the free memory that a default budget takes."""


def budgets(
    device: Device, device_memory: str | int | None, host_memory: str | int | None
) -> tuple[int, int]:
    """Device and host budget in bytes: what was asked for, else 90 % of what is free.

    On CPU both are the same memory: what the device budget takes is not free for the host one, which is left
    a tenth at least, because what the device may take it need not take.
    """
    free = free_host_bytes()
    if device_memory is not None:
        device_bytes = parse_size(device_memory)
    else:
        device_bytes = int(FREE_SHARE * (free if device.platform == "cpu" else free_device_bytes(device)))
    if host_memory is not None:
        return device_bytes, parse_size(host_memory)
    taken = device_bytes if device.platform == "cpu" else 0
    return device_bytes, int(max(FREE_SHARE * (free - taken), (1 - FREE_SHARE) * free))


def free_host_bytes() -> int:
    """Memory that can be used without swapping: MemAvailable on Linux, else the physical memory."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (FileNotFoundError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_device_bytes(device: Device) -> int:
    """What JAX's own pool on the device can still give out."""
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0))
