"""`convert`, the public operation: settings as keywords."""

from __future__ import annotations

import os
from typing import Any

from endor_jax.conversion.pipeline import Conversion, Progress, run_conversion
from endor_jax.conversion.settings import ConvertSettings


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Conversion:
    """Converts a Hugging Face directory or a GGUF file to a checkpoint. The source is only read.

    settings: those of `ConvertSettings` (prune, sparsity, values, dtype, keep_negative_zero). progress:
    called with (what, dense bytes done, dense bytes in all).
    Raises NotFoundError, UnsupportedError (unknown family, config key or tensor, by name), InvalidInputError,
    DestinationExistsError, TypeError for an unknown setting.
    """
    return run_conversion(source, destination, settings=ConvertSettings(**settings), progress=progress)
