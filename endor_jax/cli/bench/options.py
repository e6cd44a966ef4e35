"""Options that suites share, and what is done with them: files checked first, a place to work, the record."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endor_jax.bench.record_file import Measured, write_record
from endor_jax.cli.console import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

Record = Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw it: a file .svg, .png or .pdf. Needs matplotlib.")]
WorkDir = Annotated[
    Path | None, typer.Option(help="Where models are made and kept. Default: somewhere temporary.")
]
ShapeOption = Annotated[
    list[str] | None, typer.Option(help="Outputs x inputs, such as 4096x11008. May be given several times.")
]
Sparsity = Annotated[float, typer.Option(min=0, max=1, help="Fraction of zeros.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: bfloat16, float16 or float32.")]
Threads = Annotated[
    list[int] | None, typer.Option(min=1, help="Number of threads. May be given several times.")
]
Seconds = Annotated[float, typer.Option(min=0, help="For each contender in each case.")]


def check_files(record: Path | None, plot: Path | None = None) -> None:
    """Finds out that a file cannot be written before minutes of measuring, not after.

    Raises OSError for a record, and what `check_plot` raises for a plot.
    """
    from endor_jax.bench.plots import check_plot

    if plot is not None:
        check_plot(plot)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.open("a").close()


@contextmanager
def working_directory(wanted: Path | None) -> Iterator[Path]:
    """Where models are made: the directory that is wanted, or one that goes afterwards."""
    if wanted is not None:
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="endor-bench-") as directory:
        yield Path(directory)


def reporter(output: Output) -> Any:
    """Called with what is being done; says it on stderr."""
    return lambda what: output.notes.print(what, style="dim")


def note_missing(output: Output, *peers: str) -> None:
    """Says which contenders cannot take part."""
    from endor_jax import native
    from endor_jax.bench.peers import installed

    if not native.available():
        output.notes.print("the compiled extension was not built: ours is XLA only (endor doctor)")
    for peer in peers:
        if not installed(peer):
            output.notes.print(f"no {peer}: not measured (pip install 'endor_jax[reference]')")


def show(output: Output, measured: Measured, tables: list[RenderableType], record: Path | None) -> None:
    """The record to its file, and to stdout: as JSON, or as tables."""
    values = measured.to_json()
    if record is not None:
        write_record(measured, record)
    if output.as_json:
        output.json(values)
        return
    for table in tables:
        output.results.print(table)
