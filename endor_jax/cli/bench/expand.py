"""`endor bench expand`: dense bytes per second out of compressed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from endor_jax.cli.bench.device import (
    Full,
    Implementations,
    Minutes,
    Sparsities,
    expand_on_device,
    named,
    one,
    refuse,
)
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

    from endor_jax.bench.device_grid import ExpandCell
    from endor_jax.bench.expand import ExpandCase, ExpandRecord
    from endor_jax.bench.matrices import Shape


def command(
    shape: ShapeOption = None,
    codec: Annotated[
        list[str] | None, typer.Option(help="raw, packed:2, ... May be given several times.")
    ] = None,
    sparsity: Sparsities = None,
    dtype: Dtype = "bfloat16",
    threads: Threads = None,
    seconds: Seconds = 1.0,
    implementation: Implementations = None,
    full: Full = False,
    minutes: Minutes = None,
    record: Record = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Dense bytes per second of ours, XLA and NumPy, beside memcpy; on one thread and on all.

    Where JAX computes on a GPU: bytes read and written per second of ours and XLA, beside a copy there.
    """
    from endor_jax.bench.device import on_a_device
    from endor_jax.bench.device_expand import DeviceExpandSettings
    from endor_jax.bench.expand import CODECS, SHAPES, ExpandSettings, measure_expand
    from endor_jax.bench.matrices import parse_shape
    from endor_jax.bench.plots import plot_expand

    check_files(record, plot)
    shapes, output = tuple(map(parse_shape, shape or ())), Output(as_json, quiet, verbose)
    if on_a_device():
        refuse("a device", {"--threads": threads})
        cells = _device_cells(shapes, codec, sparsity, full=full)
        limit = None if minutes is None else 60 * minutes
        wanted = DeviceExpandSettings(cells, dtype, named(implementation), seconds, limit)
        expand_on_device(wanted, output, record, plot)
        return
    refuse("the CPU", {"--full": full, "--minutes": minutes, "--implementation": implementation})
    settings = ExpandSettings(
        shapes=shapes or SHAPES,
        codecs=tuple(codec or CODECS),
        sparsity=one("--sparsity", sparsity, 0.5),
        dtype=dtype,
        threads=tuple(threads or ()),
        seconds=seconds,
    )
    note_missing(output)
    measured = measure_expand(settings, report=reporter(output))
    show(output, measured, expand_tables(measured), record)
    if plot is not None:
        plot_expand(measured, plot)


def _device_cells(
    shapes: tuple[Shape, ...], codecs: list[str] | None, sparsities: list[float] | None, *, full: bool
) -> tuple[ExpandCell, ...]:
    """All of what is given; what is not given is taken in full, unless nothing is and `full` is not asked."""
    from endor_jax.bench.device_grid import (
        EXPAND_CODECS,
        EXPAND_SPARSITIES,
        default_expand_cells,
        expand_cells,
    )
    from endor_jax.bench.device_matrices import ALL_SHAPES

    if not (shapes or codecs or sparsities or full):
        return default_expand_cells()
    return expand_cells(shapes or ALL_SHAPES, codecs or EXPAND_CODECS, sparsities or EXPAND_SPARSITIES)


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
