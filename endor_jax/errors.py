"""Every error this library raises on purpose: where, what was got, what was expected, what to do.

Each class also inherits the built-in error a caller would expect (`ValueError`, `FileNotFoundError`, ...),
so code that knows nothing of endor_jax can still catch it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class EndorError(Exception):
    """Base of all errors raised by endor_jax; `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, where: str, *, got: str, expected: str, fix: str):
        self.where, self.got, self.expected, self.fix = where, got, expected, fix
        super().__init__(f"{where}: got {got}, expected {expected}; {fix}")


class InvalidInputError(EndorError, ValueError):
    """An argument, option or input file has a value that cannot be used."""


class OptionError(InvalidInputError):
    """An option has a value that it cannot have, whatever the input is."""

    exit_code = 2


class UnsupportedError(EndorError, ValueError):
    """The input is well-formed, but of a kind that this version does not handle."""


class NotFoundError(EndorError, FileNotFoundError):
    """A path that should exist does not."""


class IncompleteCheckpointError(NotFoundError):
    """A file that the manifest of a checkpoint lists is missing."""

    exit_code = 4


class DestinationExistsError(EndorError, FileExistsError):
    """Something is already at the place to be written."""


class DestinationBusyError(EndorError, BlockingIOError):
    """Another process is writing at the place to be written."""


class ResumeError(EndorError, ValueError):
    """What was interrupted cannot be gone on with: source, settings or version are others now."""


class StorageError(EndorError, OSError):
    """A file system has no room for what is to be written, or refuses it; a store cannot be reached."""


class CorruptCheckpointError(EndorError, ValueError):
    """Bytes on disk differ from what the manifest promises."""

    exit_code = 4


class DoesNotFitError(EndorError, MemoryError):
    """A budget is smaller than what the plan needs."""

    exit_code = 3


class QualityError(EndorError, ValueError):
    """A model is not as good as it was asked to be."""


class MissingDependencyError(EndorError, ImportError):
    """An optional package or an external resource is needed and absent."""


class StreamError(EndorError, RuntimeError):
    """Reading ahead failed, or the stream was used after it was closed."""


class PeerError(EndorError, RuntimeError):
    """Another process of the run is not there, died, failed or fell behind, or was started unlike it."""

    exit_code = 5


@contextmanager
def about(where: str) -> Iterator[None]:
    """Says in an InvalidInputError what it is about: whoever raised it knew numbers, not whose they are."""
    try:
        yield
    except InvalidInputError as error:
        full = f"{where}: {error.where}"
        raise InvalidInputError(full, got=error.got, expected=error.expected, fix=error.fix) from error
