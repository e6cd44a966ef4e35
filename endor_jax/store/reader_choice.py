"""Which reader a checkpoint is read with: measured on its own files, decided by a pure function, remembered.

Two readers come into question. `preadv` goes through the page cache, so what fits there comes from memory
from the second pass on. `direct` goes past it: every pass costs the same, nothing is evicted. A checkpoint is
read in a circle, and of a circle that is larger than the cache the cache holds nothing when it is needed.
`mmap` is never chosen: a disk that fails under a mapping kills the process, and no exception can be made of
it. `tensorstore` neither: it reads into memory of its own first, which no budget counts.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from endor_jax.errors import UnsupportedError
from endor_jax.memory import free_host_bytes
from endor_jax.store.direct import open_part
from endor_jax.store.part import DATA_FILE

SMALL_BYTES = 16 * 2**20
"""Checkpoints up to this are read with preadv, unmeasured: reading all of it takes less than measuring."""
CANDIDATES = ("preadv", "direct")
MEASURED_BYTES = 64 * 2**20
"""Most bytes that one measurement reads ..."""
MEASURED_SECONDS = 0.06
"""... and after which time it ends: two readers, cold and warm, take a quarter of a second."""
BLOCK_BYTES = 2 * 2**20
COLD_MARGIN = 0.9
"""Where the cache does not help, `direct` may be this much slower: it leaves the cache to others."""


@dataclass(frozen=True)
class Rates:
    """Bytes per second of one reader: after the page cache was dropped, and once more right after."""

    cold: float
    warm: float


@dataclass(frozen=True)
class Choice:
    """A reader, why it was taken, and what was measured (nothing where it was not needed)."""

    reader: str
    why: str
    rates: Mapping[str, Rates] = field(default_factory=dict)


def choose(rates: Mapping[str, Rates], *, read_bytes: int, cache_bytes: int) -> Choice:
    """The reader for `read_bytes` that are read again and again, where the page cache can take `cache_bytes`.

    rates: must have "preadv"; "direct" is absent where the file system refuses it. Others are not looked at.
    """
    if "direct" not in rates:
        return Choice("preadv", "the file system has no O_DIRECT", rates)
    buffered, direct = rates["preadv"], rates["direct"]
    if read_bytes <= cache_bytes:
        if buffered.warm >= direct.cold:
            return Choice("preadv", "all of it fits in the page cache, and comes from there", rates)
        return Choice("direct", "it is faster than even the page cache", rates)
    if direct.cold >= COLD_MARGIN * buffered.cold:
        return Choice("direct", "it does not fit in the page cache, which would only be churned", rates)
    return Choice("preadv", "it does not fit in the page cache, but O_DIRECT is slower here", rates)


def choose_reader(parts: Sequence[tuple[Path, int]]) -> Choice:
    """The reader for the parts of a checkpoint: (directory, length in bytes) of each.

    Measures at most once per disk and host; what was measured is kept in $XDG_CACHE_HOME/endor_jax.
    """
    total = sum(length for _, length in parts)
    if total <= SMALL_BYTES:
        return Choice("preadv", f"{total:,} bytes are too few for it to matter")
    disk = disk_of(parts[0][0] / DATA_FILE)
    rates = remembered(disk)
    if rates is None:
        rates = measure(parts)
        remember(disk, rates)
    return choose(rates, read_bytes=total, cache_bytes=free_host_bytes())


def measure(parts: Sequence[tuple[Path, int]], readers: Sequence[str] = CANDIDATES) -> dict[str, Rates]:
    """Rates of the named readers on the first 64 MiB of these parts; one that is refused is left out.

    Drops what is measured from the page cache first. Raises what reading raises.
    """
    rates = {}
    for reader in readers:
        _drop(parts)
        try:
            rates[reader] = Rates(cold=_rate(parts, reader), warm=_rate(parts, reader))
        except UnsupportedError:  # said where the choice is shown: it has no rate
            continue
    return rates


def _drop(parts: Sequence[tuple[Path, int]]) -> None:
    if not hasattr(os, "posix_fadvise"):  # no Linux: "cold" is then what it is
        return
    left = MEASURED_BYTES
    for directory, length in parts:
        handle = os.open(directory / DATA_FILE, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, min(length, left), os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
        left -= length
        if left <= 0:
            return


def _rate(parts: Sequence[tuple[Path, int]], reader: str) -> float:
    """Bytes per second over the first parts, until bytes or time are used up."""
    buffer = np.frombuffer(mmap.mmap(-1, BLOCK_BYTES), np.uint8)
    buffer.sum()  # pages that are not there yet are no matter of the disk's
    done, clock = 0, time.perf_counter()
    for directory, length in parts:
        with open_part(directory, length, reader=reader) as read_at:
            for start in range(0, length, BLOCK_BYTES):
                count = min(BLOCK_BYTES, length - start)
                read_at(buffer[:count], start)
                done += count
                seconds = time.perf_counter() - clock
                if done >= MEASURED_BYTES or seconds >= MEASURED_SECONDS:
                    return done / seconds
    return done / (time.perf_counter() - clock)


def disk_of(path: Path) -> str:
    """What a measurement is good for: this host and the device of the file system that holds `path`."""
    return f"{socket.gethostname()} {path.stat().st_dev}"


def _memory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~/.cache"))
    return root / "endor_jax" / "readers.json"


def remembered(disk: str) -> dict[str, Rates] | None:
    """The rates that `remember` kept for a disk; None if there are none, or none that make sense."""
    try:
        held = json.loads(_memory().read_text())[disk]
        rates = {reader: Rates(float(held[reader]["cold"]), float(held[reader]["warm"])) for reader in held}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # absent or damaged: measuring again costs a quarter of a second
    good = all(math.isfinite(rate) and rate > 0 for each in rates.values() for rate in (each.cold, each.warm))
    return rates if good and "preadv" in rates and rates.keys() <= set(CANDIDATES) else None


def remember(disk: str, rates: Mapping[str, Rates]) -> None:
    """Keeps the rates of a disk, by rename. A cache that cannot be written is none: next time measures."""
    path = _memory()
    entry = {reader: {"cold": rates[reader].cold, "warm": rates[reader].warm} for reader in rates}
    try:
        try:
            kept = json.loads(path.read_text())
        except (ValueError, RecursionError, FileNotFoundError):
            kept = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump((kept if isinstance(kept, dict) else {}) | {disk: entry}, file)
        os.replace(file.name, path)
    except OSError:
        return
