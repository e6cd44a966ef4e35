"""What a generation took: counted bytes, measured seconds, peak memory."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

from endor_jax.streaming.transfer import Device


@dataclass(frozen=True)
class Statistics:
    """Figures of one generation.

    generation_seconds: from the second token on, without the time the consumer takes. bytes_read and
    bytes_transferred are those of its passes, counted where they happen. peak_host_bytes is the peak resident
    memory of the process; peak_device_bytes is what JAX's allocator reports, None on CPU, where device memory
    is host memory.
    """

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generation_seconds: float
    bytes_read: int
    bytes_transferred: int
    peak_host_bytes: int
    peak_device_bytes: int | None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens over the time to the first logits."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generation_tokens_per_second(self) -> float:
        """Decode steps over their time, without the first, which compiles; 0 for fewer than three tokens."""
        steps = self.generated_tokens - 2
        return steps / self.generation_seconds if steps > 0 and self.generation_seconds else 0.0


def peak_host_bytes() -> int:
    """Peak resident memory of this process so far."""
    try:
        with open("/proc/self/status") as file:
            # ru_maxrss would do, but it survives exec: a child would report its parent's peak.
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes(device: Device) -> int | None:
    """Peak bytes that JAX's allocator gave out on a device; None where it does not count (CPU)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
