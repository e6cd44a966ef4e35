"""A store that stalls, fails, truncates, disappears; memory that shows who used it too early or too late.

Files are really cut off, removed and put back; reads that stall or raise are patched in. Transfers and steps
happen as late as they may: when they are waited for. Slots that are given back are overwritten at once.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import pytest

from endor_jax.errors import CorruptCheckpointError, EndorError
from endor_jax.format.record import Record
from endor_jax.store.manifest import Part
from endor_jax.store.part import DATA_FILE
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming import executor as executor_module
from endor_jax.streaming import streamable as streamable_module
from endor_jax.streaming.ring import Ring
from endor_jax.streaming.transfer import Device

Damage = Literal["truncated", "emptied", "removed", "directory removed", "raises"]
LIMIT_SECONDS = 30.0
"""No rule of a machine may take longer."""


class NotAnException(BaseException):
    """What no `except Exception` sees."""


RAISED: tuple[Callable[[], BaseException], ...] = (
    lambda: OSError(116, "Stale file handle"),
    lambda: CorruptCheckpointError("part", got="noise", expected="bytes", fix="none"),
    lambda: MemoryError("no room"),
    lambda: SystemExit(3),
    lambda: KeyboardInterrupt(),
    lambda: NotAnException("gone"),
    lambda: RuntimeError("cannot schedule new futures after shutdown"),
)


class Store:
    """The files of one checkpoint, and the reads of whoever opened it.

    damaged: what has been done to which record. reads: how many parts were begun to be read, by checkpoint.
    """

    def __init__(self, path: Path, patch: pytest.MonkeyPatch):
        self.path, self._away = path, path.with_name(path.name + ".away")
        with Checkpoint(path) as opened:
            self.manifest = opened.manifest
            self.words = {r.name: opened.read_record(r).words for r in opened.manifest.records}
        self.damaged: dict[str, Damage | Literal["all gone"]] = {}
        self.reads: weakref.WeakKeyDictionary[Checkpoint, int] = weakref.WeakKeyDictionary()
        self.longest_pause = 0.0
        self._random, self._lock, self._gate = random.Random(0), threading.Lock(), threading.Event()
        self._gate.set()
        self._raises: dict[str, Callable[[], BaseException]] = {}
        self._repairs: list[Callable[[], object]] = []
        self._read = Checkpoint.read_part
        patch.setattr(Checkpoint, "read_part", lambda own, part, *, into: self._answer(own, part, into))

    def _answer(self, checkpoint: Checkpoint, part: Part, into: np.ndarray) -> None:
        with self._lock:
            self.reads[checkpoint] = self.reads.get(checkpoint, 0) + 1
            pause = self._random.choice([0.0, 0.0, self.longest_pause * self._random.random()])
        into[:] = 0xEE  # as a read that goes on leaves it
        assert self._gate.wait(LIMIT_SECONDS)
        time.sleep(pause)
        if part.path in self._raises:
            raise self._raises[part.path]()
        self._read(checkpoint, part, into=into)

    def damage(self, record: int, part: int, how: Damage, *, raised: int = 0) -> None:
        """Damages a part of a record, or its reads: those raise what `RAISED` has at this index."""
        stored = self.manifest.records[record]
        if stored.name in self.damaged:
            return
        self.damaged[stored.name] = how
        chosen = stored.parts[part % len(stored.parts)]
        directory = self.path / chosen.path
        file, away = directory / DATA_FILE, directory.with_name(directory.name + ".away")
        if how in ("truncated", "emptied"):
            kept = file.read_bytes()
            os.truncate(file, 0 if how == "emptied" else 4096 * (chosen.length_bytes // 8192))
            self._repairs.append(lambda: _replace(file, kept))
        elif how == "raises":
            self._raises[chosen.path] = RAISED[raised % len(RAISED)]
            self._repairs.append(lambda: self._raises.pop(chosen.path))
        else:
            source = file if how == "removed" else directory
            source.rename(away)
            self._repairs.append(lambda: away.rename(source))

    def disappear(self) -> None:
        """The whole directory goes away."""
        self.path.rename(self._away)
        self._repairs.append(lambda: self._away.rename(self.path))
        for stored in self.manifest.records:
            self.damaged[stored.name] = "all gone"

    def repair(self) -> None:
        """Puts everything back."""
        while self._repairs:
            self._repairs.pop()()
        self.damaged.clear()

    @contextmanager
    def held(self, *, seconds: float = LIMIT_SECONDS) -> Iterator[Callable[[], None]]:
        """No read ends for so long, or until what is given is called: who closes a stream waits for reads."""
        self._gate.clear()
        timer = threading.Timer(seconds, self._gate.set)
        timer.start()
        try:
            yield self._gate.set
        finally:
            self._gate.set()
            timer.cancel()
            timer.join()

    def check_error(self, error: BaseException, damaged: set[str]) -> None:
        """It is one of ours, and names a record that was damaged, and the file of one of its parts."""
        assert isinstance(error, EndorError), repr(error)
        stored = [r for r in self.manifest.records if f"record {r.name}," in str(error)]
        assert [r.name in damaged for r in stored] == [True], (str(error), damaged)
        named = [part.path for part in stored[0].parts if part.path in str(error)]
        assert named or "part: got noise" in str(error), str(
            error
        )  # which the test raises, and names nothing


def _replace(file: Path, data: bytes) -> None:
    beside = file.with_name("new")
    beside.write_bytes(data)
    beside.replace(file)


class CheckedRing(Ring):
    """Overwrites what is given back; refuses to take back what is not out. out: addresses of slots in use."""

    def __init__(self, count: int, size_bytes: int):
        super().__init__(count, size_bytes)
        self.out: set[int] = set()

    def acquire(self) -> np.ndarray:
        slot = super().acquire()
        assert slot.ctypes.data not in self.out
        self.out.add(slot.ctypes.data)
        return slot

    def release(self, slot: np.ndarray) -> None:
        assert slot.ctypes.data in self.out, "given back twice"
        self.out.remove(slot.ctypes.data)
        slot[:] = 0xFF
        super().release(slot)


class LateWords(jax.Array):
    """A part on a device with memory of its own, to which it is moved when that is waited for, not before.

    An array as far as type checks are concerned. alive: those that there are, by device.
    """

    alive: ClassVar[defaultdict[Device, weakref.WeakSet[LateWords]]] = defaultdict(weakref.WeakSet)
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __init__(self, slot: np.ndarray, device: Device):
        self._slot: np.ndarray | None = slot
        self._size, self.words = slot.nbytes, np.empty(0, np.uint32)
        self.alive[device].add(self)

    def __eq__(self, other: object) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self is other

    @property
    def nbytes(self) -> int:
        return self._size

    def block_until_ready(self) -> LateWords:
        if self._slot is not None:
            self.words, self._slot = self._slot.view(np.uint32).copy(), None
        return self


class LateStep:
    """A step whose device does it when it is waited for: the record has to be there still."""

    def __init__(self, store: Store, name: str, record: Record):
        self._words, self._expected, self.done = record.words, store.words[name], False

    def block_until_ready(self) -> LateStep:
        if self.done:
            return self
        for words, expected in zip(self._words, self._expected, strict=True):
            got = words.words if isinstance(words, LateWords) else np.asarray(words)
            assert got[: len(expected)].tobytes() == np.asarray(expected).tobytes(), (
                "the record of another layer"
            )
        self._words, self.done = (), True
        return self


def separate_memory(patch: pytest.MonkeyPatch) -> None:
    """From now on executors work as on a device with memory of its own."""

    def put(buffer: np.ndarray, size_bytes: int, device: Device, **how: Any) -> LateWords:
        return LateWords(buffer[:size_bytes], device)

    patch.setattr(streamable_module, "put", put)
    patch.setattr(executor_module, "shares_memory", lambda device: False)


def threads() -> list[str]:
    """Names of the threads of streams."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("endor-")]


