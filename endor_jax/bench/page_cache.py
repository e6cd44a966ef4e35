"""Files in the page cache and out of it: dropped, read in and counted, so that cold and warm are checked.

Only the pages of the files that are named are dropped, not those of everything else on the machine
(/proc/sys/vm/drop_caches). Linux keeps a page that is mapped or not yet written; what stays is in the count.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from endor_jax.errors import EndorError, UnsupportedError

BLOCK_BYTES = 8 * 2**20


def check_page_cache() -> None:
    """Raises UnsupportedError elsewhere than on Linux, where files cannot be dropped or counted."""
    if sys.platform != "linux":
        raise UnsupportedError(
            "page cache",
            got=sys.platform,
            expected="Linux, where files can be dropped from it and counted in it",
            fix="measure on Linux",
        )


def files_below(directory: Path) -> tuple[Path, ...]:
    """All files in a directory and below that hold bytes, by name."""
    return tuple(sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size))


def write_back(files: Sequence[Path]) -> None:
    """Waits until the disk has what was written to files: only then can they be dropped."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def drop(files: Sequence[Path]) -> None:
    """Takes files out of the page cache, but for pages that are mapped."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def fill(files: Sequence[Path]) -> None:
    """Reads files once, so that the page cache has them."""
    block = bytearray(BLOCK_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def cached_share(files: Sequence[Path]) -> float:
    """The share of the files' pages that is in the page cache, from 0 to 1. Raises EndorError if the system
    does not tell."""
    counts = [_pages(path) for path in files]
    return sum(cached for cached, _ in counts) / max(sum(pages for _, pages in counts), 1)


def _pages(path: Path) -> tuple[int, int]:
    """How many pages of a file are cached, and how many there are (mincore, man 2 mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file:
        # Copy-on-write only so that Python lets the address be taken: nothing is written, or touched.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        held = ctypes.c_char.from_buffer(mapped)
        try:
            pages = -(-len(mapped) // mmap.PAGESIZE)
            states = (ctypes.c_ubyte * pages)()
            address = ctypes.c_void_p(ctypes.addressof(held))
            if libc.mincore(address, ctypes.c_size_t(len(mapped)), states):
                raise EndorError(
                    f"page cache, {path}",
                    got=os.strerror(ctypes.get_errno()),
                    expected="a count of its pages",
                    fix="measure files of your own",
                )
            return bytes(states).translate(_LOWEST_BIT).count(1), pages
        finally:
            del held  # or the mapping cannot be closed
            mapped.close()


_LOWEST_BIT = bytes(value & 1 for value in range(256))
"""The others mean nothing."""
