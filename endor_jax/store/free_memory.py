"""How much host memory is free: what the page cache can still take, and what a budget can be made of."""

from __future__ import annotations

import os
from pathlib import Path


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
