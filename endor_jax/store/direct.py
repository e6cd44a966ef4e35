"""Reading a part's data file into the caller's buffer, by one of four named readers of the very same bytes.

* `preadv`: through the page cache. What was read before, and is still there, comes at memory speed.
* `direct`: O_DIRECT, past the page cache, straight into page-aligned buffers. Evicts nothing.
* `mmap`: a copy out of a mapping. A file that is cut off while it is mapped, or a disk that fails, is SIGBUS,
  which ends the process: no exception can be made of it. Only for who asks for it by name.
* `tensorstore`: the reference; reads into memory of its own first.

The file holds the part's bytes from offset 0 on, then zeros up to a multiple of 4096 and more, then the
index of the shard (docs/format.md), so whole pages can be read wherever the part ends.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from endor_jax.errors import CorruptCheckpointError, IncompleteCheckpointError, OptionError, UnsupportedError
from endor_jax.store import gds
from endor_jax.store.files import open_file
from endor_jax.store.part import (
    DATA_FILE,
    PAGE_BYTES,
    corrupt_part,
    file_bytes,
    missing_file,
    read_through_tensorstore,
)

BOUNCE_BYTES = 2**20
"""O_DIRECT into a buffer that is not page-aligned goes through one of this size, which is."""

ReadAt = Callable[[np.ndarray, int], None]
"""(into, start): reads bytes `start` and following of an open part, as many as the (n,) uint8 buffer has."""


def read_part(directory: Path, into: np.ndarray, *, reader: str = "preadv") -> None:
    """Reads the whole part in `directory` into a (n,) uint8 buffer of exactly its length.

    Raises IncompleteCheckpointError, CorruptCheckpointError for a file of another length, UnsupportedError
    where the file system refuses the named reader, OSError for a disk that fails.
    """
    with open_part(directory, into.shape[0], reader=reader) as read_at:
        read_at(into, 0)


@contextmanager
def open_part(directory: Path, length: int, *, reader: str) -> Iterator[ReadAt]:
    """The part of `length` bytes in `directory`, open for reading anywhere; its file's length is checked.

    Raises as `read_part`, OptionError for a reader there is not.
    """
    check_reader(reader)
    check_length(directory, length)  # also for direct: a file that is not there is no file system's refusal
    with _OPEN[reader](directory, length) as read_at:
        yield read_at


def check_reader(reader: str) -> None:
    """Raises OptionError unless a reader has this name, UnsupportedError for `gds` without a record."""
    if reader == gds.NAME:
        gds.check_record()
    if reader not in READERS:
        raise OptionError(
            "reader",
            got=repr(reader),
            expected=", ".join(READERS),
            fix="choose one of these, or none to have it chosen",
        )


def check_length(directory: Path, length: int) -> None:
    """Raises IncompleteCheckpointError or CorruptCheckpointError unless the part's data file is a file as
    long as a part of `length` bytes needs."""
    handle = _open(directory)
    try:
        size, expected = os.fstat(handle).st_size, file_bytes(length)
    finally:
        os.close(handle)
    if size != expected:
        how = "truncated" if size < expected else "too long, or that of another part"
        raise corrupt_part(
            directory,
            f"{size:,} bytes in {DATA_FILE}",
            f"{expected:,}",
            f"the file is {how}; copy or convert the checkpoint again",
        )


def _open(directory: Path, flags: int = 0) -> int:
    try:
        return open_file(directory / DATA_FILE, flags=flags)
    except IncompleteCheckpointError as error:
        raise missing_file(directory, DATA_FILE) from error
    except CorruptCheckpointError as error:
        raise corrupt_part(directory, f"{error.got} at {DATA_FILE}", error.expected) from error


def _fill(directory: Path, handle: int, into: np.ndarray, start: int, *, unit: int = 1) -> None:
    """preadv until the buffer is full: the system may read less than asked, in multiples of `unit`."""
    done = 0
    while done < into.shape[0]:
        count = os.preadv(handle, [into.data[done:]], start + done)
        done += count
        if count == 0 or (count % unit and done < into.shape[0]):  # cut off while it was read
            got = f"{start + done:,} bytes in {DATA_FILE}"
            raise corrupt_part(directory, got, f"{start + into.shape[0]:,} and more")


@contextmanager
def _preadv(directory: Path, length: int) -> Iterator[ReadAt]:
    handle = _open(directory)
    try:
        yield lambda into, start: _fill(directory, handle, into, start)
    finally:
        os.close(handle)


@contextmanager
def _direct(directory: Path, length: int) -> Iterator[ReadAt]:
    if not hasattr(os, "O_DIRECT"):
        raise _no_direct(directory, "this system has none")
    with _refusals(directory):
        handle = _open(directory, os.O_DIRECT)

    def read_at(into: np.ndarray, start: int) -> None:
        if start % PAGE_BYTES:
            raise ValueError(f"O_DIRECT reads pages; {start} is no multiple of {PAGE_BYTES}")
        aligned = into.ctypes.data % PAGE_BYTES == 0
        whole = into.shape[0] // PAGE_BYTES * PAGE_BYTES if aligned else 0
        with _refusals(directory):
            _fill(directory, handle, into[:whole], start, unit=PAGE_BYTES)
            if whole < into.shape[0]:  # the last page, or everything
                _bounce(directory, handle, into[whole:], start + whole)

    try:
        yield read_at
    finally:
        os.close(handle)


def _bounce(directory: Path, handle: int, into: np.ndarray, start: int) -> None:
    """Reads whole pages into an aligned buffer, and copies what was asked for."""
    pages = -(-into.shape[0] // PAGE_BYTES) * PAGE_BYTES
    buffer = np.frombuffer(mmap.mmap(-1, min(pages, BOUNCE_BYTES)), np.uint8)
    for done in range(0, into.shape[0], BOUNCE_BYTES):
        piece = buffer[: min(pages - done, BOUNCE_BYTES)]
        _fill(directory, handle, piece, start + done, unit=PAGE_BYTES)
        wanted = into[done : done + BOUNCE_BYTES]
        wanted[:] = piece[: wanted.shape[0]]


@contextmanager
def _refusals(directory: Path) -> Iterator[None]:
    """EINVAL, which is how file systems say that they have no O_DIRECT, as UnsupportedError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        raise _no_direct(directory, "its file system refuses it") from error


def _no_direct(directory: Path, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"part {directory}",
        got=f"reader direct, and {why}",
        expected="a file system with O_DIRECT",
        fix="use another reader, or none to have it chosen",
    )


@contextmanager
def _mmap(directory: Path, length: int) -> Iterator[ReadAt]:
    handle = _open(directory)
    try:
        mapped = mmap.mmap(handle, length, prot=mmap.PROT_READ)
    finally:
        os.close(handle)
    with mapped:

        def read_at(into: np.ndarray, start: int) -> None:
            view = np.frombuffer(mapped, np.uint8)
            into[:] = view[start : start + into.shape[0]]
            del view  # a mapping that is seen cannot be closed

        yield read_at


@contextmanager
def _tensorstore(directory: Path, length: int) -> Iterator[ReadAt]:
    yield lambda into, start: read_through_tensorstore(directory, into, start=start)


_OPEN: dict[str, Callable[[Path, int], AbstractContextManager[ReadAt]]] = {
    "preadv": _preadv,
    "direct": _direct,
    "mmap": _mmap,
    "tensorstore": _tensorstore,
}
READERS = tuple(_OPEN)
