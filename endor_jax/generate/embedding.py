"""The token embedding, left on disk: rows are read and decoded on the host as tokens need them.

A matrix of a few hundred megabytes, of which a token needs one row. Of a part that is not in memory the rows
asked for are read to where they belong in an address space of the part's size, whose other pages stay
untouched and take no memory; so the ordinary decoder of rows serves, the plain twin of the kernels.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from endor_jax.arrays import dtype_from_name, round_up
from endor_jax.errors import InvalidInputError
from endor_jax.format.decode import decode_rows
from endor_jax.format.layout import FieldLayout, Section
from endor_jax.store.direct import ReadAt
from endor_jax.store.manifest import Part, StoredRecord
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.prefetch import closed_error
from endor_jax.streaming.share import WHOLE, Share

PAGE = mmap.PAGESIZE
ROWS_AT_ONCE = 128
"""Rows whose pages are in memory at the same time."""


class Embedding:
    """A (vocabulary, hidden) matrix stored in parts of equal row counts. `close` is idempotent.

    Opening it reads every part once, to compare digests. Escape lists stay in memory. share: of several
    processes; of parts that are not in it, rows are zeros here, and nothing is read.
    Raises IncompleteCheckpointError or CorruptCheckpointError.
    """

    def __init__(self, checkpoint: Checkpoint, record: StoredRecord, *, share: Share = WHOLE):
        layout = checkpoint.manifest.layout(record)["weight"]
        assert isinstance(layout, FieldLayout)  # or it could not have been cut into blocks
        self.layout = layout
        self._lock = threading.Lock()
        self._closed = False
        self._files = ExitStack()
        # Of an embedding that nobody closed; not when Python is half gone.
        weakref.finalize(self, self._files.close)
        try:
            # Blocks of a tied head go to devices in turn: these are the parts that are read for it too.
            self._parts = {
                index: _SparsePart(self._files.enter_context(checkpoint.open_part(part)), part, layout)
                for index, part in enumerate(record.parts)
                if index % share.count in share.places
            }
        except BaseException:
            self._files.close()
            raise

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.layout.shape[0]

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """Rows of token ids: (len(ids), hidden) in the stored dtype. May be called from several threads.

        Raises InvalidInputError for an id outside the vocabulary, CorruptCheckpointError for a file that was
        cut off meanwhile.
        """
        wanted = np.asarray(ids, np.int64)
        check_ids(wanted, self.vocabulary)
        distinct, places = np.unique(wanted, return_inverse=True)
        values = np.empty((len(distinct), self.layout.columns), dtype_from_name(self.layout.dtype))
        with self._lock:
            if self._closed:
                raise closed_error()
            for first in range(0, len(distinct), ROWS_AT_ONCE):
                group = distinct[first : first + ROWS_AT_ONCE]
                self._decode(group, into=values[first : first + ROWS_AT_ONCE])
        return values[places]

    def _decode(self, wanted: np.ndarray, *, into: np.ndarray) -> None:
        part_of = wanted // self.layout.rows
        for index in np.unique(part_of):
            here = part_of == index
            if index in self._parts:
                into[here] = self._parts[index].decode(wanted[here] % self.layout.rows)
            else:
                into[here] = 0

    def close(self) -> None:
        """Closes the files; `rows` raises StreamError afterwards."""
        with self._lock:
            self._closed = True
            self._files.close()


def check_ids(ids: Sequence[int] | np.ndarray, vocabulary: int) -> None:
    """Raises InvalidInputError for an id outside the vocabulary."""
    wanted = np.asarray(ids, np.int64)
    bad = wanted[(wanted < 0) | (wanted >= vocabulary)]
    if bad.size:
        raise InvalidInputError(
            "token ids",
            got=f"id {bad[0]}",
            expected=f"0 to {vocabulary - 1}",
            fix="use the tokenizer of this model",
        )


class _SparsePart:
    """One part's words, of which only what was read is in memory."""

    def __init__(self, read_at: ReadAt, part: Part, layout: FieldLayout):
        self._read_at, self._length, self._layout = read_at, part.length_bytes, layout
        # Private: pages of a shared mapping would stay when they are given back.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, round_up(part.length_bytes, PAGE), flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # or a touched page would bring 2 MiB
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._words = self._bytes[: part.length_bytes].view(np.uint32)
        self._fill([(0, 4 * (layout.header + 2))])
        start, count = (int(word) for word in self._words[layout.header : layout.header + 2])
        # The words of the indices, and at most as many of element bits.
        self._escapes = (4 * start, min(4 * (start + 2 * count), part.length_bytes))
        self._fill([self._escapes])

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows of the part, decoded: (n, columns)."""
        layout = self._layout
        taken = self._fill(
            [place for section in layout.sections for place in _rows_of(section, rows, layout)]
        )
        offsets = self._words[layout.offsets.start : layout.offsets.stop].reshape(layout.rows, -1)[rows]
        # A row's fields end at most `columns` fields behind its first; a field is read as two words.
        first, bits = offsets[:, 0].astype(np.int64) // 8, layout.columns * layout.field_bits
        taken += self._fill([(int(start) // 4 * 4, int(start) + bits // 8 + 12) for start in first])
        result = decode_rows(self._words, layout, rows)
        self._forget(taken)
        return result

    def _fill(self, places: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Reads byte ranges, as whole pages, each page once; returns the ranges of pages."""
        ranges: list[tuple[int, int]] = []
        end = round_up(self._length, PAGE)
        for start, stop in sorted((a // PAGE * PAGE, min(round_up(b, PAGE), end)) for a, b in places):
            if ranges and start <= ranges[-1][1]:
                ranges[-1] = ranges[-1][0], max(stop, ranges[-1][1])
            elif start < stop:
                ranges.append((start, stop))
        for start, stop in ranges:
            self._read_at(self._bytes[start : min(stop, self._length)], start)
        return ranges

    def _forget(self, ranges: list[tuple[int, int]]) -> None:
        """Gives pages back, but those of the header and of the escape list."""
        kept = [(0, PAGE), (self._escapes[0] // PAGE * PAGE, round_up(self._escapes[1], PAGE))]
        for start, stop in ranges:
            for low, high in kept:
                if start < high and low < stop:  # a range is rows of one section: it ends where these begin
                    start, stop = (high, stop) if low <= start else (start, low)
            if start < stop:
                self._memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _rows_of(section: Section, rows: np.ndarray, layout: FieldLayout) -> list[tuple[int, int]]:
    """Where in the part, in bytes, a section has what belongs to some rows; an entry per row."""
    if section is layout.bases:
        each = layout.segments
    elif section is layout.scales:
        each = 2 * layout.groups
    else:
        each = 4 * section.words // layout.rows
    return [(4 * section.start + row * each, 4 * section.start + (row + 1) * each) for row in rows.tolist()]


def held_bytes(layout: FieldLayout) -> int:
    """Most memory that an embedding of this layout takes: escape lists, and the pages of some rows."""
    escapes = layout.escape_capacity * (4 + layout.number.bits // 8) + 2 * PAGE
    parts = -(-layout.shape[0] // layout.rows)
    row = round_up(layout.columns * layout.field_bits // 8, PAGE) + PAGE
    sections = 2 * PAGE * len(layout.sections)
    return parts * escapes + ROWS_AT_ONCE * (row + sections)
