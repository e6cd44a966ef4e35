"""Positioned reads from a file, each into fresh memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from endor_jax.errors import InvalidInputError


def read_range(path: Path, *, offset: int, length: int, what: str) -> np.ndarray:
    """Bytes `offset` to `offset + length` of a file: (length,) uint8, owned by the caller.

    Nothing is mapped and no descriptor outlives the call: mapped pages would count against the memory that
    conversion promises not to exceed, and threads need no lock. `what` names the reader's purpose in the
    InvalidInputError raised when the file ends too early.
    """
    data = np.empty(length, np.uint8)
    view = data.data
    done = 0
    with path.open("rb", buffering=0) as file:
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
