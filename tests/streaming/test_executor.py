"""The executor with its parts replaced: poisoned slots, failing reads, few layers and much depth."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from typing import Any

import jax
import numpy as np
import pytest
from layer_stacks import apply, inputs, save_in_parts, stack

import endor_jax as endor
from endor_jax.errors import StreamError
from endor_jax.format.decode import decode
from endor_jax.format.record import Record
from endor_jax.store.manifest import Part
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming import executor as executor_module
from endor_jax.streaming import streamable as streamable_module
from endor_jax.streaming.devices import one_device
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.link import Link
from endor_jax.streaming.plan import FixedCosts, Plan, Tier
from endor_jax.streaming.ring import Ring
from endor_jax.streaming.streamable import Streamable
from endor_jax.streaming.transfer import Source, Way, put, shares_memory

LAYERS = stack(5)
DEVICE = jax.local_devices()[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("executor") / "x.endor"
    save_in_parts(path, LAYERS, 2)
    return endor.open(path)


def executor(checkpoint: Checkpoint, tiers: tuple[Tier, ...], *, depth: int = 2) -> Executor:
    """One with the tiers that a test wants, whatever a budget would give."""
    manifest = checkpoint.manifest
    records = [
        Streamable(record.name, record.parts, manifest.layout(record))
        for record in manifest.records[: len(tiers)]
    ]
    plan = Plan(
        tuple(record.demand for record in records),
        tiers,
        FixedCosts(),
        depth,
        2**40,
        2**40,
        shares_memory(DEVICE),
    )
    return Executor(checkpoint, records, plan=plan, devices=one_device(DEVICE))


def check(run: Executor, passes: int = 3) -> None:
    """Every record of every pass decodes to its layer."""
    for _ in range(passes):
        seen = []

        def step(index: int, record: Record, seen: list[int] = seen) -> Any:
            seen.append(index)
            for name, array in LAYERS[index].items():
                assert decode(record[name]).tobytes() == array.tobytes()
            return record.words

        run.run(step)
        assert seen == list(range(len(run.plan.tiers)))


TIERS: list[tuple[Tier, ...]] = [
    ("disk",) * 5,
    ("device", "disk", "host", "disk", "disk"),
    ("host", "disk", "device", "host", "disk"),
    ("disk",),
    ("host",),
    ("disk", "disk"),
    ("host", "disk"),
]


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize("tiers", TIERS)
def test_released_slots_may_be_overwritten(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tiers: tuple[Tier, ...], depth: int
) -> None:
    release = Ring.release

    def poison(ring: Ring, slot: np.ndarray) -> None:
        slot[:] = 0xFF
        release(ring, slot)

    monkeypatch.setattr(Ring, "release", poison)
    run = executor(checkpoint, tiers, depth=depth)
    check(run, passes=4)
    streamed = sum(d.read_bytes for d, tier in zip(run.plan.demands, tiers, strict=True) if tier == "disk")
    stays = sum(d.read_bytes for d, tier in zip(run.plan.demands, tiers, strict=True) if tier != "disk")
    assert run.bytes_read == stays + 4 * streamed
    run.close()


def test_step_is_waited_for(checkpoint: Checkpoint) -> None:
    """Buffers of at most the running step, the last one and those ahead are alive at once."""
    run = executor(checkpoint, ("disk",) * 5, depth=2)
    sizes = {part.buffer_bytes // 4 for record in checkpoint.manifest.records for part in record.parts}
    most = 0

    def step(index: int, record: Record) -> Any:
        nonlocal most
        alive = [a for a in jax.live_arrays() if a.dtype == np.uint32 and a.shape[0] in sizes]
        most = max(most, sum(4 * a.size for a in alive))
        return jax.numpy.zeros(3)

    for _ in range(3):
        run.run(step)
    buffer = max(demand.buffer_bytes for demand in run.plan.demands)
    assert 0 < most <= (2 + 2) * buffer
    run.close()


class Failing:
    """A checkpoint whose n-th read stalls and then fails."""

    def __init__(self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, at: int, stall: float = 0.0):
        self.count, self.lock, read = 0, threading.Lock(), Checkpoint.read_part

        def fail(own: Checkpoint, part: Part, *, into: np.ndarray) -> None:
            with self.lock:
                self.count += 1
                count = self.count
            if count >= at:
                time.sleep(stall)
                raise OSError("stale file handle")
            read(own, part, into=into)

        monkeypatch.setattr(Checkpoint, "read_part", fail)


@pytest.mark.parametrize("at", [1, 2, 5, 9, 14, 23])
def test_failing_reads(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    Failing(checkpoint, monkeypatch, at, stall=0.01)
    run = executor(checkpoint, ("disk",) * 5)
    where = r"^record layers\.\d, part parts/layers\.\d\.\d"
    with pytest.raises(
        StreamError, match=rf"{where}: got OSError: stale file handle, expected [\d,]+ bytes; "
    ):
        check(run, passes=9)
    with pytest.raises(StreamError, match="a call after StreamError, which closed it"):
        run.run(lambda index, record: None)


def test_close_does_not_wait_for_the_whole_ring(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = Checkpoint.read_part

    def slow(own: Checkpoint, part: Part, *, into: np.ndarray) -> None:
        reads.append(part)
        time.sleep(0.05)
        read(own, part, into=into)

    monkeypatch.setattr(Checkpoint, "read_part", slow)
    run = executor(checkpoint, ("disk",) * 5)
    run.close()
    assert len(reads) <= 4


def test_interrupt_closes(checkpoint: Checkpoint) -> None:
    run = executor(checkpoint, ("disk",) * 5)

    def interrupt(index: int, record: Record) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(interrupt)
    assert not run._resident
    assert not run._on_their_way
    assert not run._in_use


def test_resident_that_cannot_be_read_leaves_no_thread(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    Failing(checkpoint, monkeypatch, at=1)
    with pytest.raises(StreamError, match=r"^record layers.1, part parts/layers.1.0: got OSError: stale"):
        executor(checkpoint, ("disk", "device"))


def test_results_do_not_depend_on_the_depth(checkpoint: Checkpoint) -> None:
    found = set()
    for depth in (1, 4):
        with endor.stream(apply, checkpoint.path, device_memory=2**30, host_memory=0, depth=depth) as run:
            found.add(np.asarray(run(inputs())[0]).tobytes())
    assert len(found) == 1


@pytest.mark.skipif(not shares_memory(DEVICE), reason="parts are used where they are mapped on CPU only")
@pytest.mark.parametrize("tiers", [("disk",) * 5, ("device", "disk", "host", "disk", "disk")])
def test_mapped_parts_are_used_where_they_lie(checkpoint: Checkpoint, tiers: tuple[Tier, ...]) -> None:
    with endor.open(checkpoint.path, reader="mmap") as mapping:
        run = executor(mapping, tiers)
        addresses = {path: mapped.bytes.ctypes.data for path, mapped in run._mapped.items()}
        assert len(addresses) == 2 * tiers.count("disk")
        used: list[int] = []

        def step(index: int, record: Record) -> Any:
            if tiers[index] == "disk":
                used.extend(words.unsafe_buffer_pointer() for words in record.words)
            return record.words

        run.run(step)
        assert sorted(used) == sorted(addresses.values())
        check(run)
        run.close()


@pytest.mark.parametrize("reader", ["preadv", "mmap"])
@pytest.mark.parametrize("when", [0, 2, 4])
def test_closed_in_the_middle_of_a_pass(checkpoint: Checkpoint, reader: str, when: int) -> None:
    with endor.open(checkpoint.path, reader=reader) as opened:
        run = executor(opened, ("disk",) * 5)

        def step(index: int, record: Record) -> Any:
            if index == when:
                run.close()
            return record.words

        with contextlib.suppress(StreamError):  # the last step has nothing left to take
            run.run(step)
        with pytest.raises(StreamError, match="a call after"):
            run.run(step)


@pytest.mark.parametrize("way", ["pageable", "pinned_host"])
@pytest.mark.parametrize("tiers", TIERS)
def test_a_device_with_its_own_memory(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, way: Way, tiers: tuple[Tier, ...]
) -> None:
    """As far as a CPU can be one: records are copied on their way, slots are free when they have arrived."""
    monkeypatch.setattr(executor_module, "shares_memory", lambda device: False)
    manifest, release = checkpoint.manifest, Ring.release

    def copying(source: Source, size_bytes: int, device: jax.Device, *, way: Way) -> jax.Array:
        return jax.numpy.array(put(source, size_bytes, device, way=way), copy=True)

    def poison(ring: Ring, slot: np.ndarray) -> None:
        slot[:] = 0xFF
        release(ring, slot)

    monkeypatch.setattr(streamable_module, "put", copying)
    monkeypatch.setattr(Ring, "release", poison)
    records = [Streamable(r.name, r.parts, manifest.layout(r)) for r in manifest.records[: len(tiers)]]
    demands = tuple(record.demand for record in records)
    plan = Plan(demands, tiers, FixedCosts(), 2, 2**40, 2**40, staged=True)
    link = Link(way, way, "asked for by name")
    run = Executor(checkpoint, records, plan=plan, devices=one_device(DEVICE), link=link)
    check(run, passes=4)
    run.close()


def test_close_frees_what_host_memory_kept(checkpoint: Checkpoint) -> None:
    run = executor(checkpoint, ("host",) * 5)
    check(run)
    kept = [weakref.ref(source) for each in run._kept.values() for source in each.sources]
    assert len(kept) == 10
    run.close()
    gc.collect()
    assert [each() for each in kept] == [None] * 10
