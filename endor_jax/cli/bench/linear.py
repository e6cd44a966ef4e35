"""`endor bench linear`: products with compressed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from endor_jax.cli.bench.device import Full, Minutes, Sparsities, linear_on_device, one, refuse
from endor_jax.cli.bench.options import (
    Dtype,
    Plot,
    Record,
    Seconds,
    ShapeOption,
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

    from endor_jax.bench.device_grid import LinearCell
    from endor_jax.bench.linear import LinearCase, LinearRecord
    from endor_jax.bench.matrices import Shape


def command(
    shape: ShapeOption = None,
    rows: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Of x. Default: 1 2 4 8 16 32, on a GPU 64 too. May be given several times."
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="Default: packed:2; on a GPU raw too, and may be given several times."),
    ] = None,
    sparsity: Sparsities = None,
    dtype: Dtype = "bfloat16",
    threads: Threads = None,
    seconds: Seconds = 1.0,
    full: Full = False,
    minutes: Minutes = None,
    record: Record = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Products with compressed weights, beside dense ones of XLA and torch (where installed); all threads.

    Where JAX computes on a GPU: beside XLA's dense ones there, and beside expanding first.
    """
    from endor_jax.bench.device import on_a_device
    from endor_jax.bench.device_linear import DeviceLinearSettings
    from endor_jax.bench.linear import ROWS, SHAPES, LinearSettings, measure_linear
    from endor_jax.bench.matrices import parse_shape
    from endor_jax.bench.plots import plot_linear

    check_files(record, plot)
    shapes, output = tuple(map(parse_shape, shape or ())), Output(as_json, quiet, verbose)
    if on_a_device():
        refuse("a device", {"--threads": threads})
        cells = _device_cells(shapes, codec, sparsity, rows, full=full)
        limit = None if minutes is None else 60 * minutes
        wanted = DeviceLinearSettings(cells, dtype=dtype, seconds=seconds, limit_seconds=limit)
        linear_on_device(wanted, output, record, plot)
        return
    refuse("the CPU", {"--full": full, "--minutes": minutes})
    settings = LinearSettings(
        shapes=shapes or SHAPES,
        rows=tuple(rows or ROWS),
        codec=one("--codec", codec, "packed:2"),
        sparsity=one("--sparsity", sparsity, 0.5),
        dtype=dtype,
        threads=tuple(threads or ()),
        seconds=seconds,
    )
    note_missing(output, "torch")
    measured = measure_linear(settings, report=reporter(output))
    show(output, measured, linear_tables(measured), record)
    if plot is not None:
        plot_linear(measured, plot)


def _device_cells(
    shapes: tuple[Shape, ...],
    codecs: list[str] | None,
    sparsities: list[float] | None,
    rows: list[int] | None,
    *,
    full: bool,
) -> tuple[LinearCell, ...]:
    """All of what is given; what is not given is taken in full, unless nothing is and `full` is not asked."""
    from endor_jax.bench.device_grid import (
        LINEAR_CODECS,
        LINEAR_SPARSITIES,
        ROWS,
        default_linear_cells,
        linear_cells,
    )
    from endor_jax.bench.device_matrices import ALL_SHAPES

    if not (shapes or codecs or sparsities or rows or full):
        return default_linear_cells()
    return linear_cells(
        shapes or ALL_SHAPES, codecs or LINEAR_CODECS, sparsities or LINEAR_SPARSITIES, rows or ROWS
    )


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
