"""What JAX's memory pools can still give: on the device, and of pinned host memory. Pure functions.

JAX takes a share of a GPU's memory when it starts (75 %, `XLA_CLIENT_MEM_FRACTION`) and gives out of that;
`bytes_limit` of `device.memory_stats()` is that share. Without preallocation the pool grows as it is asked,
so what other processes hold is not there for it to grow into. Pinned host memory is a pool too, with a limit
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from endor_jax.errors import DoesNotFitError, OptionError
from endor_jax.streaming.sizes import format_size

PINNED_LIMIT_VARIABLE = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"
PINNED_LIMIT_GIB = 64
"""Its default (xla/pjrt/gpu/gpu_helpers.cc; what XLA calls GB there are GiB)."""


def free_in_pool(stats: Mapping[str, int], *, unclaimed_bytes: int | None = None) -> int:
    """Bytes that JAX's pool on a device can still give out.

    stats: `device.memory_stats()`, with `bytes_limit`, `bytes_in_use`, and `pool_bytes`, what the pool has
    claimed from the device so far. unclaimed_bytes: what no process has claimed, `cudaMemGetInfo`; None where
    that is not known.
    """
    limit, used = int(stats["bytes_limit"]), int(stats.get("bytes_in_use", 0))
    if unclaimed_bytes is None or "pool_bytes" not in stats:
        return max(limit - used, 0)
    return max(min(limit, int(stats["pool_bytes"]) + unclaimed_bytes) - used, 0)


def pinned_pool_bytes(environment: Mapping[str, str]) -> int:
    """The limit of JAX's pinned host memory. environment: `os.environ`, as it was when JAX started.

    Raises OptionError for a limit that is no number: XLA would take its default and only log that.
    """
    given = environment.get(PINNED_LIMIT_VARIABLE, "")
    try:
        return int(given or PINNED_LIMIT_GIB) * 2**30
    except ValueError as error:
        raise OptionError(
            PINNED_LIMIT_VARIABLE, got=repr(given), expected="a number of GiB", fix="correct or unset it"
        ) from error


def check_pinned_pool(kept_bytes: int, pool_bytes: int) -> None:
    """Raises DoesNotFitError if the host tier is larger than JAX's pinned host memory; equal is enough."""
    if kept_bytes > pool_bytes:
        raise DoesNotFitError(
            "host tier as pinned_host arrays",
            got=f"a pool of {format_size(pool_bytes)}",
            expected=f"at least {format_size(kept_bytes)} ({kept_bytes:,} bytes)",
            fix=f"set {PINNED_LIMIT_VARIABLE} higher, or lower host_memory (--host-memory)",
        )
