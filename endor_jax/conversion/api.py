"""`convert`, the public operation: settings as keywords."""

from __future__ import annotations

import os

from endor_jax.conversion.pipeline import Conversion, Progress, run_conversion
from endor_jax.conversion.settings import ConvertSettings


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    prune: str = "none",
    sparsity: float | None = None,
    values: str = "auto",
    dtype: str | None = None,
    keep_negative_zero: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> Conversion:
    """Converts a Hugging Face directory or a GGUF file to a checkpoint. The source is only read.

    prune, sparsity: "magnitude" drops this fraction of every row of the layers' matrices; "none" keeps what
    is there and takes no sparsity. values: "auto", "raw", "packed" or "packed:K". dtype: "bfloat16",
    "float16" or "float32" for all float tensors, None keeps each as it is (float32 from GGUF).
    keep_negative_zero: −0.0 is otherwise stored as +0.0, and counted. resume: go on with what an interrupted
    conversion of the same source, settings and version has left at `destination`: the result is the same to
    the byte. progress: called with (what, dense bytes done, dense bytes in all).
    Raises NotFoundError, UnsupportedError (unknown family, config key or tensor, by name), InvalidInputError,
    DestinationExistsError, DestinationBusyError (another process is writing there), ResumeError (what was
    interrupted was another conversion), StorageError (no room, or the file system refuses).
    """
    settings = ConvertSettings(prune, sparsity, values, dtype, keep_negative_zero)
    return run_conversion(source, destination, settings=settings, resume=resume, progress=progress)
