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
from endor_jax.streaming.prefetch import Prefetcher

Read = Callable[[str, Part, np.ndarray], None]


def part(number: int) -> Part:
    return Part(f"parts/layers.{number}.0", 8, 64, 4096, ())


def ask(prefetcher: Prefetcher, number: int) -> np.ndarray:
    slot = np.zeros(64, np.uint8)
    prefetcher.request(f"layers.{number}", [part(number)], (slot,))
    return slot


def number_of(part: Part) -> int:
    return int(part.path.split(".")[1])


class Store:
    """Fills a slot with the part's number, after a random time; counts how many reads run at once."""

    def __init__(self, seed: int, longest: float = 0.003):
        self.random, self.longest = random.Random(seed), longest
        self.running = self.most = self.reads = 0
        self.lock = threading.Lock()

    def __call__(self, record: str, part: Part, into: np.ndarray) -> None:
        with self.lock:
            self.running += 1
            self.reads += 1
            self.most = max(self.most, self.running)
            pause = self.random.choice([0, 0, self.longest * self.random.random()])
        into[:] = 0xFF  # as a read that is still going on leaves it
        time.sleep(pause)
        into[:] = number_of(part)
        with self.lock:
            self.running -= 1


@pytest.mark.parametrize("seed", range(8))
def test_order_is_kept(seed: int) -> None:
    choose = random.Random(seed)
    reads = choose.randint(1, 4)
    store = Store(seed)
    prefetcher = Prefetcher(store, reads=reads)
    asked = taken = 0
    slots: dict[int, np.ndarray] = {}
    while taken < 60:
        if asked - taken < choose.randint(1, 6):
            slots[asked] = ask(prefetcher, asked)
            asked += 1
            continue
        (slot,) = prefetcher.take()
        assert slot is slots.pop(taken)
        assert np.all(slot == taken)
        taken += 1
    prefetcher.close()
    assert store.most <= reads


@pytest.mark.parametrize("reads", [2, 4])
def test_readers_overlap(reads: int) -> None:
    barrier = threading.Barrier(reads, timeout=10)  # breaks unless that many read at once

    def read(record: str, part: Part, into: np.ndarray) -> None:
        barrier.wait()

    prefetcher = Prefetcher(read, reads=reads)
    for number in range(3 * reads):
        ask(prefetcher, number)
    for _ in range(3 * reads):
        prefetcher.take()
    prefetcher.close()


def test_all_parts_of_a_record_are_there_when_it_is_taken() -> None:
    store = Store(1, longest=0.01)
    prefetcher = Prefetcher(store, reads=2)
    slots = tuple(np.zeros(64, np.uint8) for _ in range(3))
    prefetcher.request("layers.0", [part(7), part(8), part(9)], slots)
    assert [int(slot[5]) for slot in prefetcher.take()] == [7, 8, 9]
    prefetcher.close()


@pytest.mark.parametrize("at", [0, 1, 4])
def test_error_surfaces_in_its_turn(at: int) -> None:
    def read(record: str, part: Part, into: np.ndarray) -> None:
        if number_of(part) == at:
            raise OSError("the disk is gone")
        time.sleep(0.005)

    prefetcher = Prefetcher(read, reads=2)
    for number in range(5):
        ask(prefetcher, number)
    for _ in range(at):
        prefetcher.take()
    for _ in range(2):  # and it stays
        with pytest.raises(
            StreamError,
            match=rf"record layers.{at}, part parts/layers.{at}.0: got OSError: the disk is gone, expec",
        ) as caught:
            prefetcher.take()
    assert isinstance(caught.value.__cause__, OSError)
    prefetcher.close()


def test_own_errors_keep_their_class_and_name_the_record() -> None:
    def read(record: str, part: Part, into: np.ndarray) -> None:
        raise CorruptCheckpointError("part x", got="digest 1", expected="2", fix="convert again")

    prefetcher = Prefetcher(read, reads=1)
    ask(prefetcher, 0)
    with pytest.raises(
        CorruptCheckpointError, match=r"^record layers.0, part x: got digest 1, expected 2; conv"
    ):
        prefetcher.take()
    prefetcher.close()


def test_whatever_ends_a_read_reaches_the_consumer() -> None:
    def read(record: str, part: Part, into: np.ndarray) -> None:
        raise SystemExit(1)

    prefetcher = Prefetcher(read, reads=1)
    ask(prefetcher, 0)
    with pytest.raises(StreamError, match="got SystemExit: 1"):
        prefetcher.take()
    prefetcher.close()


def test_close_while_readers_read() -> None:
    started, done = threading.Event(), threading.Event()

    def read(record: str, part: Part, into: np.ndarray) -> None:
        started.set()
        time.sleep(0.1)
        done.set()

    prefetcher = Prefetcher(read, reads=1)
    for number in range(3):
        ask(prefetcher, number)
    started.wait(10)
    prefetcher.close()
    assert done.is_set()  # the slot is not written to any more
    prefetcher.close()
    closed = r"stream: got a call after close\(\), expected an open stream"
    with pytest.raises(StreamError, match=closed):
        prefetcher.take()
    with pytest.raises(StreamError, match=closed):
        ask(prefetcher, 0)


def test_close_wakes_a_consumer() -> None:
    """Also one that waits for a read which is never begun."""
    release, started = threading.Event(), threading.Event()

    def read(record: str, part: Part, into: np.ndarray) -> None:
        started.set()
        release.wait(10)

    prefetcher = Prefetcher(read, reads=1)
    ask(prefetcher, 0)
    errors: list[BaseException] = []

    def consume() -> None:
        try:
            prefetcher.take()
        except StreamError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    started.wait(10)
    consumer.start()
    threading.Timer(0.1, release.set).start()
    prefetcher.close()
    consumer.join(10)
    assert len(errors) == 1


def test_a_reader_that_drops_the_last_reference_does_not_wait_for_itself() -> None:
    """As garbage collection in a reader may: it closes an abandoned stream."""
    closed = threading.Event()

    def read(record: str, part: Part, into: np.ndarray) -> None:
        prefetcher.close()
        closed.set()

    prefetcher = Prefetcher(read, reads=1)
    ask(prefetcher, 0)
    assert closed.wait(10)


def test_nothing_to_read_needs_no_threads() -> None:
    before = threading.active_count()
    prefetcher = Prefetcher(Store(0), reads=4)
    assert threading.active_count() == before
    prefetcher.close()