def check_threads(most: int) -> None:
    """No more threads than that. One that itself collected a stream that was dropped ends soon after."""
    until = time.monotonic() + LIMIT_SECONDS / 3
    while len(threads()) > most and time.monotonic() < until:
        time.sleep(0.001)
    assert len(threads()) <= most, threads()


@contextmanager
def time_limit(seconds: float = LIMIT_SECONDS) -> Iterator[None]:
    """Raises, with the stacks of all threads on stderr, in a main thread that waits for longer."""

    def hung(number: int, frame: object) -> None:
        faulthandler.dump_traceback()
        raise AssertionError(f"nothing happened for {seconds} seconds")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def interrupted_in(function: str, *, then: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C as soon as the main thread waits in a function of that name, then something more; once, and it
    has to be in there."""
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        since, before = 0, None
        while since < 10:  # not only for a moment: what interrupts the collection of garbage is lost
            time.sleep(0.001)
            frame = sys._current_frames()[main]
            since = since + 1 if frame is before and _waits_in(function, frame) else 0
            before = frame
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.002)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
        thread.join()
    finally:
        signal.signal(signal.SIGINT, handler)


def _waits_in(function: str, frame: FrameType | None) -> bool:
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names[0] in ("wait", "join", "_wait_for_tstate_lock") and function in names


def collect() -> None:
    """What nobody holds any more goes now."""
    for _ in range(2):
        gc.collect()
