"""The prefetcher over a store that stalls, fails and answers in odd orders."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from endor_jax.errors import CorruptCheckpointError, StreamError
from endor_jax.store.manifest import Part
from endor_jax.streaming.prefetch import READERS, Prefetcher, Wanted
from endor_jax.streaming.ring import Ring

Read = Callable[[Part, np.ndarray], None]


def wanted(parts: int) -> list[Wanted]:
    return [Wanted(f"layers.{i}", Part(f"parts/layers.{i}.0", 8, 64, 4096, ())) for i in range(parts)]


def number(part: Part) -> int:
    return int(part.path.split(".")[1])


class Store:
    """Fills a slot with the part's number, after a random time; counts how many reads run at once."""

    def __init__(self, seed: int, longest: float = 0.003):
        self.random, self.longest = random.Random(seed), longest
        self.running = self.most = self.reads = 0
        self.lock = threading.Lock()

    def __call__(self, part: Part, into: np.ndarray) -> None:
        with self.lock:
            self.running += 1
            self.reads += 1
            self.most = max(self.most, self.running)
            pause = self.random.choice([0, 0, self.longest * self.random.random()])
        into[:] = 0xFF  # as a read that is still going on leaves it
        time.sleep(pause)
        into[:] = number(part)
        with self.lock:
            self.running -= 1


@pytest.mark.parametrize("seed", range(12))
def test_order_is_kept_and_slots_are_bounded(seed: int) -> None:
    choose = random.Random(seed)
    parts, slots = choose.randint(1, 6), choose.randint(1, 5)
    store, ring = Store(seed), Ring(slots, 64)
    prefetcher = Prefetcher(wanted(parts), ring, read=store)
    held: list[np.ndarray] = []
    try:
        for i in range(60):
            slot = prefetcher.take()
            assert np.all(slot == i % parts)
            held.append(slot)
            # What is held keeps its bytes, however long.
            assert [int(kept[0]) for kept in held] == [
                (i - len(held) + 1 + k) % parts for k in range(len(held))
            ]
            while held and (len(held) == slots or choose.random() < 0.5):
                done = held.pop(0)
                done[:] = 0xEE
                ring.release(done)
            assert store.reads - (i + 1 - len(held)) <= slots
    finally:
        prefetcher.close()
    assert store.most <= READERS


def test_readers_overlap() -> None:
    barrier = threading.Barrier(READERS, timeout=10)  # breaks unless that many read at once

    def read(part: Part, into: np.ndarray) -> None:
        barrier.wait()

    ring = Ring(READERS, 64)
    prefetcher = Prefetcher(wanted(4), ring, read=read)
    for _ in range(6):
        ring.release(prefetcher.take())
    barrier.abort()
    prefetcher.close()


def test_readers_do_not_run_without_slots() -> None:
    store = Store(0, longest=0)
    prefetcher = Prefetcher(wanted(3), Ring(2, 64), read=store)
    prefetcher.take()
    prefetcher.take()
    time.sleep(0.05)
    assert store.reads == 2
    prefetcher.close()


@pytest.mark.parametrize("at", [0, 1, 4])
def test_error_surfaces_in_its_turn(at: int) -> None:
    def read(part: Part, into: np.ndarray) -> None:
        if number(part) == at:
            raise OSError("the disk is gone")
        time.sleep(0.005)
        into[:] = number(part)

    ring = Ring(4, 64)
    prefetcher = Prefetcher(wanted(5), ring, read=read)
    for i in range(at):
        slot = prefetcher.take()
        assert slot[0] == i
        ring.release(slot)
    for _ in range(2):  # and it stays
        with pytest.raises(
            StreamError,
            match=rf"record layers.{at}, part parts/layers.{at}.0: got OSError: the disk is gone, expec",
        ) as caught:
            prefetcher.take()
    assert isinstance(caught.value.__cause__, OSError)
    prefetcher.close()


def test_own_errors_keep_their_class_and_name_the_record() -> None:
    def read(part: Part, into: np.ndarray) -> None:
        raise CorruptCheckpointError("part x", got="digest 1", expected="2", fix="convert again")

    prefetcher = Prefetcher(wanted(1), Ring(2, 64), read=read)
    with pytest.raises(
        CorruptCheckpointError, match=r"^record layers.0, part x: got digest 1, expected 2; conv"
    ):
        prefetcher.take()
    prefetcher.close()


def test_whatever_ends_a_reader_reaches_the_consumer() -> None:
    def read(part: Part, into: np.ndarray) -> None:
        raise SystemExit(1)

    prefetcher = Prefetcher(wanted(1), Ring(2, 64), read=read)
    with pytest.raises(StreamError, match="got SystemExit: 1"):
        prefetcher.take()
    prefetcher.close()


@pytest.mark.parametrize("slots", [1, 3])
def test_close_while_readers_read_or_wait(slots: int) -> None:
    started = threading.Event()

    def read(part: Part, into: np.ndarray) -> None:
        started.set()
        time.sleep(0.1)

    prefetcher = Prefetcher(wanted(3), Ring(slots, 64), read=read)
    started.wait(10)
    prefetcher.close()
    prefetcher.close()
    with pytest.raises(StreamError, match=r"stream: got a call after close\(\), expected an open stream"):
        prefetcher.take()


def test_close_wakes_a_consumer() -> None:
    release = threading.Event()
    prefetcher = Prefetcher(wanted(1), Ring(1, 64), read=lambda part, into: bool(release.wait(10)) and None)
    errors: list[BaseException] = []

    def consume() -> None:
        try:
            prefetcher.take()
        except StreamError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    threading.Timer(0.1, release.set).start()
    prefetcher.close()
    consumer.join(10)
    assert len(errors) == 1


def test_nothing_to_read_needs_no_threads() -> None:
    before = threading.active_count()
    prefetcher = Prefetcher([], Ring(0, 0), read=Store(0))
    assert threading.active_count() == before
    prefetcher.close()
