"""The config and tokenizer files that travel beside the weights."""

from __future__ import annotations

from pathlib import Path

from endor_jax.sources.bpe_files import bpe_tokenizer_files
from endor_jax.sources.byte_range import is_regular_file, read_file
from endor_jax.sources.lfs_pointer import refuse_pointer
from endor_jax.sources.source import COPIED_FILES

_MAXIMUM_BYTES = 1 << 30  # the largest tokenizer.json in use has 35 MB


def read_copied_files(directory: Path) -> dict[str, bytes]:
    """Contents by name of the `COPIED_FILES` in a directory; tokenizer.json made of older files if it can be.

    Raises NotFoundError for a link that leads nowhere and InvalidInputError for what cannot be read, Git LFS
    pointers among them; both also for older tokenizer files (`bpe_files`) that are not all there or wrong.
    """
    for name in COPIED_FILES:
        refuse_pointer(directory / name)
    files = {
        name: read_file(directory / name, limit=_MAXIMUM_BYTES)
        for name in COPIED_FILES
        if is_regular_file(directory / name)
    }
    if "tokenizer.json" not in files:
        files |= bpe_tokenizer_files(directory, files)
    return files
