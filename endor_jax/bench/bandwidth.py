"""How fast this machine copies and reads memory, as contenders beside what is measured.

memcpy is libc's, rated by the bytes it copies; read is NumPy's sum of 64-bit integers (the adds cost nothing
beside the reads). Both go round blocks that total at least four times the last-level cache, each cut among
the threads and of the size of a dense matrix: what interrupts a machine hits calls of one length alike.
Linux gives memory in pages of 4 KiB, or of 2 MiB to who asks; XLA and torch do not ask. So each is measured
on both, and what XLA's buffers are compared with is the ordinary kind.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from endor_jax.bench.matrices import copies_beyond
from endor_jax.bench.race import Contender

BLOCK_BYTES = 32 * 2**20
MEMCPY, READ = "memcpy", "read"
HUGE = ", huge pages"


def memory_contenders(*, threads: int, cache_bytes: int, copying: bool) -> list[Contender]:
    """Read, and memcpy if `copying`, on ordinary pages and, where the system has them, on huge ones."""
    pool = ThreadPoolExecutor(threads)
    count = copies_beyond(cache_bytes, BLOCK_BYTES)
    contenders = []
    for huge in (False, True) if hasattr(mmap, "MADV_HUGEPAGE") else (False,):
        sources = [_cut(_memory(BLOCK_BYTES, huge=huge), threads) for _ in range(count)]
        kind = HUGE if huge else ""
        contenders.append(_shared(READ + kind, pool, lambda share: share[0].view(np.uint64).sum(), sources))
        if copying:
            targets = [_cut(_memory(BLOCK_BYTES, huge=huge), threads) for _ in range(count)]
            contenders.append(_shared(MEMCPY + kind, pool, _copy, sources, targets))
    return contenders


def _memory(count: int, *, huge: bool) -> np.ndarray:
    """Bytes of their own pages, all written once."""
    mapped = mmap.mmap(-1, count)
    if huge:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    held = np.frombuffer(mapped, np.uint8)
    held[:] = 1
    return held


def _cut(block: np.ndarray, threads: int) -> list[np.ndarray]:
    """Shares of a block, one per thread, each of whole pages."""
    share = block.size // threads // mmap.PAGESIZE * mmap.PAGESIZE
    return [block[i * share : (i + 1) * share] for i in range(threads)]


def _copy(share: tuple[np.ndarray, ...]) -> None:
    source, target = share
    ctypes.memmove(target.ctypes.data, source.ctypes.data, source.size)


def _shared(
    name: str,
    pool: ThreadPoolExecutor,
    work: Callable[[tuple[np.ndarray, ...]], object],
    *blocks: Sequence[Sequence[np.ndarray]],
) -> Contender:
    """`work` on every share of block number i, each on its own thread."""
    size = sum(share.size for share in blocks[0][0])

    def call(index: int) -> None:
        shares = zip(*(block[index] for block in blocks), strict=True)
        list(pool.map(work, shares))

    return Contender(name, size, len(blocks[0]), call)
