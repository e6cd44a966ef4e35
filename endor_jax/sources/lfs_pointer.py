"""Git LFS pointers: the few lines of text that a clone has in place of a file which was not fetched.

Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

from pathlib import Path

from endor_jax.errors import InvalidInputError
from endor_jax.sources.byte_range import is_regular_file, read_range, readable

_START = b"version https://git-lfs.github.com/spec/"
_MAXIMUM_BYTES = 1024


def refuse_pointer(path: Path) -> None:
    """Raises InvalidInputError if a file is a pointer to what should be there, or is no regular file."""
    if not is_regular_file(path):
        return
    with readable(path):
        size = path.stat().st_size
    if not len(_START) <= size < _MAXIMUM_BYTES:
        return
    if read_range(path, offset=0, length=len(_START), what="start").tobytes() == _START:
        raise InvalidInputError(
            str(path),
            got="a Git LFS pointer: the file itself was not fetched",
            expected="its contents",
            fix="run `git lfs install` and `git lfs pull` in that repository, or download the file",
        )
