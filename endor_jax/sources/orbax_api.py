"""Orbax's v1 API as everything here calls it: imported when it is used, quiet, its errors ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from endor_jax.errors import EndorError, InvalidInputError, StorageError
from endor_jax.sources.brief import brief_text


def orbax_v1() -> Any:
    """The API's module; importing it takes a second or two."""
    return import_module("orbax.checkpoint").v1


@contextmanager
def reading_orbax(directory: Path) -> Iterator[None]:
    """What Orbax and TensorStore raise for files that are damaged or of another kind as InvalidInputError."""
    try:
        with _without_remarks():
            yield
    except EndorError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise unreadable(
            directory, got=brief_text(error), expected="a checkpoint that Orbax reads"
        ) from error


def unreadable(directory: Path, *, got: str, expected: str) -> InvalidInputError:
    """The error for a checkpoint that Orbax does not read as it should be."""
    return InvalidInputError(
        f"Orbax checkpoint {directory}",
        got=got,
        expected=expected,
        fix="it is damaged, unfinished, or a directory of several steps: give one step's directory",
    )


@contextmanager
def writing_orbax(path: Path) -> Iterator[None]:
    """What Orbax and TensorStore raise when they cannot write, as StorageError."""
    try:
        with _without_remarks():
            yield
    except EndorError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(
            f"writing {path}",
            got=brief_text(error),
            expected="a directory with room that this user may write to",
            fix="nothing is left of it: free some space or choose another directory, and start again",
        ) from error


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keeps Orbax from warning on stderr that a checkpoint without OCDBT is one."""
    logger = logging.getLogger("absl")

    def serious(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(serious)
    try:
        yield
    finally:
        logger.removeFilter(serious)
