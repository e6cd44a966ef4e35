"""Hidden states of all calibration blocks between two layers, in a file that vanishes with the process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float

from endor_jax.errors import StorageError


class Activations:
    """(blocks, length, width) float32, read and written some blocks at a time; `close` is idempotent.

    In a file without a name, so that not even a killed process leaves it behind: memory holds the blocks in
    work, the system's page cache as much of the rest as it can spare.
    Raises StorageError, in every method, if the file system refuses.
    """

    def __init__(self, directory: Path, shape: tuple[int, int, int]):
        self.shape = shape
        self._directory = directory
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115, closed by close
            os.posix_fallocate(self._file.fileno(), 0, self.size_bytes)  # no surprise in the middle
        except OSError as error:
            raise self._refused(error) from error

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return 4 * self.shape[0] * self._block_elements

    @property
    def _block_elements(self) -> int:
        return self.shape[1] * self.shape[2]

    def read(self, first: int, count: int) -> Float[np.ndarray, "count length width"]:
        """Blocks first, ..., first + count − 1, in memory of their own."""
        values = np.empty((count, *self.shape[1:]), np.float32)
        rest, position = values.data.cast("B"), 4 * first * self._block_elements
        try:
            while rest:
                read = os.preadv(self._file.fileno(), [rest], position)
                if read == 0:
                    raise OSError("the file ends early")
                rest, position = rest[read:], position + read
        except OSError as error:
            raise self._refused(error) from error
        return values

    def write(self, first: int, values: Float[np.ndarray, "count length width"]) -> None:
        """Puts blocks in the place of those from number `first` on."""
        rest = np.ascontiguousarray(values, np.float32).data.cast("B")
        position = 4 * first * self._block_elements
        try:
            while rest:
                written = os.pwrite(self._file.fileno(), rest, position)
                rest, position = rest[written:], position + written
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"hidden states of the calibration text in {self._directory}",
            got=error.strerror or str(error),
            expected=f"room for {self.size_bytes:,} bytes until the conversion ends",
            fix="make room, or calibrate with fewer blocks",
        )

    def close(self) -> None:
        """Gives the room back."""
        self._file.close()

    def __enter__(self) -> Activations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
