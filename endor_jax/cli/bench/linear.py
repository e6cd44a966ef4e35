"""`endor bench linear`: products with compressed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from endor_jax.cli.bench.options import (
    Dtype,
    Plot,
    Record,
    Seconds,
    ShapeOption,
    Sparsity,
    Threads,
    check_files,
    note_missing,
    reporter,
    show,
)
from endor_jax.cli.bench.tables import figures_table, milliseconds
from endor_jax.cli.console import Json, Output, Quiet, Verbose

if TYPE_CHECKING:
    from rich.console import RenderableType

    from endor_jax.bench.linear import LinearCase, LinearRecord


def command(
    shape: ShapeOption = None,
    rows: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Of x. Default: 1 2 4 8 16 32. May be given several times."),
    ] = None,
    codec: Annotated[str, typer.Option(help="raw, packed:2, ...")] = "packed:2",
    sparsity: Sparsity = 0.5,
    dtype: Dtype = "bfloat16",
    threads: Threads = None,
    seconds: Seconds = 1.0,
    record: Record = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Products with compressed weights, beside dense ones of XLA and torch (where installed); all threads."""
    from endor_jax.bench.linear import ROWS, SHAPES, LinearSettings, measure_linear
    from endor_jax.bench.matrices import parse_shape
    from endor_jax.bench.plots import plot_linear

    check_files(record, plot)
    settings = LinearSettings(
        shapes=tuple(map(parse_shape, shape or ())) or SHAPES,
        rows=tuple(rows or ROWS),
        codec=codec,
        sparsity=sparsity,
        dtype=dtype,
        threads=tuple(threads or ()),
        seconds=seconds,
    )
    output = Output(as_json, quiet, verbose)
    note_missing(output, "torch")
    measured = measure_linear(settings, report=reporter(output))
    show(output, measured, linear_tables(measured), record)
    if plot is not None:
        plot_linear(measured, plot)


def linear_tables(record: LinearRecord) -> list[RenderableType]:
    """A table per case, then the crossovers."""
    from endor_jax.bench.matrices import shape_name

    tables: list[RenderableType] = [_linear_table(case) for case in record.cases]
    crossovers = figures_table(
        "rows of x from which another is faster than fused",
        "one of ours",
        "a dense peer",
        caption="never: not up to the most rows measured",
    )
    for each in record.crossovers:
        name = f"{shape_name(each.shape)}, {each.threads} thread(s)"
        crossovers.add_row(name, *(str(rows or "never") for rows in (each.of_ours, each.of_all)))
    return [*tables, crossovers] if record.crossovers else tables


def _linear_table(case: LinearCase) -> Table:
    from endor_jax.bench.bandwidth import READ
    from endor_jax.bench.matrices import shape_name

    title = f"linear {shape_name(case.shape)}, {case.rows} row(s) of x, {case.threads} thread(s)"
    limit = f"limit {case.limit_weights_per_second / 1e9:.1f} G weights/s"
    headings = "G weights/s", "of dense peers", "GB/s", "ms", "least", "middle half", "samples"
    table = figures_table(title, *headings, caption=limit)
    for timing in case.timings:
        rate, ratio = f"{case.weights / timing.median_seconds / 1e9:.2f}", f"{case.ratio(timing):.2f}"
        figures = ("", "") if timing.contender.startswith(READ) else (rate, ratio)
        bandwidth = f"{timing.bytes_per_second / 1e9:.2f}"
        table.add_row(timing.contender, *figures, bandwidth, *milliseconds(timing))
    return table
