"""Files written under temporary names and put in place all together, or not at all.

`NAME` is written as `.NAME.partial`, locked meanwhile. A process that fails leaves nothing. One that is
killed leaves such files behind, and the next one takes them over.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from endor_jax.errors import DestinationBusyError, DestinationExistsError, EndorError, StorageError
from endor_jax.store.files import sync_directory


@contextmanager
def partial_files(directory: Path, sizes: Mapping[Path, int]) -> Iterator[dict[Path, FileIO]]:
    """Empty files, open for writing, by the path in `directory` that each gets when the block ends well.

    `sizes` are the bytes that each will have, by that path, in the order in which they appear. If the block
    or putting them in place fails, nothing is left that was not there before, directories included. Raises
    DestinationBusyError if another process writes one of them, DestinationExistsError if one is there
    already, StorageError if the file system has not the room or refuses.
    """
    with ExitStack() as undo, ExitStack() as closing:
        with storing(directory):
            _make_directories(directory, undo)
            opened = {target: _open(target, undo, closing) for target in sizes}
            _check_room(directory, sum(sizes.values()))
        yield opened
        with storing(directory):
            for file in opened.values():
                os.fsync(file.fileno())
            for target in opened:
                _put(target, undo)
            sync_directory(directory)
        undo.pop_all()


def write_all(file: FileIO, data: memoryview, *, directory: Path) -> None:
    """All of `data`: unbuffered writes may be short, Linux takes at most 2 GiB each. Raises StorageError."""
    with storing(directory):
        while data:
            data = data[file.write(data) :]


@contextmanager
def storing(directory: Path) -> Iterator[None]:
    """What the system says against writing, as StorageError."""
    try:
        yield
    except EndorError:
        raise
    except OSError as error:
        raise StorageError(
            f"writing to {directory}",
            got=error.strerror or str(error),
            expected="a directory with room that this user may write to",
            fix="nothing is left of it: free some space or choose another directory, and start again",
        ) from error


def _make_directories(directory: Path, undo: ExitStack) -> None:
    for path in (*reversed(directory.parents), directory):
        if not path.exists():
            path.mkdir(exist_ok=True)
            undo.callback(_remove_empty, path)


def _remove_empty(path: Path) -> None:
    # Somebody else may have put something there; then it stays.
    with suppress(OSError):
        path.rmdir()


def _open(target: Path, undo: ExitStack, closing: ExitStack) -> FileIO:
    path = target.with_name(f".{target.name}.partial")
    # Neither through links nor waiting at pipes: the directory may be anybody's.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = closing.enter_context(FileIO(os.open(path, flags, 0o666), "r+"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(
            path.stat(), os.fstat(file.fileno())
        )  # not renamed or removed before the lock
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if not ours:
        raise DestinationBusyError(
            str(target),
            got="another process that writes it",
            expected="one writer at a time",
            fix="wait until it has ended, or choose another directory",
        )
    undo.callback(path.unlink, missing_ok=True)
    file.truncate(0)
    return file


def _check_room(directory: Path, needed: int) -> None:
    """Beforehand, because hours of work may come before the byte that finds the disk full."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise StorageError(
            f"writing to {directory}",
            got=f"{free:,} bytes free",
            expected=f"{needed:,}",
            fix="free some space or choose another directory",
        )


def _put(target: Path, undo: ExitStack) -> None:
    if os.path.lexists(target):
        raise DestinationExistsError(
            str(target),
            got="a file that came while it was written",
            expected="a directory that nothing else writes to",
            fix="choose another directory",
        )
    target.with_name(f".{target.name}.partial").rename(target)
    undo.callback(target.unlink, missing_ok=True)
