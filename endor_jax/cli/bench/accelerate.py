"""`endor bench accelerate`: seconds per token of what does not fit, beside Hugging Face Accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from endor_jax.cli.bench.options import (
    Plot,
    Record,
    Sparsity,
    WorkDir,
    check_files,
    note_missing,
    reporter,
    show,
    working_directory,
)
from endor_jax.cli.bench.tables import figures_table
from endor_jax.cli.console import Json, Output, Quiet, Verbose

if TYPE_CHECKING:
    from endor_jax.bench.accelerate import OffloadCase, OffloadRecord


def command(
    model: Annotated[str, typer.Option(help="A model of this shape, made with random weights.")] = "llama-1b",
    layers: Annotated[
        int | None, typer.Option(min=1, help="Of the model. Default: as many as the shape has.")
    ] = None,
    offload: Annotated[str, typer.Option(help="Where to: disk, or cpu (host memory).")] = "disk",
    sparsity: Sparsity = 0.5,
    tokens: Annotated[
        int, typer.Option(min=3, help="Generated in a turn; all but the first two are counted.")
    ] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender, cold and warm each.")] = 3,
    work_dir: WorkDir = None,
    record: Record = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Seconds per token with all layers offloaded, beside Hugging Face Accelerate with the same weights."""
    from endor_jax.bench.accelerate import OffloadSettings, measure_accelerate
    from endor_jax.bench.plot_accelerate import plot_accelerate

    check_files(record, plot)
    settings = OffloadSettings(model, layers, offload, sparsity, tokens, rounds)
    output = Output(as_json, quiet, verbose)
    note_missing(output)
    with working_directory(work_dir) as directory:
        measured = measure_accelerate(directory, settings=settings, report=reporter(output))
    show(output, measured, [accelerate_table(measured, case) for case in measured.cases], record)
    if plot is not None:
        plot_accelerate(measured, plot)


def accelerate_table(record: OffloadRecord, case: OffloadCase) -> Table:
    """A row per contender, a column for each peer that it is compared with."""
    title = (
        f"{record.settings.model}, {record.layers} layers, {record.settings.sparsity:.0%} sparsity, "
        f"{case.condition}, {record.device}, {record.threads} thread(s)"
    )
    rate = f"{case.rate.bytes_per_second / 1e9:.2f} GB/s of the {case.rate.source}"
    against = [f"times {peer.contender}" for peer in case.peers]
    headings = "GB/token", "of limit", "cached", "peak GB", "tokens as ours"
    table = figures_table(
        title,
        *("s/token", "middle half", *against, *headings),
        caption=f"limit: what is moved per token, at {rate}",
    )
    for timing in case.timings:
        lower, upper = timing.quartile_seconds
        table.add_row(
            timing.contender,
            f"{timing.median_seconds:.3f}",
            f"{lower:.3f} to {upper:.3f}",
            *(f"{case.times(timing, peer):.2f}" for peer in case.peers),
            f"{timing.streamed_bytes / 1e9:.3f}",
            f"{case.limit_seconds(timing) / timing.median_seconds:.0%}",
            f"{timing.cached_share:.0%}",
            f"{timing.peak_bytes / 1e9:.2f}",
            f"{case.same_tokens(timing)} of {record.settings.tokens}",
        )
    return table
