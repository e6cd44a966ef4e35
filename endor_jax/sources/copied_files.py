"""The config and tokenizer files that travel beside the weights."""

from __future__ import annotations

from pathlib import Path

from endor_jax.sources.byte_range import is_regular_file, read_file
from endor_jax.sources.source import COPIED_FILES

_MAXIMUM_BYTES = 1 << 30  # the largest tokenizer.json in use has 35 MB


def read_copied_files(directory: Path) -> dict[str, bytes]:
    """Contents by name of the `COPIED_FILES` in a directory.

    Raises NotFoundError for a link that leads nowhere and InvalidInputError for what cannot be read.
    """
    return {
        name: read_file(directory / name, limit=_MAXIMUM_BYTES)
        for name in COPIED_FILES
        if is_regular_file(directory / name)
    }
