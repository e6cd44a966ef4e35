"""A part's file mapped into memory: its bytes are used where the page cache has them, without a copy.

A file that is cut off, or a disk that fails, between `fetch` and the use of a page that had to go meanwhile,
is SIGBUS, which ends the process: no exception can be made of it. Only for who asks for it by name.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from pathlib import Path

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.errors import UnsupportedError
from endor_jax.store.files import open_file
from endor_jax.store.part import DATA_FILE

_MAP_FIXED, _POPULATE_READ = 0x10, 22
"""Of Linux; Python's mmap has names for neither."""


class MappedPart:
    """The file of a part at the start of an address range of `size_bytes`; behind the file's pages are zeros.

    bytes: (size_bytes,) uint8, not to be written. Pages come into memory when they are touched, or with
    `fetch`; `forget` gives them back to the page cache. They count as resident in between.
    """

    def __init__(self, directory: Path, *, length_bytes: int, size_bytes: int):
        """Maps the first `length_bytes` of the part in `directory`.

        Raises IncompleteCheckpointError, OSError, UnsupportedError elsewhere than on Linux.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            raise UnsupportedError(
                f"part {directory}",
                got="a part to be mapped, and this system lacks what that takes",
                expected="Linux",
                fix="leave reader out",
            )
        # The range is longer than the file, of whose mapping one may not touch what lies behind its end.
        self._range = mmap.mmap(
            -1, round_up(size_bytes, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        self.bytes = np.frombuffer(self._range, np.uint8)[:size_bytes]
        self._length = round_up(length_bytes, mmap.PAGESIZE)
        handle = open_file(directory / DATA_FILE)
        try:
            _map_over(self.bytes.ctypes.data, self._length, handle)
        finally:
            os.close(handle)
        self.bytes.flags.writeable = False

    def fetch(self) -> None:
        """Brings all pages into memory, and waits for them. Raises OSError if the file was cut off."""
        try:
            self._advise(_POPULATE_READ)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file was cut off, or its disk fails
                raise
            self.bytes[: self._length : mmap.PAGESIZE].sum()  # before Linux 5.14: one byte of each page

    def forget(self) -> None:
        """Takes the pages out of this process; the page cache keeps them while it has room."""
        self._advise(mmap.MADV_DONTNEED)

    def _advise(self, advice: int) -> None:
        # Not mmap.madvise: that holds Python's lock while the disk is read, and nothing runs meanwhile.
        if _libc().madvise(self.bytes.ctypes.data, self._length, advice):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _map_over(address: int, length: int, handle: int) -> None:
    """Maps a file over what is mapped at an address. Raises OSError."""
    mapped = _libc().mmap(address, length, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, handle, 0)
    if mapped != address:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
