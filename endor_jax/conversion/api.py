"""`convert`, the public operation: settings as keywords."""

from __future__ import annotations

import os

from endor_jax.conversion.pipeline import Conversion, Progress, run_conversion
from endor_jax.conversion.settings import CalibrationText, ConvertSettings


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    prune: str = "none",
    sparsity: float | None = None,
    structure: str | None = None,
    allocation: str = "uniform",
    target: str = "layer",
    values: str = "auto",
    dtype: str | None = None,
    keep_negative_zero: bool = False,
    shards: int = 1,
    calibration: CalibrationText | str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> Conversion:
    """Converts a Hugging Face directory or a GGUF file to a checkpoint. The source is only read.

    prune, sparsity: the method, and the fraction of the layers' matrices that it drops: "magnitude";
    "wanda", "sparsegpt" and "admm", which run the model on a text, layer by layer; "none" keeps what is there
    and takes no sparsity. structure: "row", "matrix" or "N:M" (which is a sparsity), None as in the method's
    paper. allocation: "uniform", or "owl" for more sparsity where a layer has fewer outliers. target:
    "layer", or "model" to fit every layer to what the unpruned model gives there, which makes up for the
    layers before (sparsegpt and admm). values: "auto", "raw", "packed", "packed:K", and "int8" or "int4",
    which round the layers' matrices. dtype: "bfloat16", "float16" or "float32" for all float tensors, None
    keeps each as it is (float32 from GGUF). calibration: the text, a file means 64 blocks of
    512 tokens of it, None as many of a text that is always there.
    keep_negative_zero: −0.0 is otherwise stored as +0.0, and counted. shards: every record is cut by rows
    into a multiple of so many parts, so that so many devices, or a divisor of it, take a share each.
    resume: go on with what an interrupted conversion of the same source, settings and version has left at
    `destination`: the result is the same to the byte. progress: called with (what, dense bytes done, dense
    bytes in all); where calibrating takes the time, those of the layers it prunes.
    Raises NotFoundError, UnsupportedError (unknown family, config key or tensor, by name), InvalidInputError,
    DestinationExistsError, DestinationBusyError (another process is writing there), ResumeError (what was
    interrupted was another conversion), StorageError (no room, or the file system refuses).
    """
    if not isinstance(calibration, CalibrationText):
        calibration = CalibrationText(None if calibration is None else os.fspath(calibration))
    settings = ConvertSettings(
        prune=prune,
        sparsity=sparsity,
        structure=structure,
        allocation=allocation,
        target=target,
        values=values,
        dtype=dtype,
        keep_negative_zero=keep_negative_zero,
        shards=shards,
        calibration=calibration,
    )
    return run_conversion(source, destination, settings=settings, resume=resume, progress=progress)
