"""`endor bench scaling`: tensor parallelism over devices made of the CPU, as predicted and as measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

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
    from rich.table import Table

    from endor_jax.bench.scaling import ScalingRecord


def command(
    model: Annotated[str, typer.Option(help="A model of this shape, made with random weights.")] = "llama-1b",
    layers: Annotated[int, typer.Option(min=1, help="Of it.")] = 8,
    sparsity: Sparsity = 0.5,
    devices: Annotated[
        list[int] | None, typer.Option(min=1, help="That share the layers. May be given several times.")
    ] = None,
    rate: Annotated[
        str, typer.Option(help="Of the slowed store, for each device: 200MB a second, for example.")
    ] = "200MB",
    sequences: Annotated[int, typer.Option(min=1, help="That a pass serves.")] = 1,
    passes: Annotated[int, typer.Option(min=1, help="In a turn, each a token of every sequence.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of everything.")] = 3,
    work_dir: WorkDir = None,
    record: Record = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tokens per second of 1, 2, 4, 8 devices that share every layer, predicted beforehand, on a slowed store
    and on the page cache."""
    from endor_jax.bench.plot_scaling import plot_scaling
    from endor_jax.bench.scaling import DEVICES, ScalingSettings, measure_scaling
    from endor_jax.streaming.sizes import parse_size

    check_files(record, plot)
    settings = ScalingSettings(
        model=model,
        layers=layers,
        sparsity=sparsity,
        devices=tuple(sorted(set(devices or DEVICES))),
        rate=float(parse_size(rate)),
        sequences=sequences,
        passes=passes,
        rounds=rounds,
    )
    output = Output(as_json, quiet, verbose)
    note_missing(output)
    with working_directory(work_dir) as directory:
        measured = measure_scaling(directory, settings=settings, report=reporter(output))
    show(output, measured, [scaling_table(measured)], record)
    if plot is not None:
        plot_scaling(measured, plot)


def scaling_table(record: ScalingRecord) -> Table:
    """A line for each number of devices and store."""
    headings = "devices", "predicted tokens/s", "closed form", "measured", "middle half, ms", "bound by"
    table = figures_table("store", *headings, "MB read/device", "of one", caption="medians of all passes")
    for slowed in (True, False):
        rows = record.on(slowed=slowed)
        for row in rows:
            prediction, closed = row.turns[0].prediction, row.closed_form
            lower, upper = (f"{1e3 * seconds:.4g}" for seconds in row.passes.quartile_seconds)
            table.add_row(
                row.row.store,
                str(row.row.devices),
                "" if prediction is None else f"{prediction.tokens_per_second:.3g}",
                "" if closed is None or not slowed else f"{closed.tokens_per_second:.3g}",
                f"{row.tokens_per_second:.3g}",
                f"{lower}-{upper}",
                "" if prediction is None else prediction.binding,
                f"{row.read_bytes_per_device / 1e6:.4g}",
                f"{row.tokens_per_second / rows[0].tokens_per_second:.2f} x",
            )
    return table
