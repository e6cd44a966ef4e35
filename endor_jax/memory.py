"""Memory of this process: how much it has taken, how much is free, and page-aligned blocks of it."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
from pathlib import Path

import numpy as np


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status("VmRSS")


def peak_host_bytes() -> int:
    """Peak resident memory of this process so far."""
    # ru_maxrss would do, but it survives exec: a child would report its parent's peak.
    return _status("VmHWM")


def give_back() -> None:
    """Lets glibc return to the system what it keeps for later; another C library is left alone.

    Freed arrays of up to 32 MiB stay in its heaps otherwise, and count as ours.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    try:
        with open("/proc/self/status") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith(field))
    except FileNotFoundError:  # no Linux: the peak stands for both
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def free_host_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can be used without swapping, within the limit of this process's control group.

    group: the directory of that group (cgroup v2), where there is one.
    """
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (FileNotFoundError, KeyError):  # no Linux: the physical memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text()) - _page_cache_bytes(group)
    except OSError:  # no control groups, or of version 1
        return free
    return free if limit == "max" else min(free, max(int(limit) - used, 0))


def _page_cache_bytes(group: Path) -> int:
    """What of a group's `memory.current` holds files: the kernel takes it back when memory is wanted."""
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(count) for name, count in lines if name in ("inactive_file", "active_file"))


def aligned_buffer(size_bytes: int) -> np.ndarray:
    """(size,) uint8, zeroed, at a page boundary: what O_DIRECT, pinning and fast copies want.

    Mapped, not allocated: malloc keeps large blocks after they are freed, a mapping goes back at once.
    """
    memory = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: faulting in small pages costs five times a copy
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size_bytes]
