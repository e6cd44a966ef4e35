"""Which reader a checkpoint is read with: measured on its own files, decided by a pure function, remembered.

Two readers come into question. `preadv` goes through the page cache, so what fits there comes from memory
from the second pass on. `direct` goes past it: every pass costs the same, nothing is evicted. A checkpoint is
read in a circle, and of a circle that is larger than the cache the cache holds nothing when it is needed.
`mmap` is never chosen: a disk that fails under a mapping kills the process, and no exception can be made of
it. `tensorstore` neither: it reads into memory of its own first, which no budget counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from endor_jax.memory import free_host_bytes
from endor_jax.store.disk_rates import Parts, Rates, Reading, rates_of

SMALL_BYTES = 16 * 2**20
"""Checkpoints up to this are read with preadv, unmeasured: reading all of it takes less than measuring."""
CANDIDATES = ("preadv", "direct")
COLD_MARGIN = 0.9
"""Where the cache does not help, `direct` may be this much slower: it leaves the cache to others."""
READS = 2
"""Reads in flight where nothing was measured: one reads while the other verifies or waits."""
READS_MARGIN = 0.97
"""Of the rate with the best number of reads in flight: fewer do, if they give that much."""


@dataclass(frozen=True)
class Choice:
    """A reader, why it was taken, and what was measured (nothing where it was not needed).

    reads: reads in flight at once, the fewest that are about as fast as any number. cached: whether what is
    read again is expected to come from the page cache.
    """

    reader: str
    why: str
    rates: Mapping[str, Rates] = field(default_factory=dict)
    reads: int = READS
    cached: bool = False

    @property
    def expected(self) -> Mapping[int, Reading]:
        """The reader's rates once a pass is over, by reads in flight; empty where nothing was measured."""
        if self.reader not in self.rates:
            return {}
        rates = self.rates[self.reader]
        return rates.warm_by_reads if self.cached else rates.cold_by_reads


def choose(rates: Mapping[str, Rates], *, read_bytes: int, cache_bytes: int) -> Choice:
    """The reader for `read_bytes` that are read again and again, where the page cache can take `cache_bytes`.

    rates: must have "preadv"; "direct" is absent where the file system refuses it. Others are not looked at.
    """
    fits = read_bytes <= cache_bytes
    if "direct" not in rates:
        return _choice("preadv", "the file system has no O_DIRECT", rates, fits=fits)
    buffered, direct = rates["preadv"], rates["direct"]
    if fits:
        if buffered.warm >= direct.cold:
            return _choice(
                "preadv", "all of it fits in the page cache, and comes from there", rates, fits=True
            )
        return _choice("direct", "it is faster than even the page cache", rates, fits=True)
    if direct.cold >= COLD_MARGIN * buffered.cold:
        why = "it does not fit in the page cache, which would only be churned"
        return _choice("direct", why, rates, fits=False)
    why = "it does not fit in the page cache, but O_DIRECT is slower here"
    return _choice("preadv", why, rates, fits=False)


def _choice(reader: str, why: str, rates: Mapping[str, Rates], *, fits: bool) -> Choice:
    """The choice of this reader with its best number of reads in flight."""
    cached = fits and reader != "direct"
    if reader not in rates:
        return Choice(reader, why, rates, cached=cached)
    measured = rates[reader].warm_by_reads if cached else rates[reader].cold_by_reads
    best = max(reading.bytes_per_second for reading in measured.values())
    reads = min(
        reads for reads, reading in measured.items() if reading.bytes_per_second >= READS_MARGIN * best
    )
    return Choice(reader, why, rates, reads, cached)


def choose_reader(parts: Parts, *, reader: str | None = None) -> Choice:
    """The reader for the parts of a checkpoint: (directory, length in bytes) of each.

    reader: one that was asked for by name; then only the number of its reads in flight is chosen. Measures at
    most once per disk and host (`disk_rates`). Raises what reading raises.
    """
    total = sum(length for _, length in parts)
    asked = "it was asked for"
    if total <= SMALL_BYTES:
        return Choice(
            reader or "preadv", asked if reader else f"{total:,} bytes are too few for it to matter"
        )
    rates = rates_of(parts, CANDIDATES if reader is None else (reader,))
    if reader is None:
        return choose(rates, read_bytes=total, cache_bytes=free_host_bytes())
    return _choice(reader, asked, rates, fits=total <= free_host_bytes())
