"""What no offloading can beat: the rate of the disk, of memory or of the link to a GPU, measured beside."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from endor_jax.bench.bandwidth import memory_contenders
from endor_jax.bench.race import race
from endor_jax.processors import last_level_cache_bytes, usable_cpus
from endor_jax.store.disk_rates import measure
from endor_jax.store.manifest import read_manifest
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.link_rates import measure_link

DISK_READERS = ("preadv", "direct")
MEMORY_SECONDS = 0.2
"""Of measuring, for each kind of page."""


@dataclass(frozen=True)
class Rate:
    """source: what is read. samples: bytes per second, one before every round."""

    source: str
    samples: tuple[float, ...]

    @property
    def bytes_per_second(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)


@dataclass(frozen=True)
class RateOf:
    """Something that has a rate. measure: bytes per second, now."""

    source: str
    measure: Callable[[], float]


def disk_rate(checkpoint: Path) -> RateOf:
    """That of the disk under the parts of a checkpoint: the best of all readers and reads in flight, cold."""
    parts = [(checkpoint / part.path, part.length_bytes) for part in read_manifest(checkpoint).parts]
    return RateOf("disk", lambda: max(rates.cold for rates in measure(parts, DISK_READERS).values()))


@contextmanager
def moving_rate(device: str) -> Iterator[RateOf]:
    """That at which weights which are in memory come to where they are used: of memory itself on a CPU (every
    weight is read once), of the link from pinned memory to a GPU."""
    if device == "cpu":
        threads, cache = len(usable_cpus()), last_level_cache_bytes()
        reading = memory_contenders(threads=threads, cache_bytes=cache, copying=False)
        yield RateOf(
            "memory",
            lambda: max(timing.bytes_per_second for timing in race(reading, seconds=MEMORY_SECONDS)),
        )
        return
    # In a process of its own: JAX in this one would take memory of the GPU, and time.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield RateOf("link", lambda: process.submit(link_bytes_per_second).result())


def link_bytes_per_second() -> float:
    """Of CUDA's own copy from pinned memory to JAX's first device, or of JAX's fastest where CUDA refuses."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    measured = measure_link(default_device())
    return measured.limit or max(max(rates.ring, rates.kept) for rates in measured.rates.values())
