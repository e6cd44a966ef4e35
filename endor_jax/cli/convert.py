"""`endor convert`: a Hugging Face directory or a GGUF file to a checkpoint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from endor_jax.cli.console import Json, Output, Quiet, Verbose
from endor_jax.cli.info import files_bytes


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A directory with safetensors, or a .gguf.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Where to write; nothing may be there.")],
    prune: Annotated[str, typer.Option(help="none or magnitude (per row, the layers' matrices).")] = "none",
    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of zeros to prune to; 0.5 if a method is given.")
    ] = None,
    values: Annotated[str, typer.Option(help="auto, raw, packed or packed:K.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32. Default: as in the source.")
    ] = None,
    keep_negative_zero: Annotated[
        bool, typer.Option("--keep-negative-zero", help="Store −0.0 as it is instead of as +0.0.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, write nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a model to a compressed checkpoint. Lossless but for pruning and a change of dtype."""
    from endor_jax.conversion.pipeline import run_conversion, survey_conversion
    from endor_jax.conversion.settings import ConvertSettings

    output = Output(as_json, quiet, verbose)
    if prune != "none" and sparsity is None:
        sparsity = 0.5
    settings = ConvertSettings(
        prune=prune,
        sparsity=sparsity,
        values=values,
        dtype=dtype,
        keep_negative_zero=keep_negative_zero,
    )
    with output.progress() as progress:
        if dry_run:
            survey = survey_conversion(source, destination, settings=settings, progress=progress)
            manifest, dense_bytes, negative_zeros = survey.expected, survey.dense_bytes, None
            stored_bytes = manifest.stored_bytes
        else:
            conversion = run_conversion(source, destination, settings=settings, progress=progress)
            manifest, dense_bytes = conversion.manifest, conversion.dense_bytes
            negative_zeros, stored_bytes = conversion.negative_zeros, files_bytes(conversion.path)
    result: dict[str, Any] = {
        "path": None if dry_run else destination,
        "dense_bytes": dense_bytes,
        "stored_bytes": stored_bytes,
        "ratio": dense_bytes / stored_bytes,
        "negative_zeros": negative_zeros,
        "signatures": len(manifest.signatures),
    }
    if as_json:
        output.json(result)
    else:
        _print(output, result)


def _print(output: Output, result: dict[str, Any]) -> None:
    from endor_jax.streaming.sizes import format_size

    dense, stored = format_size(result["dense_bytes"]), format_size(result["stored_bytes"])
    if result["path"] is None:
        output.line(f"would write about {stored} for {dense} of weights (ratio {result['ratio']:.2f})")
        return
    output.line(f"{result['path']}: {stored} for {dense} of weights (ratio {result['ratio']:.2f})")
    if result["negative_zeros"]:
        output.line(f"{result['negative_zeros']:,} values −0.0 were stored as +0.0")
