"""How readers are fuzzed: how many cases, what damage is, and what no case may do.

ENDOR_TEST_FUZZ sets the number of cases per reader, shared among its tests; with many, `-o addopts=""` leaves
out the type checks at run time, which take most of the time. A case may end in an accepted file or in one
EndorError of one line. It may not take longer than `SECONDS`, nor map more than `MEMORY_BYTES` above what the
process has: the limit is set on the process, so a giant allocation is a MemoryError.
"""

from __future__ import annotations

import os
import resource
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import hypothesis
from hypothesis import HealthCheck
from hypothesis import strategies as st

from endor_jax.errors import EndorError

CASES = int(os.environ.get("ENDOR_TEST_FUZZ", "300"))
SECONDS = 10  # the machine is shared; a case takes about a millisecond
MEMORY_BYTES = 256 << 20
LINE_CHARACTERS = 1500

NASTY_SIZES = [0, 1, 2, 3, 7, 8, 31, 32, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1]
NASTY_SIZES += [2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]


def settings(tests: int) -> hypothesis.settings:
    """For one of `tests` tests that share the cases of a reader."""
    return hypothesis.settings(
        max_examples=-(-CASES // tests),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Content(bytes):
    """A file as a case has it, shown by its beginning: hypothesis warns of longer texts."""

    def __repr__(self) -> str:
        return f"{bytes(self[:1500])!r}... {len(self):,} bytes"


@dataclass
class Bench:
    """A directory in memory for the file under test, and a count of how cases ended."""

    directory: Path
    ended: Counter[str] = field(default_factory=Counter)

    def judge(self, read: Callable[[], None]) -> None:
        """Run one case. `read` asserts that what it accepts is right; anything but an EndorError fails."""
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            read()
            self.ended["accepted"] += 1
        except EndorError as error:
            line = str(error)
            assert line.isprintable(), repr(line)
            assert len(line) < LINE_CHARACTERS, line
            self.ended[type(error).__name__] += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def bench(name: str) -> Iterator[Bench]:
    """Limits for as long as cases run; says at the end how they ended."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        made = Bench(Path(directory))
        resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + MEMORY_BYTES, before[1]))
        try:
            yield made
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
            signal.signal(signal.SIGALRM, handler)
            counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(made.ended.items()))
            print(f"\n{name}: {made.ended.total():,} cases: {counts}")


def damaged(valid: bytes, *, header_bytes: int) -> st.SearchStrategy[Content]:
    """Flips in the data, or up to four flips, cuts and insertions anywhere, most of them in the header."""
    inside = st.tuples(
        st.just("flip"), st.integers(header_bytes, len(valid) - 1), st.binary(min_size=1, max_size=1)
    )
    places = st.one_of(st.integers(0, header_bytes), st.integers(0, header_bytes), st.integers(0, len(valid)))
    flip = st.tuples(st.just("flip"), places, st.binary(min_size=1, max_size=1))
    replaced = st.tuples(
        st.just("replace"), places, st.sampled_from([size.to_bytes(8, "little") for size in NASTY_SIZES])
    )
    insert = st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=9))
    drop = st.tuples(st.just("drop"), places, st.binary(min_size=1, max_size=9))
    cut = st.tuples(st.just("cut"), places, st.just(b""))
    anywhere = st.lists(st.one_of(flip, flip, replaced, insert, drop, cut), min_size=1, max_size=4)
    edits = st.one_of(
        st.lists(inside, min_size=1, max_size=4), anywhere, st.lists(flip, min_size=1, max_size=1), anywhere
    )
    return edits.map(lambda chosen: _apply(valid, chosen))


def _apply(valid: bytes, edits: list[tuple[str, int, bytes]]) -> Content:
    data = bytearray(valid)
    for kind, place, content in edits:
        if kind == "insert":
            data[place:place] = content
        elif kind == "drop":
            del data[place : place + len(content)]
        elif kind == "cut":
            del data[place:]
        else:
            data[place : place + len(content)] = content
    return Content(data)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a case took longer than {SECONDS} s")
