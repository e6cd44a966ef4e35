"""`endor bench pruning`: what every method costs at every sparsity, scored beside the dense model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from endor_jax.cli.bench.options import (
    Plot,
    Record,
    WorkDir,
    check_files,
    reporter,
    show,
    working_directory,
)
from endor_jax.cli.bench.tables import figures_table
from endor_jax.cli.blocks import Data
from endor_jax.cli.console import Json, Output, Quiet, Verbose

if TYPE_CHECKING:
    from rich.console import RenderableType

    from endor_jax.bench.pruning_record import PruningRecord

DEFAULT_METHODS = ("none", "magnitude", "wanda", "sparsegpt")


def command(
    model: Annotated[
        Path | None,
        typer.Option(
            help="A Hugging Face directory or a GGUF file. Default: SmolLM2-135M-Instruct, fetched."
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="As --prune of convert; none is the dense model. May be given several times."),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Fraction of zeros. May be given several times."),
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option(help="Codec, as for convert. May be given several times.")
    ] = None,
    mask_structure: Annotated[
        list[str] | None, typer.Option(help="As for convert. May be given several times.")
    ] = None,
    sparsity_allocation: Annotated[
        list[str] | None, typer.Option(help="As for convert. May be given several times.")
    ] = None,
    calibration_target: Annotated[
        list[str] | None, typer.Option(help="As for convert. May be given several times.")
    ] = None,
    data: Data = None,
    own_text: Annotated[
        bool, typer.Option("--own-text", help="The model writes the text, at temperature 1.")
    ] = False,
    calibration_blocks: Annotated[int, typer.Option(min=1, help="The first of the shuffled blocks.")] = 64,
    evaluation_blocks: Annotated[int, typer.Option(min=1, help="The next ones: scored.")] = 40,
    divergence_blocks: Annotated[int, typer.Option(min=1, help="The first of these: KL, agreement.")] = 8,
    sequence_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a block. Default: 512, if the model has so many.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffle.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of all weights, dense ones too.")] = "bfloat16",
    work_dir: WorkDir = None,
    record: Record = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity, KL and bytes of every method at every sparsity. Goes on with the cells of --record."""
    from endor_jax.bench.plot_pruning import plot_pruning
    from endor_jax.bench.pruning import measure_pruning
    from endor_jax.bench.pruning_cells import Grid, PruningSettings
    from endor_jax.sources.smollm2 import fetch_smollm2

    grid = Grid(
        tuple(method or DEFAULT_METHODS),
        tuple(sparsity or (0.5,)),
        tuple(mask_structure or (None,)),
        tuple(sparsity_allocation or ("uniform",)),
        tuple(values or ("auto",)),
        tuple(calibration_target or ("layer",)),
    )
    cells = grid.cells()
    check_files(record, plot)
    output = Output(as_json, quiet, verbose)
    cache = Path(os.environ.get("ENDOR_CACHE", "~/.cache/endor_jax")).expanduser()
    settings = PruningSettings(
        model=str(model or fetch_smollm2(cache)),
        data=data,
        own_text=own_text,
        calibration_blocks=calibration_blocks,
        evaluation_blocks=evaluation_blocks,
        divergence_blocks=divergence_blocks,
        length=sequence_length,
        seed=seed,
        dtype=dtype,
    )
    with working_directory(work_dir) as directory:
        path = record or directory / "pruning.json"
        measured = measure_pruning(cells, directory, settings=settings, path=path, report=reporter(output))
    show(output, measured, pruning_tables(measured), None)  # the record is written already
    if plot is not None:
        plot_pruning(measured, plot)


def pruning_tables(record: PruningRecord) -> list[RenderableType]:
    """Perplexities beside the dense one, then everything."""
    from endor_jax.bench.pruning_table import HEADINGS, cell_row, ordered_cells, ratio_headings, ratio_rows

    settings = record.settings
    scored = f"{settings['evaluation_blocks']} blocks of {settings['length']} tokens, {settings['data']}"
    headings = ratio_headings(record)
    ratios = figures_table("perplexity, times the dense model's", *headings[1:], caption=scored)
    for row in ratio_rows(record):
        ratios.add_row(*row)
    first = f"KL and agreement: the first {settings['divergence_blocks']} of the blocks"
    cells = figures_table(str(settings["model"]), *HEADINGS[1:], caption=first)
    for each in ordered_cells(record):
        cells.add_row(*cell_row(each))
    return [ratios, cells]
