"""The executor: walks the schedule of a pass, keeping residents on the device and the rest flowing through.

It owns everything that moves: resident arrays, kept host buffers, the ring, the prefetcher. It knows records,
not models: what a step does is the caller's function.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from endor_jax.errors import StreamError
from endor_jax.format.record import Record
from endor_jax.store.manifest import Part
from endor_jax.store.mapping import MappedPart
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.devices import Devices
from endor_jax.streaming.link import Link, choose_link
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.prefetch import Prefetcher, closed_error, named
from endor_jax.streaming.ring import Ring
from endor_jax.streaming.schedule import Action, Schedule, make_schedule
from endor_jax.streaming.step import refuse_traced
from endor_jax.streaming.streamable import Streamable, read_parts, spread
from endor_jax.streaming.timeline import Stages, Timeline
from endor_jax.streaming.transfer import Kept, Source, Way, keep, pin_for, shares_memory
from endor_jax.streaming.turn import Turn, Walk, no_step


@dataclass(frozen=True)
class Transfer:
    """A record on its way to the devices: its arrays, and what is given back when they are no longer needed:
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

    def __init__(
        self,
        checkpoint: Checkpoint,
        records: Sequence[Streamable],
        *,
        plan: Plan,
        devices: Devices,
        link: Link | None = None,
        timeline: Timeline | None = None,
        schedule: Schedule | None = None,
    ):
        """Reads what stays in memory, then starts reading ahead.

        link: by default what `choose_link` chooses. timeline: one of the caller's, to look at. schedule: by
        default that of `make_schedule`; another one must need no more slots than the plan has.

        Raises what a read raises, and UnsupportedError where memory cannot be pinned.
        """
        self.plan, self._records, self._devices = plan, tuple(records), devices
        device = devices.first
        self._checkpoint = checkpoint
        self._timeline = Timeline() if timeline is None else timeline
        self._schedule = make_schedule(plan) if schedule is None else schedule
        self.bytes_read = self.bytes_transferred = 0
        self._closed = self._freed = self._started = False
        self._failure: BaseException | None = None
        self._running = threading.Lock()
        self.link = choose_link(device, kept_bytes=plan.host_kept_bytes) if link is None else link
        self._kept: dict[int, Kept] = {}
        self._resident: dict[int, tuple[jax.Array, ...]] = {}
        self._on_their_way: deque[Transfer] = deque()
        self._in_use: dict[int, tuple[object, Transfer]] = {}
        self._walk: Walk | None = None
        once: Way = "shared" if shares_memory(device) else "pageable"  # not worth pinning
        for i, (record, tier) in enumerate(zip(self._records, plan.tiers, strict=True)):
            if tier == "device":
                words = self._put(record, self._load(record), way=once)
                self._resident[i] = devices.wait(words)
                self.bytes_transferred += self._moved_bytes(record)
            elif tier == "host":
                self._kept[i] = keep(self._load(record), record.on(devices), way=self.link.kept)
                devices.progress()
        # Where the device works in host memory, mapped parts are used where the page cache has them.
        in_place = bool(plan.read) and shares_memory(device) and checkpoint.reader == "mmap"
        parts = [part for i in plan.read for part in self._records[i].parts]
        self._mapped = {part: checkpoint.map_part(part) for part in parts if in_place}
        self._ring = Ring(plan.slots, 0 if in_place else plan.slot_bytes)
        # Not `kept.close`, which would keep the buffers alive for as long as it can be called.
        pinned = [kept.pinned.close for kept in self._kept.values() if kept.pinned is not None]
        if self.link.ring == "registered" and self._ring.memory.size:
            pinned.append(pin_for(device, self._ring.memory).close)
        self._unpin = partial(_unpin, self._on_their_way, pinned)
        fill = partial(_fill, checkpoint, self._mapped, self._timeline)
        self._prefetcher = Prefetcher(fill, reads=plan.reads)
        # A stream that nobody closed stops reading when it is dropped.
        weakref.finalize(self, _abandon, self._prefetcher, self._timeline, self._unpin)
        for action in self._schedule.prologue:
            if action.kind == "read":
                self._ask(action.record)

    @property
    def stages(self) -> Stages:
        """What the stages have done so far, and what the schedule waited for."""
        return self._timeline.stages

    def _load(self, record: Streamable) -> tuple[np.ndarray, ...]:
        """The buffers of a record that stays in memory, read now."""
        self.bytes_read += record.demand.read_bytes
        buffers = []
        for part in record.parts:
            try:
                buffers += read_parts(self._checkpoint, [part])
            except Exception as error:
                raise named(error, record.name, part) from error
        return tuple(buffers)

    def _put(self, record: Streamable, sources: Sequence[Source], *, way: Way) -> tuple[jax.Array, ...]:
        """Starts the transfer of a record."""
        return spread(sources, record, self._devices, way=way)

    def _moved_bytes(self, record: Streamable) -> int:
        """Bytes that travel to this process's devices."""
        return len(self._devices.own) * record.demand.buffer_bytes

    def _ask(self, index: int) -> None:
        """Has a record read into free slots."""
        record = self._records[index]
        slots = tuple(self._ring.acquire() for _ in record.parts)
        self._prefetcher.request(record.name, record.parts, slots)

    def _issue(self, index: int) -> None:
        """Starts the transfer of a streamed record, from kept host memory or from filled slots."""
        record = self._records[index]
        if index in self._kept:
            words = self._put(record, self._kept[index].sources, way=self.link.kept)
            transfer = Transfer(words, slots=())
        else:
            with self._timeline.waiting("wait for read", record.name):
                slots = self._prefetcher.take()
            mapped = tuple(self._mapped[part] for part in record.parts) if self._mapped else ()
            buffers = tuple(part.bytes for part in mapped) or slots
            transfer = Transfer(self._put(record, buffers, way=self.link.ring), slots, mapped)
        self._on_their_way.append(transfer)
        size = self._moved_bytes(record)
        self._timeline.ends_with("put", record.name, transfer.words, size_bytes=size)

    def _arrived(self, index: int) -> Transfer:
        """A record whose turn it is. Its slots are free again, unless its arrays are those very slots."""
        if index in self._resident:
            return Transfer(self._resident[index], slots=())
        transfer, demand = self._on_their_way[0], self._records[index].demand
        with self._timeline.waiting("wait for transfer", demand.name):
            self._devices.wait(transfer.words)
        self._on_their_way.popleft()  # only now: whatever interrupts the wait, `close` waits for it
        self.bytes_read += demand.read_bytes if transfer.slots else 0
        self.bytes_transferred += self._moved_bytes(self._records[index])
        if shares_memory(self._devices.first):
            return transfer
        self._give_back(transfer)
        return Transfer(transfer.words, slots=())

    def _give_back(self, transfer: Transfer) -> None:
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
        with self._walking():
            self._pass_by()
            start = time.perf_counter()
            for action in self._actions():
                self._do(action, step)
            self._timeline.passed(time.perf_counter() - start)

    def turns(self) -> Iterator[Turn]:
        """One pass that the caller walks: the turns of all records in order, each used or not.

        It goes on when the next turn is asked for. One that is left early ends where another begins, or a
        `run`: until then its other records wait, and then they pass by, read and transferred like all.
        Raises as `run` does, and StreamError if another pass has begun.
        """
        with self._walking():
            self._pass_by()
            walk = self._walk = Walk(self._actions(), time.perf_counter())
        while True:
            if self._walk is not walk and not self._closed:
                raise StreamError(
                    "stream",
                    got="a layer of a pass that was left, after another one had begun",
                    expected="the layers of the last pass",
                    fix="finish a pass before the next, or open the checkpoint once more",
                )
            with self._walking():
                turn = self._next_turn(walk)
            if turn is None:
                return
            yield turn

    @contextlib.contextmanager
    def _walking(self) -> Iterator[None]:
        """While actions are done, by one thread. Whatever is raised meanwhile closes the executor."""
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
            yield
        except BaseException as error:
            if not self._closed:
                self._closed, self._failure = True, error
            raise
        finally:
            self._running.release()
            if self._closed:
                self._stop()

    def _actions(self) -> Iterator[Action]:
        """Those of one pass; before the first one, the prologue."""
        if not self._started:
            self._started = True
            # Reads were asked for when the executor was made.
            yield from (action for action in self._schedule.prologue if action.kind != "read")
        yield from self._schedule.one_pass

    def _pass_by(self) -> None:
        """Ends the pass that its caller has left, if there is one."""
        while self._walk is not None:
            self._next_turn(self._walk)

    def _next_turn(self, walk: Walk) -> Turn | None:
        """Walks to the next step, and past the end of the pass if there is none."""
        self._end_turn(walk)
        for action in walk.actions:
            if action.kind != "step":
                self._do(action, no_step)
                continue
            if self._closed:
                raise closed_error()
            record, arrived = self._records[action.record], self._arrived(action.record)
            walk.turn = Turn(action.record, record.name, Record(arrived.words, record.layout))
            self._in_use[action.record] = walk.turn.results, arrived
            return walk.turn
        self._walk = None
        self._timeline.passed(time.perf_counter() - walk.start_seconds)
        return None

    def _end_turn(self, walk: Walk) -> None:
        if walk.turn is not None:
            walk.turn.end()
            self._timeline.ends_with("step", walk.turn.name, walk.turn.results)
            walk.turn = None

    def _do(self, action: Action, step: Callable[[int, Record], object]) -> None:
        """One action of the schedule. Raises StreamError if a step has closed the stream."""
        if self._closed:
            raise closed_error()
        index = action.record
        if action.kind == "read":
            self._ask(index)
        elif action.kind == "put":
            self._issue(index)
        elif action.kind == "step":
            record, arrived = self._records[index], self._arrived(index)
            result = step(index, Record(arrived.words, record.layout))
            refuse_traced(result, record.name)
            self._in_use[index] = result, arrived
            self._timeline.ends_with("step", record.name, result)
        else:
            result, arrived = self._in_use.pop(index)
            with self._timeline.waiting("wait for step", self._records[index].name):
                self._devices.wait(result)
            self._give_back(arrived)

    def close(self) -> None:
        """Stops reading and frees every buffer; while a pass is running, at the end of its present action.

        Idempotent; one that was interrupted while it waited for a read goes on when called again.
        """
        self._closed = True
        self._failure = None  # whose frames hold buffers
        self._stop()

    def _stop(self) -> None:
        self._prefetcher.close()
        if self._running.acquire(blocking=False):  # else the thread of the pass frees what it works with
            try:
                self._free()
            finally:
                self._running.release()

    def _free(self) -> None:
        if self._freed:
            return
        self._timeline.close()
        try:
            self._unpin()
        finally:
            self._on_their_way.clear()
            self._in_use.clear()
            self._kept.clear()
            self._resident.clear()
            self._mapped.clear()
            self._ring.close()
            if self._walk is not None and self._walk.turn is not None:
                self._walk.turn.end()
            self._walk = None
            # JAX lets go of adopted buffers when Python collects garbage, of whatever generation. All of it
            # takes 0.3 seconds in a process that has imported much.
            gc.collect(0)
            self._freed = True


def _abandon(prefetcher: Prefetcher, timeline: Timeline, unpin: Callable[[], None]) -> None:
    """What `close` does, as far as it can be done wherever garbage is collected: no thread is waited for."""
    prefetcher.abandon()
    timeline.abandon()
    unpin()


def _unpin(on_their_way: Iterable[Transfer], pinned: Iterable[Callable[[], None]]) -> None:
    """Waits for transfers, and unpins the memory that they come from."""
    for transfer in on_their_way:
        with contextlib.suppress(Exception):  # one that failed has ended too
            jax.block_until_ready(transfer.words)
    for close in pinned:
        close()


def _fill(
    checkpoint: Checkpoint,
    mapped: Mapping[Part, MappedPart],
    timeline: Timeline,
    record: str,
    part: Part,
    slot: np.ndarray,
) -> None:
    """Fills a slot; of a mapped part, the slot only stands for the pages that are brought into memory."""
    with timeline.reading(record, part.length_bytes):
        if part in mapped:
            checkpoint.fetch_mapped(part, mapped[part])
        else:
            checkpoint.read_part(part, into=slot)
