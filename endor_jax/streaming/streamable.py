"""A streamable: one record of a pass as this process reads it and its devices get it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from endor_jax.format.layout import RecordLayout
from endor_jax.memory import aligned_buffer
from endor_jax.store.manifest import Part
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.devices import Devices
from endor_jax.streaming.plan import Demand
from endor_jax.streaming.transfer import Device, Source, Way, put


@dataclass(frozen=True)
class Streamable:
    """One record of the pass: its name, stored parts and layout.

    layout: as one device has it. parts: `layout.parts` for each device of this process, one device after the
    other; what has the same place on several devices has buffers of one size.
    """

    name: str
    parts: tuple[Part, ...]
    layout: RecordLayout

    @property
    def demand(self) -> Demand:
        """What the plan needs to know about it."""
        return Demand(
            self.name,
            read_bytes=sum(part.length_bytes for part in self.parts),
            buffer_bytes=sum(part.buffer_bytes for part in self.parts[: self.layout.parts]),
            parts=len(self.parts),
            slot_bytes=max(part.buffer_bytes for part in self.parts),
        )

    def on(self, devices: Devices) -> list[Device]:
        """The device that each part is for."""
        return [device for device in devices.own for _ in range(self.layout.parts)]


def read_parts(checkpoint: Checkpoint, parts: Sequence[Part]) -> tuple[np.ndarray, ...]:
    """All parts of a record in page-aligned host buffers of their size classes."""
    buffers = tuple(aligned_buffer(part.buffer_bytes) for part in parts)
    for part, buffer in zip(parts, buffers, strict=True):
        checkpoint.read_part(part, into=buffer)
    return buffers


def spread(
    sources: Sequence[Source], record: Streamable, devices: Devices, *, way: Way = "pageable"
) -> tuple[jax.Array, ...]:
    """Starts the transfer of a record whose parts are in `sources`: for each part that a device has of it one
    array, over all devices."""
    triples = zip(sources, record.parts, record.on(devices), strict=True)
    arrays = [put(source, part.buffer_bytes, device, way=way) for source, part, device in triples]
    each = record.layout.parts
    return tuple(devices.join(arrays[k::each]) for k in range(each))
