"""How fast a disk is read: each reader, cold and warm, with one, two and four reads in flight; remembered.

Measured on files that are there, in the way a stream reads them: every thread reads whole parts, or large
pieces of them, into memory that is more than the caches hold, in large pages as a stream's. Small parts are
read at less than large ones; so what is remembered of a disk is good for parts of one size class.
"""

from __future__ import annotations

import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.errors import UnsupportedError
from endor_jax.memory import aligned_buffer
from endor_jax.store.direct import READERS, open_part
from endor_jax.store.part import DATA_FILE, PAGE_BYTES
from endor_jax.store.remembered import recall, remember

IN_FLIGHT = (1, 2, 4)
"""Numbers of reads under way at once that are measured."""
PIECE_BYTES = 8 * 2**20
"""Read by one call at most: enough that a larger one is no faster."""
MEMORY_BYTES = 64 * 2**20
"""That are read into in turn: more than a cache holds."""
MEASURED_BYTES = 256 * 2**20
"""Most bytes that one measurement reads ..."""
MEASURED_SECONDS = 0.07
"""... and after which time it ends; two readers take half a second in all."""
FILE = "disks.json"

Parts = Sequence[tuple[Path, int]]
"""Directory and length in bytes of each part."""


@dataclass(frozen=True)
class Reading:
    """bytes_per_second: of all reads in flight together. cpu_seconds_per_byte: time that the reading threads
    themselves take of a processor, for copying out of the page cache above all."""

    bytes_per_second: float
    cpu_seconds_per_byte: float = 0.0


@dataclass(frozen=True)
class Rates:
    """One reader's rates by reads in flight: after the page cache was dropped, and from the page cache."""

    cold_by_reads: Mapping[int, Reading]
    warm_by_reads: Mapping[int, Reading]

    @property
    def cold(self) -> float:
        """The best bytes per second of a cold read."""
        return max(reading.bytes_per_second for reading in self.cold_by_reads.values())

    @property
    def warm(self) -> float:
        """The best bytes per second of what was read before."""
        return max(reading.bytes_per_second for reading in self.warm_by_reads.values())


def measure(parts: Parts, readers: Sequence[str]) -> dict[str, Rates]:
    """Rates of the named readers on the first 256 MiB of these parts; one that is refused is left out.

    Drops what is measured from the page cache first, each time. Raises what reading raises.
    """
    pieces = _pieces(parts)
    memory = _memory(max((piece.count for piece in pieces), default=0))
    rates = {}
    for reader in readers:
        cold, warm = {}, {}
        try:
            for reads in IN_FLIGHT:
                _drop(parts)
                cold[reads], done = _read(pieces, memory, reader=reader, reads=reads)
                # O_DIRECT does not know the page cache, which holds only what was just read.
                warm[reads] = cold[reads]
                if reader != "direct":
                    warm[reads], _ = _read(pieces[:done], memory, reader=reader, reads=reads, again=True)
        except UnsupportedError:  # said where the choice is shown: it has no rate
            continue
        rates[reader] = Rates(cold, warm)
    return rates


def _memory(piece_bytes: int) -> list[np.ndarray]:
    """Page-aligned buffers for pieces, beside each other in large pages."""
    pitch = round_up(max(piece_bytes, 1), PAGE_BYTES)
    whole = aligned_buffer(round_up(MEMORY_BYTES, pitch))
    whole.fill(0)  # pages that are not there yet are no matter of the disk's
    return [whole[start : start + piece_bytes] for start in range(0, whole.shape[0], pitch)]


@dataclass(frozen=True)
class _Piece:
    directory: Path
    length: int
    start: int
    count: int


def _pieces(parts: Parts) -> list[_Piece]:
    pieces, left = [], MEASURED_BYTES
    for directory, length in parts:
        for start in range(0, length, PIECE_BYTES):
            if left <= 0:
                return pieces
            pieces.append(_Piece(directory, length, start, min(PIECE_BYTES, length - start)))
            left -= pieces[-1].count
    return pieces


