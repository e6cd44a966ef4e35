"""The device that JAX takes where none is named: what a record says about it, and how large its cache is."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import jax

from endor_jax import processors
from endor_jax.errors import UnsupportedError
from endor_jax.kernels.backends import Implementation, implementations
from endor_jax.kernels.place import default_place
from endor_jax.streaming.cuda_runtime import find_runtime

L2_CACHE_SIZE = 38
"""cudaDevAttrL2CacheSize."""
CACHE_BYTES = 128 * 2**20
"""Taken where the device does not tell: more than any has (H100 50 MiB, H200 60 MB, B200 126 MiB)."""


@dataclass(frozen=True)
class DeviceFacts:
    """What is measured on. cache_from: who told `cache_bytes`, the size of the last-level cache."""

    platform: str
    kind: str
    capability: str | None
    runtime: str
    memory_bytes: int | None
    cache_bytes: int
    cache_from: str


def on_a_device() -> bool:
    """Whether JAX computes on something else than the CPU by default."""
    return jax.default_backend() != "cpu"


def device_facts() -> DeviceFacts:
    """Of the default device."""
    device = jax.devices()[0]
    cache_bytes, cache_from = _cache(device.platform, device.local_hardware_id)
    return DeviceFacts(
        platform=device.platform,
        kind=device.device_kind,
        capability=getattr(device, "compute_capability", None),
        runtime=device.client.platform_version,
        memory_bytes=(device.memory_stats() or {}).get("bytes_limit"),
        cache_bytes=cache_bytes,
        cache_from=cache_from,
    )


def device_implementations() -> tuple[Implementation, ...]:
    """Those of the default device that need nothing but JAX: the CPU's own has a benchmark of its own."""
    return tuple(name for name in implementations(default_place()) if name != "cpu")


def _cache(platform: str, ordinal: int | None) -> tuple[int, str]:
    """Size of the last-level cache, and who told it: JAX does not."""
    if platform == "cpu":
        return processors.last_level_cache_bytes(), "Linux"
    try:
        size = ctypes.c_int()
        find_runtime().call("cudaDeviceGetAttribute", ctypes.byref(size), L2_CACHE_SIZE, ordinal or 0)
    except (UnsupportedError, AttributeError):  # no CUDA there
        return CACHE_BYTES, "assumed"
    return size.value, "CUDA"
