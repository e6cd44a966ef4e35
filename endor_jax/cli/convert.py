"""`endor convert`: a Hugging Face directory or a GGUF file to a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from endor_jax.cli.console import Json, Output, Quiet, Verbose
from endor_jax.cli.convert_search import limit_of, search
from endor_jax.errors import OptionError

if TYPE_CHECKING:
    from endor_jax.conversion.pipeline import Conversion
    from endor_jax.conversion.survey import Survey


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model directory, a .gguf, or a key map.")],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DST", help="Where to write: nothing, or an interrupted conversion; s3:// and gs:// too."
        ),
    ],
    prune: Annotated[
        str,
        typer.Option(
            help="none, magnitude, or a method that runs the model on a text: wanda, sparsegpt, admm."
        ),
    ] = "none",
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of the layers' matrices to prune away; 0.5 if a method is given."),
    ] = None,
    max_perplexity_increase: Annotated[
        str | None,
        typer.Option(
            metavar="5%",
            help="Instead of --sparsity: search the highest whose perplexity is at most so much above the "
            "dense model's, on text behind the blocks for calibration.",
        ),
    ] = None,
    mask_structure: Annotated[
        str | None,
        typer.Option(
            help="Where zeros lie: row (as many in every row), matrix (anywhere), or N:M, for example 2:4. "
            "Default: as in the method's paper."
        ),
    ] = None,
    sparsity_allocation: Annotated[
        str, typer.Option(help="uniform, or owl: less sparsity for layers with more outliers.")
    ] = "uniform",
    values: Annotated[
        str,
        typer.Option(help="auto, raw, packed, packed:K; int8 or int4 round the layers' matrices."),
    ] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32. Default: as in the source.")
    ] = None,
    keep_negative_zero: Annotated[
        bool, typer.Option("--keep-negative-zero", help="Store −0.0 as it is instead of as +0.0.")
    ] = False,
    shards: Annotated[
        int,
        typer.Option(min=1, help="Cut every record into a multiple of so many parts, for as many devices."),
    ] = 1,
    calibration_target: Annotated[
        str,
        typer.Option(
            help="layer: a pruned layer should give what it gave for the same inputs. model: what it gives "
            "in the unpruned model, which makes up for the layers before (sparsegpt, admm; takes longer)."
        ),
    ] = "layer",
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Text or JSONL to calibrate with. Default: Python's help texts."),
    ] = None,
    calibration_blocks: Annotated[
        int | None, typer.Option(min=1, help="Blocks of that text; 64 unless given.")
    ] = None,
    calibration_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a block; 512 if the model has so many positions.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Which blocks of the text are taken; 0 unless given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what an interrupted conversion left.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, write nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a model to a compressed checkpoint. What is not pruned, cast or quantised is lossless."""
    from endor_jax.conversion.pipeline import run_conversion, survey_conversion
    from endor_jax.conversion.settings import CalibrationText, ConvertSettings

    output = Output(as_json, quiet, verbose)
    limit = None
    if max_perplexity_increase is not None:
        limit = limit_of(max_perplexity_increase, sparsity=sparsity, dry_run=dry_run)
    if prune != "none" and sparsity is None and ":" not in (mask_structure or ""):
        sparsity = 0.5
    settings = ConvertSettings(
        prune=prune,
        sparsity=sparsity,
        structure=mask_structure,
        allocation=sparsity_allocation,
        target=calibration_target,
        values=values,
        dtype=dtype,
        keep_negative_zero=keep_negative_zero,
        shards=shards,
        calibration=CalibrationText(calibration, calibration_blocks or 64, calibration_length, seed or 0),
    )
    asked = {
        "--calibration": calibration,
        "--calibration-blocks": calibration_blocks,
        "--calibration-length": calibration_length,
        "--seed": seed,
    }
    if limit is None and not settings.calibrated:
        _refuse_unused(asked, prune)

    def announce(survey: Survey) -> None:
        output.notes.print(_beforehand(survey), style="dim")

    if limit is not None:
        search(output, source, destination, settings=settings, limit=limit, resume=resume, announce=announce)
        return
    if dry_run:
        with output.progress() as progress:
            survey = survey_conversion(
                source, destination, settings=settings, resume=resume, progress=progress
            )
        result = _expected(survey)
    else:
        with output.progress() as progress:
            conversion = run_conversion(
                source,
                destination,
                settings=settings,
                resume=resume,
                progress=progress,
                announce=announce,
            )
        result = _done(conversion)
    if as_json:
        output.json(result)
    else:
        _print(output, result)


def _refuse_unused(asked: dict[str, Any], prune: str) -> None:
    """Raises OptionError for what was asked of a calibration that there is none of."""
    for option, value in asked.items():
        if value is not None:
            raise OptionError(
                option,
                got=f"{value} with --prune {prune}",
                expected="a method that looks at a text",
                fix="leave it out, or choose another method",
            )


def _expected(survey: Survey) -> dict[str, Any]:
    """What a dry run tells, as JSON."""
    stored_bytes = survey.expected.stored_bytes
    return {
        "path": None,
        "dense_bytes": survey.dense_bytes,
        "stored_bytes": stored_bytes,
        "ratio": survey.dense_bytes / stored_bytes,
        "negative_zeros": None,
        "signatures": len(survey.expected.signatures),
        "resumed_parts": None,
        "expected_peak_host_bytes": survey.expected_peak_host_bytes,
        "peak_host_bytes": None,
    }


def _done(conversion: Conversion) -> dict[str, Any]:
    """What a conversion tells, as JSON."""
    from endor_jax.store.overview import stored_bytes_at

    stored_bytes = stored_bytes_at(conversion.path)
    return {
        "path": str(conversion.path),
        "dense_bytes": conversion.dense_bytes,
        "stored_bytes": stored_bytes,
        "ratio": conversion.dense_bytes / stored_bytes,
        "negative_zeros": conversion.negative_zeros,
        "signatures": len(conversion.manifest.signatures),
        "resumed_parts": conversion.resumed_parts,
        "expected_peak_host_bytes": conversion.expected_peak_host_bytes,
        "peak_host_bytes": conversion.peak_host_bytes,
    }


def _beforehand(survey: Survey) -> str:
    from endor_jax.streaming.sizes import format_size

    return (
        f"will write about {format_size(survey.expected.stored_bytes)}, "
        f"with at most {format_size(survey.expected_peak_host_bytes)} of resident memory"
    )


def _print(output: Output, result: dict[str, Any]) -> None:
    from endor_jax.streaming.sizes import format_size

    dense, stored = format_size(result["dense_bytes"]), format_size(result["stored_bytes"])
    expected = format_size(result["expected_peak_host_bytes"])
    if result["path"] is None:
        output.line(f"would write about {stored} for {dense} of weights (ratio {result['ratio']:.2f})")
        output.line(f"would take at most {expected} of resident memory")
        return
    output.line(f"{result['path']}: {stored} for {dense} of weights (ratio {result['ratio']:.2f})")
    taken = f"peak memory {format_size(result['peak_host_bytes'])}, at most {expected} expected"
    output.notes.print(taken, style="dim")
    if result["resumed_parts"]:
        output.line(f"{result['resumed_parts']:,} parts were there already, from before an interruption")
    if result["negative_zeros"]:
        output.line(f"{result['negative_zeros']:,} values −0.0 were stored as +0.0")