def _read(
    pieces: Sequence[_Piece],
    memory: Sequence[np.ndarray],
    *,
    reader: str,
    reads: int,
    again: bool = False,
) -> tuple[Reading, int]:
    """Reads pieces on some threads until they or the time are used up; how fast, and how many it were.

    again: they never are used up, but read over and over.
    """
    turn, lock = itertools.count(), threading.Lock()
    bytes_read, cpu_seconds = [0] * reads, [0.0] * reads
    begun = time.perf_counter()

    def work(thread: int) -> int:
        clock, own = time.thread_time(), itertools.cycle(memory[thread::reads])
        last = 0
        while True:
            with lock:
                number = next(turn)
            late = time.perf_counter() - begun >= MEASURED_SECONDS
            if (number >= len(pieces) and not again) or (late and number >= reads):
                cpu_seconds[thread] = time.thread_time() - clock
                return last
            piece = pieces[number % len(pieces)]
            with open_part(piece.directory, piece.length, reader=reader) as read_at:
                read_at(next(own)[: piece.count], piece.start)
            bytes_read[thread] += piece.count
            last = number + 1

    with ThreadPoolExecutor(reads) as pool:
        done = max(pool.map(work, range(reads)))
    seconds = time.perf_counter() - begun
    total = sum(bytes_read)
    return Reading(total / seconds, sum(cpu_seconds) / total), done


def _drop(parts: Parts) -> None:
    if not hasattr(os, "posix_fadvise"):  # no Linux: "cold" is then what it is
        return
    for directory, length in _measured(parts):
        handle = os.open(directory / DATA_FILE, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, length, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _measured(parts: Parts) -> Iterator[tuple[Path, int]]:
    """Of each part, as much as is measured."""
    left = MEASURED_BYTES
    for directory, length in parts:
        if left <= 0:
            return
        yield directory, min(length, left)
        left -= length


def rates_of(parts: Parts, readers: Sequence[str]) -> dict[str, Rates]:
    """Rates of the named readers on the disk of these parts: remembered ones, or else measured now.

    One that the file system refuses is left out. Raises what reading raises.
    """
    disk = disk_of(parts[0][0] / DATA_FILE, [length for _, length in parts])
    known = remembered(disk)
    missing = [reader for reader in readers if reader not in known]
    if missing:
        measured = measure(parts, missing)
        keep(disk, {reader: measured.get(reader) for reader in missing})
        known |= measured
    return {reader: rates for reader in readers if (rates := known.get(reader)) is not None}


def disk_of(path: Path, lengths: Sequence[int]) -> str:
    """What a measurement is good for: this host, the device of the file system that holds `path`, and parts
    of about these lengths in bytes."""
    mean = min(sum(lengths) // max(len(lengths), 1), PIECE_BYTES)
    size_class = 2 ** max(mean.bit_length() - 1, 0)
    return f"{socket.gethostname()} {path.stat().st_dev}, parts of {size_class} bytes and more"


def keep(disk: str, rates: Mapping[str, Rates | None]) -> None:
    """Remembers the rates of a disk's readers beside those that are known; None for one that is refused."""
    entry: dict[str, Any] = {}
    for reader, each in (remembered(disk) | dict(rates)).items():
        states = None if each is None else {"cold": each.cold_by_reads, "warm": each.warm_by_reads}
        entry[reader] = states and {
            state: {
                str(reads): [reading.bytes_per_second, reading.cpu_seconds_per_byte]
                for reads, reading in by_reads.items()
            }
            for state, by_reads in states.items()
        }
    remember(FILE, {disk: entry})


def remembered(disk: str) -> dict[str, Rates | None]:
    """What `keep` kept for a disk; empty if there is nothing, or something that makes no sense."""
    try:
        entry = dict(recall(FILE, disk) or {})
        rates = {
            reader: None if held is None else Rates(_readings(held["cold"]), _readings(held["warm"]))
            for reader, held in entry.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return {}  # damaged: measuring again costs half a second
    return rates if rates.keys() <= set(READERS) else {}


def _readings(held: Mapping[str, Sequence[float]]) -> dict[int, Reading]:
    """Raises ValueError and others for what no measurement gives."""
    readings = {int(reads): Reading(float(rate), float(cost)) for reads, (rate, cost) in held.items()}
    values = [(each.bytes_per_second, each.cpu_seconds_per_byte) for each in readings.values()]
    good = all(math.isfinite(rate) and rate > 0 and 0 <= cost < math.inf for rate, cost in values)
    if not good or set(readings) != set(IN_FLIGHT):
        raise ValueError("no rates")
    return readings
