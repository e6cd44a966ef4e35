"""What it costs that devices give each other what they computed: gathers over a mesh, measured, remembered.

A gather costs something however little it moves, because all devices wait for the last one; and then as its
bytes. On a CPU the devices of a mesh are threads that share its processors, so there both grow with their
number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from endor_jax.streaming.devices import Devices
from endor_jax.streaming.measure import turns_seconds
from endor_jax.streaming.rates import remembered

SIZES = 2**12, 2**20
"""Bytes that a gather leaves on each device: of one row of a small x, and of many rows of a large one."""
IN_ROW = 16
"""Gathers in one program, each of what the one before gave: what dispatch takes is a step's, not theirs."""


@dataclass(frozen=True)
class Gathering:
    """latency_seconds: of a gather of next to nothing. bytes_per_second: that it leaves on each device."""

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, left_bytes: int) -> float:
        """Of a gather that leaves so many bytes on each device."""
        return self.latency_seconds + left_bytes / self.bytes_per_second


NONE = Gathering(0.0, float("inf"))
"""That of one device."""


def gathering(devices: Devices, *, anew: bool = False) -> Gathering:
    """That of a mesh of this process's devices: remembered of this machine and so many, or measured now.

    anew: measures whatever was kept.
    """
    if devices.mesh is None or devices.count == 1:
        return NONE
    mesh = devices.mesh

    def measure() -> list[float]:
        small, large = turns_seconds([_gathers(devices, mesh, size) for size in SIZES])
        moved = SIZES[1] - SIZES[0]
        return [small / IN_ROW, IN_ROW * moved / max(large - small, 1e-9)]

    figures = remembered(devices.first, f"gathers over {devices.count} devices", measure, anew=anew)
    if len(figures) != 2:  # kept by somebody else
        return gathering(devices, anew=True)
    return Gathering(*figures)


def _gathers(devices: Devices, mesh: Mesh, size: int) -> Callable[[int], object]:
    """A program of IN_ROW gathers that each leave `size` bytes, in float32."""
    axis, count = mesh.axis_names[0], devices.count
    own = max(size // 4 // count, 1)

    def one(_: jax.Array, x: jax.Array) -> jax.Array:
        whole = lax.all_gather(x, axis, tiled=True)
        return lax.dynamic_slice_in_dim(whole, (lax.axis_index(axis) + 1) % count * own, own)

    spec = PartitionSpec(axis)
    spread = partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    program = jax.jit(spread(lambda x: lax.fori_loop(0, IN_ROW, one, x)))
    x = jax.device_put(jnp.ones((count * own,), jnp.float32), devices.sharding(axis))
    return lambda _: program(x)
