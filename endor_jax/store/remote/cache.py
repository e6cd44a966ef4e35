"""Parts of remote checkpoints on a local disk, within a bound that holds over all processes that share it.

A part is a file as a local checkpoint has it, under the digests of its bytes: checkpoints that have it in
common share it, and one that changed never finds the old bytes. Whoever uses a checkpoint has a locked file
here that lists its parts; those stay. A pass goes in a circle, and of a circle that is larger than the cache
the oldest is always what is needed next: so what the checkpoints in use do not have room for is not cached at
all, and only what others have left makes room, the longest unused first.

Everything in the directory counts, and what is being written counts in full before its first byte. Whatever a
process that was killed has left is known by its lock, which the system let go of, and removed by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np

from endor_jax.errors import EndorError, OptionError, StorageError
from endor_jax.store.manifest import Part
from endor_jax.store.part import DATA_FILE, file_bytes
from endor_jax.store.remembered import cache_directory
from endor_jax.store.shard import rest_of_shard, write_all

DEFAULT_BYTES = 20 * 2**30
FREE_SHARE = 0.9
"""Of what the disk has free: the default bound, where that is less."""
DIRECTORY = "parts"
"""Below what this machine keeps from one process to the next (`remembered`)."""
LEAST_BYTES = 2**20
"""Less is no bound that the cache's own small files keep."""
TAG_FILE = "CACHEDIR.TAG"
"""By which we know a directory of ours, whose files may be removed, and backups know what to leave out."""
TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# endor_jax: parts of remote checkpoints\n"
_LOCK, _PARTS, _INCOMING, _USERS = "lock", "cached", "incoming", "users"


@dataclass(frozen=True)
class PartCache:
    """Where parts of remote checkpoints are kept on a local disk, and how many bytes of them at most.

    size_bytes: 0 keeps none; None is 20 GiB, or nine tenths of what the disk has room for if that is less.
    directory: None is `parts` below $XDG_CACHE_HOME/endor_jax; "~" is the home directory.
    Raises OptionError for other sizes below 1 MiB, and for texts: --cache-size alone reads units.
    """

    size_bytes: int | None = None
    directory: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.size_bytes is not None and not isinstance(self.size_bytes, Integral):
            raise OptionError(
                "cache",
                got=f"size_bytes={self.size_bytes!r}",
                expected="a number of bytes, an int",
                fix="write 20 GiB as 20 * 2**30",
            )
        if self.size_bytes is not None and self.size_bytes != 0 and self.size_bytes < LEAST_BYTES:
            raise OptionError(
                "cache",
                got=f"{self.size_bytes:,} bytes",
                expected=f"0, or {LEAST_BYTES:,} and more",
                fix="leave it out",
            )


