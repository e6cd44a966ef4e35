"""What a device's link does: every way measured on it, with random parts, once per machine.

What is fastest depends on jaxlib (does it see that memory is pinned?), on the driver and on the machine, so
nothing is assumed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import math
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from endor_jax.errors import UnsupportedError
from endor_jax.memory import aligned_buffer
from endor_jax.store.remembered import recall, remember
from endor_jax.streaming.cuda_runtime import HOST_TO_DEVICE, find_runtime
from endor_jax.streaming.transfer import WAYS, Device, Source, Way, keep, pin_for, put

FILE = "links.json"
PART_BYTES = 32 * 2**20
PARTS = 4
"""In flight at once while measuring, as when streaming; together 128 MiB of both memories."""
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """Bytes per second of one way: for parts just read into the ring, and for parts kept in host memory."""

    ring: float
    kept: float


@dataclass(frozen=True)
class Measured:
    """What one device's link was measured to do.

    refused: ways that this machine does not have, and why. limit: bytes per second of CUDA's own copy from
    pinned memory, without JAX; None where CUDA refused it.
    """

    rates: Mapping[Way, Rates] = field(default_factory=dict)
    refused: Mapping[Way, str] = field(default_factory=dict)
    limit: float | None = None


def link_rates(device: Device, *, anew: bool = False) -> Measured:
    """What was measured on this machine, device and version of JAX: remembered, or measured now.

    anew: measures whatever is remembered. Takes well under a second.
    """
    known = None if anew else _recalled(device)
    if known is None:
        known = measure_link(device, part_bytes=PART_BYTES)
        rates = {way: [each.ring, each.kept] for way, each in known.rates.items()}
        remember(FILE, {_key(device): {"rates": rates, "limit": known.limit}})
    return known


def measure_link(device: Device, *, part_bytes: int = PART_BYTES) -> Measured:
    """Rates of every way to a device, by moving random parts several at a time.

    A way that the machine refuses has no rate, and the reason in `refused`.
    """
    refused = refusals(device)
    random = np.random.default_rng(0)
    buffers = [aligned_buffer(part_bytes) for _ in range(PARTS)]
    for buffer in buffers:
        buffer[:] = np.frombuffer(random.bytes(part_bytes), np.uint8)
    rates: dict[Way, Rates] = {}
    for way in WAYS:
        if way not in refused:
            rates[way] = _way_rates(way, buffers, device)
    limit = None
    if "registered" in rates:
        with contextlib.suppress(UnsupportedError):  # no room outside of JAX's pool: nothing depends on it
            limit = copy_rate(device, buffers[0])
    return Measured(rates, refused, limit)


def _way_rates(way: Way, buffers: Sequence[np.ndarray], device: Device) -> Rates:
    held = keep(buffers, [device] * len(buffers), way=way)
    try:
        kept = _rate(held.sources, device, way)
        # The other ways take the very same buffers from ring and host tier.
        ring = _rate(buffers, device, way) if way == "pinned_host" else kept
    finally:
        held.close()
    return Rates(ring, kept)


def _rate(sources: Sequence[Source], device: Device, way: Way) -> float:
    """Bytes per second of moving all sources, issued at once."""

    def move() -> None:
        jax.block_until_ready([put(source, source.nbytes, device, way=way) for source in sources])

    return sum(source.nbytes for source in sources) / _seconds(move)


def _seconds(call: Callable[[], None]) -> float:
    """Median of a few calls; the first, which sets memory aside, does not count."""
    call()
    samples = []
    for _ in range(REPEATS):
        clock = time.perf_counter()
        call()
        samples.append(time.perf_counter() - clock)
    return statistics.median(samples)


def copy_rate(device: Device, buffer: np.ndarray) -> float:
    """Bytes per second of `cudaMemcpy` from this page-aligned buffer, pinned, to a CUDA device: the link's
    limit, without JAX. Takes as much memory on the device, outside of JAX's pool. Raises UnsupportedError."""
    runtime, target = find_runtime(), ctypes.c_void_p()
    pinned = pin_for(device, buffer, runtime=runtime)
    try:
        with runtime.on_device(device.local_hardware_id or 0):
            runtime.call("cudaMalloc", ctypes.byref(target), buffer.nbytes)
            arguments = target, buffer.ctypes.data, buffer.nbytes, HOST_TO_DEVICE
            try:
                return buffer.nbytes / _seconds(lambda: runtime.call("cudaMemcpy", *arguments))
            finally:
                runtime.call("cudaFree", target)
    finally:
        pinned.close()


def refusals(device: Device) -> dict[Way, str]:
    """The ways that this machine does not have, and why, tried on a page."""
    refused: dict[Way, str] = {}
    for way in WAYS:
        try:
            keep([aligned_buffer(4096)], [device], way=way).close()
        except UnsupportedError as error:
            refused[way] = f"{error.where}: {error.got}"
    return refused


def _key(device: Device) -> str:
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
    return f"{socket.gethostname()}, {device.device_kind}, {versions}"


def _recalled(device: Device) -> Measured | None:
    """What is remembered, if it makes sense and the machine has the same ways now."""
    held, refused = recall(FILE, _key(device)), refusals(device)
    try:
        rates: dict[Way, Rates] = {
            way: Rates(*map(float, held["rates"][way])) for way in WAYS if way in held["rates"]
        }
        limit = None if held["limit"] is None else float(held["limit"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None  # absent or damaged: measuring again takes part of a second
    figures = [figure for each in rates.values() for figure in (each.ring, each.kept)]
    figures += [] if limit is None else [limit]
    if not all(math.isfinite(figure) and figure > 0 for figure in figures):
        return None
    return Measured(rates, refused, limit) if rates.keys() == set(WAYS) - refused.keys() else None
