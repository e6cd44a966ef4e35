"""How much memory this process has taken."""

from __future__ import annotations

import resource
import sys


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status("VmRSS")


def peak_host_bytes() -> int:
    """Peak resident memory of this process so far."""
    # ru_maxrss would do, but it survives exec: a child would report its parent's peak.
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        with open("/proc/self/status") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith(field))
    except FileNotFoundError:  # no Linux: the peak stands for both
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