def key_of(part: Part) -> str:
    """The name of a part in the cache: of its bytes, wherever they are stored."""
    text = json.dumps([part.length_bytes, part.chunk_bytes, part.digests])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class OpenCache:
    """A cache in use by one checkpoint, whose parts stay in it until `close`.

    Its methods may be called from several threads. What the disk refuses to keep is not kept, which is
    no error: it is fetched again. Raises StorageError if the directory cannot be made or locked, OptionError
    if it is there already and not a cache.
    """

    def __init__(self, settings: PartCache, parts: Sequence[Part]):
        directory = settings.directory
        self.directory = (
            cache_directory() / DIRECTORY if directory is None else Path(os.path.expanduser(directory))
        )
        try:
            _claim(self.directory)
            for name in (_PARTS, _INCOMING, _USERS):
                (self.directory / name).mkdir(parents=True, exist_ok=True)
            self.size_bytes = _default_bytes(self.directory)
            if settings.size_bytes is not None:
                self.size_bytes = settings.size_bytes
            user = self._enter([key_of(part) for part in parts])
        except OptionError:
            raise
        except OSError as error:
            raise StorageError(
                f"cache {self.directory}",
                got=error.strerror or str(error),
                expected="a directory to keep parts in",
                fix="choose another with --cache-dir, or a size of 0",
            ) from error
        # Also of a checkpoint that nobody closed.
        self._leave = weakref.finalize(self, _leave, *user) if user is not None else None

    def _enter(self, keys: Sequence[str]) -> tuple[int, Path] | None:
        """A locked file that lists the parts in use; None if not even that fits."""
        text = json.dumps(sorted(set(keys))).encode()
        with self._locked():
            self._sweep()
            if not self._make_room(len(text), own=set(keys)):
                return None
            path = self.directory / _USERS / uuid.uuid4().hex
            handle = _new_locked(path)
            try:
                write_all(handle, text)
            except BaseException:
                _leave(handle, path)
                raise
            return handle, path

    @property
    def _is_used(self) -> bool:
        return self._leave is not None and self._leave.alive

    def find(self, part: Part) -> Path | None:
        """The directory of a part that is here whole, for the readers of local parts; None if it is not."""
        if not self._is_used:
            return None
        directory = self.directory / _PARTS / key_of(part)
        now = time.time_ns()  # the system's own idea of now is coarser
        try:
            os.utime(directory, ns=(now, now))
        except OSError:
            return None
        return directory

    def keep(self, part: Part, chunks: Iterable[np.ndarray]) -> None:
        """Keeps the bytes of a part, if there is room for them; otherwise `chunks` is not asked for any.

        chunks: (n,) uint8, one after the other, checked already. What giving them raises is raised.
        """
        if not self._is_used:
            return
        need, directory = file_bytes(part.length_bytes), self.directory / _PARTS / key_of(part)
        incoming = self.directory / _INCOMING / uuid.uuid4().hex
        try:
            with self._locked():
                if directory.exists() or not self._make_room(need):
                    return
                handle = _new_locked(incoming)
                try:
                    os.truncate(handle, need)  # counts in full from now on
                except BaseException:
                    os.close(handle)
                    raise
            try:
                os.posix_fallocate(handle, 0, need)  # a disk that is full says so now
                for chunk in chunks:
                    write_all(handle, chunk.data)
                write_all(handle, rest_of_shard(part.length_bytes, part.chunk_bytes))
                with self._locked():
                    (directory / DATA_FILE).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(incoming, directory / DATA_FILE)
            finally:
                os.close(handle)
        except BaseException as error:
            with suppress(OSError):
                incoming.unlink(missing_ok=True)
            if isinstance(error, EndorError) or not isinstance(error, OSError):
                raise

    def drop(self, part: Part) -> None:
        """Removes a part that is damaged. One that the disk does not let go of is found damaged again."""
        with suppress(OSError), self._locked():
            shutil.rmtree(self.directory / _PARTS / key_of(part))

    def close(self) -> None:
        """Lets go of the parts, which stay until others need the room. Idempotent."""
        if self._leave is not None:
            self._leave()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """While what is in the directory is counted and changed. Raises OSError."""
        handle = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        """Removes what processes that were killed have left. Under the lock."""
        for name in (_INCOMING, _USERS):
            for path in (self.directory / name).iterdir():
                if _is_abandoned(path):
                    path.unlink(missing_ok=True)
        for directory in (self.directory / _PARTS).iterdir():
            if not (directory / DATA_FILE).exists():  # killed between making the directory and the rename
                shutil.rmtree(directory, ignore_errors=True)

    def _make_room(self, need: int, own: set[str] | None = None) -> bool:
        """Whether there is room for so many bytes more; removes parts that nobody uses for it, oldest first.

        own: keys of parts that stay too. Under the lock.
        """
        taken = need + _bytes_below(self.directory)
        if taken <= self.size_bytes:
            return True
        used = self._used() | (own or set())
        unused = [each for each in (self.directory / _PARTS).iterdir() if each.name not in used]
        for directory in sorted(unused, key=lambda each: each.stat().st_mtime_ns):
            taken -= _bytes_below(directory)
            shutil.rmtree(directory)
            if taken <= self.size_bytes:
                return True
        return False

    def _used(self) -> set[str]:
        """Keys of the parts of all checkpoints in use, by whatever process."""
        used: set[str] = set()
        for path in (self.directory / _USERS).iterdir():
            if _is_abandoned(path):
                path.unlink(missing_ok=True)
            else:
                # Its checkpoint was closed just now; or a disk was full, and it claims none.
                with suppress(FileNotFoundError, ValueError):
                    used.update(json.loads(path.read_bytes()))
        return used


def _new_locked(path: Path) -> int:
    """A new file, locked as long as its handle is open. Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except BaseException:
        _leave(handle, path)
        raise
    return handle


def _leave(handle: int, path: Path) -> None:
    """Takes away a locked file, the one that says which parts are in use."""
    with suppress(OSError):
        path.unlink()
    os.close(handle)


def _claim(directory: Path) -> None:
    """Makes a directory a cache. Raises OptionError if it is there, and something else; OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in directory.iterdir()}
    if TAG_FILE in names and (directory / TAG_FILE).read_bytes() in (TAG, b""):  # empty: being written
        return
    if names:
        raise OptionError(
            "cache",
            got=f"{directory}, in which there is {min(names)}",
            expected="an empty directory, or a cache of ours: old parts are removed there",
            fix="choose another directory",
        )
    (directory / TAG_FILE).write_bytes(TAG)


def _is_abandoned(path: Path) -> bool:
    """Whether the process that made a locked file is gone."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _bytes_below(directory: Path) -> int:
    """Bytes of all files below a directory."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):  # somebody's list, or what could not be written, just now
                total += os.stat(os.path.join(where, name)).st_size
    return total


def _default_bytes(directory: Path) -> int:
    """The bound that nobody chose: what the cache holds counts as free."""
    system = os.statvfs(directory)
    free = system.f_bavail * system.f_frsize + _bytes_below(directory)
    return min(DEFAULT_BYTES, int(FREE_SHARE * free))
