"""Reads from files that somebody else made: each into fresh memory, every failure one of our errors."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from endor_jax.errors import EndorError, InvalidInputError, NotFoundError


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the system says against reading `path`, as NotFoundError or InvalidInputError."""
    try:
        yield
    except EndorError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise _absent(path) from error
        raise InvalidInputError(
            str(path),
            got=error.strerror or str(error),
            expected="a file that this user can read",
            fix="check its permissions, those of the directories above it, and the disk",
        ) from error


def is_regular_file(path: Path) -> bool:
    """True for a file or a link to one, false where there is nothing; anything else there is refused.

    Opening a FIFO would wait for a writer for ever and a device need not end, so neither is opened. Raises
    NotFoundError for a link that leads nowhere: leaving out what it stands for would go unnoticed.
    """
    with readable(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise _absent(path) from None
            return False
    if not stat.S_ISREG(mode):
        raise InvalidInputError(
            str(path),
            got="a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device",
            expected="a regular file, or a link to one",
            fix="copy the file itself to that place",
        )
    return True


def read_file(path: Path, *, limit: int) -> bytes:
    """All of a regular file that has at most `limit` bytes. Raises NotFoundError or InvalidInputError."""
    if not is_regular_file(path):
        raise _absent(path)
    with readable(path):
        size = path.stat().st_size
    if size > limit:
        raise InvalidInputError(
            str(path),
            got=f"{size:,} bytes",
            expected=f"at most {limit:,}",
            fix="this is not the file that its name says: fetch it again",
        )
    return read_range(path, offset=0, length=size, what="contents").tobytes()


def read_range(path: Path, *, offset: int, length: int, what: str) -> np.ndarray:
    """Bytes `offset` to `offset + length` of a file: (length,) uint8, owned by the caller.

    Nothing is mapped and no descriptor outlives the call: mapped pages would count against the memory that
    conversion promises not to exceed, a mapped file that shrinks kills the process, and threads need no lock.
    `what` names the reader's purpose in the InvalidInputError raised when the file ends too early.
    """
    with readable(path), path.open("rb", buffering=0) as file:
        data = np.empty(length, np.uint8)
        view = data.data
        done = 0
        file.seek(offset)
        # Linux returns at most 2 GiB per read.
        while done < length and (count := file.readinto(view[done:])):
            done += count
    if done < length:
        raise InvalidInputError(
            f"{what} in {path}",
            got=f"{done:,} bytes from offset {offset:,}",
            expected=f"{length:,}",
            fix="the file is truncated or still being written: fetch it again",
        )
    return data


def _absent(path: Path) -> NotFoundError:
    got = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"
    return NotFoundError(
        str(path),
        got=got,
        expected="a file that belongs to the checkpoint",
        fix="fetch it from where the weights came from",
    )
