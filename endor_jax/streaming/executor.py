"""The executor: walks the schedule of a pass, keeping residents on the device and the rest flowing through.

It owns everything that moves: resident arrays, kept host buffers, the ring, the prefetcher. It knows records,
not models: what a step does is the caller's function.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from endor_jax.errors import StreamError
from endor_jax.format.layout import RecordLayout
from endor_jax.format.record import Record
from endor_jax.store.manifest import Part
from endor_jax.store.mapping import MappedPart
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.plan import Demand, Plan
from endor_jax.streaming.prefetch import Prefetcher, Wanted, closed_error
from endor_jax.streaming.ring import Ring, aligned_buffer
from endor_jax.streaming.schedule import one_pass, prologue
from endor_jax.streaming.transfer import Device, put, shares_memory


@dataclass(frozen=True)
class Streamable:
    """One record of the pass: its name, stored parts and layout."""

    name: str
    parts: tuple[Part, ...]
    layout: RecordLayout

    @property
    def demand(self) -> Demand:
        """What the plan needs to know about it."""
        return Demand(
            self.name,
            read_bytes=sum(part.length_bytes for part in self.parts),
            buffer_bytes=sum(part.buffer_bytes for part in self.parts),
            parts=len(self.parts),
            slot_bytes=max(part.buffer_bytes for part in self.parts),
        )


@dataclass(frozen=True)
class Transfer:
    """A record on its way to the device: its arrays, and what is given back when they are no longer needed:
    the slots they came from, and the pages of mapped parts."""

    words: tuple[jax.Array, ...]
    slots: tuple[np.ndarray, ...]
    mapped: tuple[MappedPart, ...] = ()


class Executor:
    """Runs passes over records placed by a plan, one at a time; `close` is idempotent.

    bytes_read, bytes_transferred: what was read from disk and moved to the device for the records that have
    had their turn, and once for those that stay. So after n passes bytes_read is exactly what stays + n × the
    streamed parts, although readers and transfers are in the next pass by then; `Checkpoint.bytes_read`
    counts what they are ahead too.
    """

    def __init__(self, checkpoint: Checkpoint, records: Sequence[Streamable], *, plan: Plan, device: Device):
        self._checkpoint, self._records, self.plan, self._device = checkpoint, tuple(records), plan, device
        self.bytes_read = self.bytes_transferred = 0
        self._closed = self._started = False
        self._failure: BaseException | None = None
        self._running = threading.Lock()
        self._in_flight: deque[Transfer] = deque()
        self._kept: dict[int, tuple[np.ndarray, ...]] = {}
        self._resident: dict[int, tuple[jax.Array, ...]] = {}
        for i, (record, tier) in enumerate(zip(self._records, plan.tiers, strict=True)):
            if tier == "device":
                self._resident[i] = jax.block_until_ready(self._put(record, self._load(record)))
                self.bytes_transferred += record.demand.buffer_bytes
            elif tier == "host":
                self._kept[i] = self._load(record)
        from_disk = [record for record, tier in zip(self._records, plan.tiers, strict=True) if tier == "disk"]
        order = [Wanted(record.name, part) for record in from_disk for part in record.parts]
        # Where the device works in host memory, mapped parts are used where the page cache has them.
        in_place = bool(order) and shares_memory(device) and checkpoint.reader == "mmap"
        self._mapped = {wanted.part: checkpoint.map_part(wanted.part) for wanted in order if in_place}
        self._ring = Ring(plan.slots, 0 if in_place else plan.slot_bytes)
        self._prefetcher = Prefetcher(order, self._ring, read=partial(_read, checkpoint, self._mapped))
        # A stream that nobody closed stops reading when dropped, or the process would abort as it exits.
        weakref.finalize(self, self._prefetcher.close)

    def _load(self, record: Streamable) -> tuple[np.ndarray, ...]:
        """The buffers of a record that stays in memory, read now."""
        self.bytes_read += record.demand.read_bytes
        return read_parts(self._checkpoint, record.parts)

    def _put(self, record: Streamable, buffers: Sequence[np.ndarray]) -> tuple[jax.Array, ...]:
        """Starts the transfer of a record."""
        pairs = zip(buffers, record.parts, strict=True)
        return tuple(put(buffer, part.buffer_bytes, self._device) for buffer, part in pairs)

    def _issue(self, index: int) -> None:
        """Starts the transfer of a streamed record, from kept host memory or from filled slots."""
        record = self._records[index]
        if index in self._kept:
            self._in_flight.append(Transfer(self._put(record, self._kept[index]), slots=()))
            return
        slots = tuple(self._prefetcher.take() for _ in record.parts)
        mapped = tuple(self._mapped[part] for part in record.parts) if self._mapped else ()
        buffers = tuple(part.bytes for part in mapped) or slots
        self._in_flight.append(Transfer(self._put(record, buffers), slots, mapped))

    def _arrived(self, index: int) -> Transfer:
        """A record whose turn it is. Its slots are free again, unless its arrays are those very slots."""
        if index in self._resident:
            return Transfer(self._resident[index], slots=())
        transfer, demand = self._in_flight.popleft(), self._records[index].demand
        jax.block_until_ready(transfer.words)
        self.bytes_read += demand.read_bytes if transfer.slots else 0
        self.bytes_transferred += demand.buffer_bytes
        if shares_memory(self._device):
            return transfer
        self._release(transfer)
        return Transfer(transfer.words, slots=())

    def _release(self, transfer: Transfer | None) -> None:
        if transfer is None:
            return
        for part in transfer.mapped:
            part.forget()
        for slot in transfer.slots:
            self._ring.release(slot)

    def run(self, step: Callable[[int, Record], object]) -> None:
        """One pass: calls `step(index, record)` for every record in order.

        What `step` returns is waited for one step later, which bounds the device buffers alive at once
        without ever leaving the device idle; it has to depend on all that was computed from the record, whose
        memory is written again afterwards. After an error in a step or a read the executor is closed.
        Raises StreamError if it is closed already or a pass is running.
        """
        if self._closed:
            raise closed_error(self._failure) from self._failure
        if not self._running.acquire(blocking=False):
            raise StreamError(
                "stream",
                got="a pass while another one is running",
                expected="one pass at a time",
                fix="finish the first, or open the checkpoint once more",
            )
        try:
            self._run(step)
        except BaseException as error:
            self._failure = error
            self.close()
            raise
        finally:
            self._running.release()

    def _run(self, step: Callable[[int, Record], object]) -> None:
        streamed, depth = self.plan.streamed, self.plan.depth
        if not self._started:
            self._started = True
            for action in prologue(streamed, depth):
                self._issue(action.record)
        running: object = None
        in_use: Transfer | None = None
        for action in one_pass(len(self._records), streamed, depth):
            if action.kind == "put":
                self._issue(action.record)
                continue
            arrived = self._arrived(action.record)
            result = step(action.record, Record(arrived.words, self._records[action.record].layout))
            jax.block_until_ready(running)
            self._release(in_use)
            running, in_use = result, arrived
            del arrived
        jax.block_until_ready(running)
        self._release(in_use)

    def close(self) -> None:
        """Stops reading and frees every buffer. Idempotent."""
        if not self._closed:
            self._closed = True
            self._prefetcher.close()
            self._in_flight.clear()
            self._kept.clear()
            self._resident.clear()
            self._mapped.clear()
            gc.collect()  # JAX lets go of adopted buffers only when Python collects garbage


def _read(checkpoint: Checkpoint, mapped: Mapping[Part, MappedPart], part: Part, slot: np.ndarray) -> None:
    """Fills a slot; of a mapped part, the slot only stands for the pages that are brought into memory."""
    if part in mapped:
        checkpoint.fetch_mapped(part, mapped[part])
    else:
        checkpoint.read_part(part, into=slot)


def read_parts(checkpoint: Checkpoint, parts: Sequence[Part]) -> tuple[np.ndarray, ...]:
    """All parts of a record in page-aligned host buffers of their size classes."""
    buffers = tuple(aligned_buffer(part.buffer_bytes) for part in parts)
    for part, buffer in zip(parts, buffers, strict=True):
        checkpoint.read_part(part, into=buffer)
    return buffers
