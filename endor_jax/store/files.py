"""The files of a checkpoint: opened only if there, regular and inside it; directories synced.

A directory may hold anything under the names that a manifest lists: a pipe that never ends, a directory, a
link to somewhere else, a file too large for memory. None of them is opened for reading here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TypeAlias

from endor_jax.errors import CorruptCheckpointError, IncompleteCheckpointError

FileState: TypeAlias = tuple[int, ...]
"""Device, inode, size and time of change."""
FILE_LIMIT_BYTES = 2**30
"""More than any file beside the parts has: manifest, metadata, tokenizer."""


def inside(root: Path, name: str) -> Path:
    """The path of a file of the checkpoint in `root`. Raises CorruptCheckpointError if links lead outside."""
    path = root / name
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), "")):
        raise CorruptCheckpointError(
            f"file {path}",
            got=f"a link to {os.path.realpath(path)}",
            expected="a file inside the checkpoint",
            fix="put the file itself there",
        )
    return path


def open_file(path: Path, *, flags: int = 0) -> int:
    """A file descriptor for reading a regular file; `flags` go to os.open beside O_RDONLY.

    Raises IncompleteCheckpointError if there is none, CorruptCheckpointError if it is something else, OSError
    for what the system refuses.
    """
    try:
        # Not waiting for the other end of a pipe. For files the flag means nothing.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO):
            raise not_a_file(path, os.strerror(error.errno)) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise not_a_file(path, "something that is no file")
    return handle


def read_bytes(path: Path) -> bytes:
    """All of a file of at most 1 GiB. Raises as `open_file`, CorruptCheckpointError for a larger one."""
    with os.fdopen(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > FILE_LIMIT_BYTES:
            raise not_a_file(path, f"{size:,} bytes")
        return file.read()


def sync_directory(directory: Path) -> None:
    """Makes what was made, renamed and removed in a directory durable. Raises OSError.

    A file system that cannot do that for directories says so with EINVAL; then there is nothing to be done.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def file_state(path: Path) -> FileState:
    """What changes when a file is written to or replaced; nothing of one that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def missing(path: Path) -> IncompleteCheckpointError:
    """The error for a file that a manifest lists and that is not there."""
    return IncompleteCheckpointError(
        f"file {path}",
        got="no such file",
        expected="this file, which the manifest lists",
        fix="copy the checkpoint again, or convert it again",
    )


def not_a_file(path: Path, got: str) -> CorruptCheckpointError:
    """The error for something that cannot be a file of a checkpoint."""
    return CorruptCheckpointError(
        f"file {path}",
        got=got,
        expected=f"a file of at most {FILE_LIMIT_BYTES:,} bytes",
        fix="copy or convert the checkpoint again",
    )
