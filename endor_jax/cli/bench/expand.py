"""`endor bench expand`: dense bytes per second out of compressed ones."""

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

    from endor_jax.bench.expand import ExpandCase, ExpandRecord


def command(
    shape: ShapeOption = None,
    codec: Annotated[
        list[str] | None, typer.Option(help="raw, packed:2, ... May be given several times.")
    ] = None,
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
    """Dense bytes per second of ours, XLA and NumPy, beside memcpy; on one thread and on all."""
    from endor_jax.bench.expand import CODECS, SHAPES, ExpandSettings, measure_expand
    from endor_jax.bench.matrices import parse_shape
    from endor_jax.bench.plots import plot_expand

    check_files(record, plot)
    settings = ExpandSettings(
        shapes=tuple(map(parse_shape, shape or ())) or SHAPES,
        codecs=tuple(codec or CODECS),
        sparsity=sparsity,
        dtype=dtype,
        threads=tuple(threads or ()),
        seconds=seconds,
    )
    output = Output(as_json, quiet, verbose)
    note_missing(output)
    measured = measure_expand(settings, report=reporter(output))
    show(output, measured, expand_tables(measured), record)
    if plot is not None:
        plot_expand(measured, plot)


def expand_tables(record: ExpandRecord) -> list[RenderableType]:
    """A table per case."""
    return [_expand_table(case) for case in record.cases]


def _expand_table(case: ExpandCase) -> Table:
    from endor_jax.bench.matrices import shape_name

    title = f"expand {shape_name(case.shape)}, {case.codec}, {case.threads} thread(s)"
    limit = f"limit {case.limit_bytes_per_second / 1e9:.1f} GB/s"
    table = figures_table(title, "GB/s", "of memcpy", "ms", "least", "middle half", "samples", caption=limit)
    for timing in case.timings:
        rate = timing.bytes_per_second
        figures = f"{rate / 1e9:.2f}", f"{rate / case.memcpy_bytes_per_second:.2f}"
        table.add_row(timing.contender, *figures, *milliseconds(timing))
    return table
