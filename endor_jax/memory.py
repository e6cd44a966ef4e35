"""How much memory this process has taken, and how much is free."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path


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


def free_host_bytes() -> int:
    """Memory that can be used without swapping, within the limit of this process's control group."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (FileNotFoundError, KeyError):  # no Linux: the physical memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no control groups, or of version 1
        return free
    return free if limit == "max" else min(free, max(int(limit) - int(used), 0))
