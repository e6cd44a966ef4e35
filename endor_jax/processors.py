"""The processors that this process may run on, and their caches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

CPUS = Path("/sys/devices/system/cpu")
CACHE_BYTES = 32 * 2**20
"""Taken for the last-level cache where the machine does not tell: more than most have for one thread."""


def last_level_cache_bytes() -> int:
    """Of the largest cache that this process's CPUs share, or CACHE_BYTES."""
    return max((cache["bytes"] for cache in caches()), default=CACHE_BYTES)


def usable_cpus() -> tuple[int, ...]:
    """The CPUs that this process may run on, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def caches() -> list[dict[str, Any]]:
    """Level, kind, bytes and sharing CPUs of the first CPU's caches; empty where the system does not tell."""
    caches = []
    for index in sorted(CPUS.glob("cpu0/cache/index*")):
        text = {name: (index / name).read_text().strip() for name in ("level", "type", "size")}
        shared = index / "shared_cpu_list"
        units = {"K": 2**10, "M": 2**20, "G": 2**30}
        caches.append(
            {
                "level": int(text["level"]),
                "kind": text["type"],
                "bytes": int(text["size"][:-1]) * units[text["size"][-1]],
                "shared_by_cpus": shared.read_text().strip() if shared.is_file() else "",
            }
        )
    return caches
