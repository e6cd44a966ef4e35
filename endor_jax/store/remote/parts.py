"""The files of a checkpoint in an object store: parts from the cache on a local disk, or over the network.

What comes over the network is compared with the digests of the manifest before it is used, every time; what
the cache has, the first time in a process, as a local checkpoint's. What is damaged there is fetched again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from endor_jax.errors import (
    CorruptCheckpointError,
    EndorError,
    UnsupportedError,
)
from endor_jax.store.damage import check_digests, check_file
from endor_jax.store.digest import digest_bytes, digest_chunks
from endor_jax.store.direct import ReadAt, check_reader, open_part, read_part
from endor_jax.store.files import FileState, file_state
from endor_jax.store.manifest import MANIFEST_FILE, Manifest, Part, manifest_bytes
from endor_jax.store.mapping import MappedPart
from endor_jax.store.part import DATA_FILE, METADATA_FILE, check_metadata, file_bytes
from endor_jax.store.reader_choice import Choice
from endor_jax.store.remote.cache import OpenCache, PartCache
from endor_jax.store.remote.objects import FETCH_BYTES, Objects

READERS = ("preadv", "direct")
"""For what is in the cache. The others want all parts in local files."""
READS = 2
"""Parts under way at once: one is fetched while another is compared and written to the cache."""
BLOCK_BYTES = 2**16
"""Of a part of which pieces are wanted and that is not in the cache: what is fetched and compared at once."""
FETCHES = 2
"""Of bytes that are not those of the manifest: a second time, then they are damaged in the store."""


class RemoteParts:
    """The parts and other files of a checkpoint in an object store; `Checkpoint` says what its methods do.

    count: called with bytes of parts as they are read, from the cache or not. Raises what opening a
    checkpoint raises.
    """

    fetch_bytes = FETCH_BYTES

    def __init__(
        self,
        objects: Objects,
        manifest: Manifest,
        *,
        reader: str | None,
        cache: PartCache,
        count: Callable[[int], None],
    ):
        self._objects, self._manifest, self._count = objects, manifest, count
        if reader is not None:
            _check_named(reader)
        self._reader = reader
        objects.check_lengths({f"{p.path}/{DATA_FILE}": file_bytes(p.length_bytes) for p in manifest.parts})
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._verified: dict[str, FileState] = {}
        self._settings, self._opened = cache, False
        self._cache: OpenCache | None = None

    @property
    def bytes_fetched(self) -> int:
        """Bytes that came over the network."""
        return self._objects.bytes_fetched

    def choose(self) -> Choice:
        """How parts in the cache are read. A network is not measured: there is no prediction.

        Opens the cache: whoever only looks at a checkpoint needs none.
        """
        with self._lock:
            if not self._opened and self._settings.size_bytes != 0:
                self._cache = OpenCache(self._settings, self._manifest.parts)
            self._opened = True
        why = "what is in the cache is read so; the rest comes over the network, which is not measured"
        return Choice(self._reader or "preadv", why, reads=READS)

    def read_part(self, part: Part, into: np.ndarray, *, reader: str) -> None:
        """Fills a (part.length_bytes,) buffer."""
        self._check_metadata(part)
        if not self._from_cache(part, into, reader=reader):
            self._fetch(part, into)
            if self._cache is not None:
                self._cache.keep(part, [into])
        self._count(part.length_bytes)

    def _from_cache(self, part: Part, into: np.ndarray, *, reader: str) -> bool:
        """Whether a buffer was filled from the cache. What is damaged there is removed."""
        directory = None if self._cache is None else self._cache.find(part)
        if directory is None or self._cache is None:
            return False
        try:
            state = file_state(directory / DATA_FILE)
            read_part(directory, into, reader=reader)
            if self._is_unverified(part, state):
                check_digests(directory.parent, self._manifest, part, digest_chunks(into, part.chunk_bytes))
                self._verify(part, state)
        except (CorruptCheckpointError, OSError):  # a file that is not there, a disk that fails
            self._cache.drop(part)
            return False
        return True

    def _is_unverified(self, part: Part, state: FileState) -> bool:
        with self._lock:
            return self._verified.get(part.path) != state

    def _verify(self, part: Part, state: FileState) -> None:
        with self._lock:
            self._verified[part.path] = state

    def _fetch(self, part: Part, into: np.ndarray, start: int = 0) -> None:
        """Fetches whole chunks of a part from byte `start` on, as many as the buffer has; compares them."""
        name, chunk = f"{part.path}/{DATA_FILE}", part.chunk_bytes
        expected = part.digests[start // chunk :][: -(-into.shape[0] // chunk)]
        differing, digests = {0: into.shape[0]}, ()
        for _ in range(FETCHES):
            for first, length in differing.items():
                self._objects.read_into(name, into[first : first + length], start + first)
            digests = digest_chunks(into, chunk)
            differing = {i * chunk: chunk for i, each in enumerate(digests) if each != expected[i]}
            if not differing:
                return
        held = self._objects.get(MANIFEST_FILE)
        if held is None or held.data != manifest_bytes(self._manifest):
            raise CorruptCheckpointError(
                f"part {self._objects.root / part.path}",
                got="the bytes of another checkpoint, by which it was replaced while it was read",
                expected="the one that was opened",
                fix="open it again",
            )
        whole = list(part.digests)
        whole[start // chunk : start // chunk + len(digests)] = digests
        check_digests(self._objects.root, self._manifest, part, tuple(whole))

    @contextmanager
    def open_part(self, part: Part) -> Iterator[ReadAt]:
        """A part open for reading pieces of it: from the cache, if it can be kept there."""
        self._check_metadata(part)
        if not self._opened:
            self.choose()
        directory = self._kept(part)
        if directory is None:
            yield _Blocks(part, self._objects, self._chunks(part), self._count).read_at
            return
        with open_part(directory, part.length_bytes, reader="preadv") as read:

            def read_at(into: np.ndarray, start: int) -> None:
                read(into, start)
                self._count(into.shape[0])

            yield read_at

    def _kept(self, part: Part) -> Path | None:
        """The directory of a part in the cache, verified; fetched, if there is room for it."""
        if self._cache is None:
            return None
        for fetched in (False, True):
            directory = self._cache.find(part)
            if directory is not None and self._is_good(part, directory):
                return directory
            if not fetched:
                self._cache.keep(part, self._chunks(part))
        return None

    def _is_good(self, part: Part, directory: Path) -> bool:
        assert self._cache is not None
        try:
            state = file_state(directory / DATA_FILE)
            if not self._is_unverified(part, state):
                return True
            buffer = np.empty(min(part.chunk_bytes, part.length_bytes), np.uint8)
            with open_part(directory, part.length_bytes, reader="preadv") as read:
                for i, start in enumerate(range(0, part.length_bytes, part.chunk_bytes)):
                    piece = buffer[: part.length_bytes - start]
                    read(piece, start)
                    self._count(piece.shape[0])
                    if digest_bytes(piece) != part.digests[i]:
                        self._cache.drop(part)
                        return False
        except (CorruptCheckpointError, OSError):
            self._cache.drop(part)
            return False
        self._verify(part, state)
        return True

    def _chunks(self, part: Part) -> Iterator[np.ndarray]:
        """The chunks of a part as they are fetched, compared; each is gone when the next comes."""
        buffer = np.empty(min(part.chunk_bytes, part.length_bytes), np.uint8)
        for start in range(0, part.length_bytes, part.chunk_bytes):
            piece = buffer[: part.length_bytes - start]
            self._fetch(part, piece, start)
            yield piece

    def _check_metadata(self, part: Part) -> None:
        """Once for every part, when it is first read."""
        with self._lock:
            if part.path in self._known:
                return
        metadata = self.read_file(f"{part.path}/{METADATA_FILE}")
        check_metadata(self._objects.root / part.path, metadata, part.length_bytes, part.chunk_bytes)
        with self._lock:
            self._known.add(part.path)

    def read_file(self, name: str) -> bytes:
        """One of the other files, checked against its digest."""
        data = self._objects.read(name)
        check_file(self._objects.root / name, self._manifest, name, data)
        return data

    def map_part(self, part: Part) -> MappedPart:
        """Parts of object stores cannot be mapped; the reader that would is refused when one is opened."""
        raise _needs_files("mmap")

    def fetch_mapped(self, part: Part, mapped: MappedPart) -> None:
        """As `map_part`."""
        raise _needs_files("mmap")

    def close(self) -> None:
        """Lets go of the parts in the cache."""
        if self._cache is not None:
            self._cache.close()


class _Blocks:
    """Pieces of a part that the cache has no room for: fetched each time, in blocks whose digests are known
    from when the whole part was fetched and compared once."""

    def __init__(
        self, part: Part, objects: Objects, chunks: Iterator[np.ndarray], count: Callable[[int], None]
    ):
        self._part, self._objects, self._count = part, objects, count
        self._digests: list[str] = []
        for chunk in chunks:  # whole pages, mostly no whole blocks: a block may end with its chunk
            self._digests += digest_chunks(chunk, BLOCK_BYTES)
            self._count(chunk.shape[0])
        self._per_chunk = -(-part.chunk_bytes // BLOCK_BYTES)

    def read_at(self, into: np.ndarray, start: int) -> None:
        """As `ReadAt`. Raises CorruptCheckpointError for a block that is another one now."""
        stop = start + into.shape[0]
        at = start
        while at < stop:
            chunk = at // self._part.chunk_bytes
            first = chunk * self._part.chunk_bytes
            end = min(first + self._part.chunk_bytes, self._part.length_bytes)
            self._read_in_chunk(into[at - start : min(stop, end) - start], at, first, end)
            at = min(stop, end)
        self._count(into.shape[0])

    def _read_in_chunk(self, into: np.ndarray, start: int, first: int, end: int) -> None:
        """Bytes of one chunk, which lies from `first` to `end`."""
        low = (start - first) // BLOCK_BYTES * BLOCK_BYTES + first
        high = min(-(-(start + into.shape[0] - first) // BLOCK_BYTES) * BLOCK_BYTES + first, end)
        buffer = np.empty(high - low, np.uint8)
        index = first // self._part.chunk_bytes * self._per_chunk + (low - first) // BLOCK_BYTES
        for _ in range(FETCHES):
            self._objects.read_into(f"{self._part.path}/{DATA_FILE}", buffer, low)
            digests = digest_chunks(buffer, BLOCK_BYTES)
            if list(digests) == self._digests[index : index + len(digests)]:
                into[:] = buffer[start - low : start - low + into.shape[0]]
                return
        raise CorruptCheckpointError(
            f"part {self._objects.root / self._part.path}",
            got=f"other bytes from {low:,} to {high:,} than when it was opened",
            expected="the same",
            fix="open it again",
        )


def _check_named(reader: str) -> None:
    check_reader(reader)
    if reader not in READERS:
        raise _needs_files(reader)


def _needs_files(reader: str) -> EndorError:
    return UnsupportedError(
        f"reader {reader} for an object store",
        got="parts that are not all in local files",
        expected=", ".join(READERS),
        fix="leave reader out, or copy the checkpoint to a local disk",
    )
