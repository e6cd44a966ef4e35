"""`endor bench`: measurements that anyone can repeat, each suite with its own options."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import typer

from endor_jax.cli.console import Json, Output, Quiet, Verbose

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


@runtime_checkable
class Measured(Protocol):
    """A record of any suite."""

    def to_json(self) -> dict[str, Any]: ...


def memory(
    model: Annotated[str, typer.Option(help="A model of this shape, made with random weights.")] = "llama-1b",
    work_dir: WorkDir = None,
    record: Record = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What convert and generate said beforehand that they take, and what they took."""
    from endor_jax.bench.memory import measure_memory
    from endor_jax.cli.bench_tables import memory_table

    _check_files(record)
    output = Output(as_json, quiet, verbose)
    with _directory(work_dir) as directory:
        measured = measure_memory(model, directory, report=_reporter(output))
    _show(output, measured, [memory_table(measured)], record)


def expand(
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
    from endor_jax.cli.bench_tables import expand_tables

    _check_files(record, plot)
    settings = ExpandSettings(
        shapes=tuple(map(parse_shape, shape or ())) or SHAPES,
        codecs=tuple(codec or CODECS),
        sparsity=sparsity,
        dtype=dtype,
        threads=tuple(threads or ()),
        seconds=seconds,
    )
    output = Output(as_json, quiet, verbose)
    _note_missing(output)
    measured = measure_expand(settings, report=_reporter(output))
    _show(output, measured, expand_tables(measured), record)
    if plot is not None:
        plot_expand(measured, plot)


def linear(
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
    from endor_jax.cli.bench_tables import linear_tables

    _check_files(record, plot)
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
    _note_missing(output, "torch")
    measured = measure_linear(settings, report=_reporter(output))
    _show(output, measured, linear_tables(measured), record)
    if plot is not None:
        plot_linear(measured, plot)


def decode(
    model: Annotated[
        Path | None,
        typer.Option(
            help="A Hugging Face directory or a GGUF file. Default: SmolLM2-135M-Instruct, fetched."
        ),
    ] = None,
    sparsity: Sparsity = 0.5,
    values: Annotated[str, typer.Option(help="Codec, as for convert.")] = "packed",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What is gone on with.")] = "Once upon a time",
    tokens: Annotated[int, typer.Option(min=2, help="Generated each time.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Generations per contender.")] = 5,
    work_dir: WorkDir = None,
    record: Record = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tokens per second of a resident model, beside torch transformers with the same weights, dense."""
    from endor_jax.bench.decode import DecodeSettings, measure_decode
    from endor_jax.bench.plots import plot_decode
    from endor_jax.cli.bench_tables import decode_table
    from endor_jax.sources.smollm2 import fetch_smollm2

    _check_files(record, plot)
    settings = DecodeSettings(sparsity=sparsity, values=values, prompt=prompt, tokens=tokens, rounds=rounds)
    output = Output(as_json, quiet, verbose)
    cache = Path(os.environ.get("ENDOR_CACHE", "~/.cache/endor_jax")).expanduser()
    with _directory(work_dir) as directory:
        measured = measure_decode(
            model or fetch_smollm2(cache), directory, settings=settings, report=_reporter(output)
        )
    _show(output, measured, [decode_table(measured)], record)
    if plot is not None:
        plot_decode(measured, plot)


SUITES = (memory, expand, linear, decode)


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """Where models are made: the directory that is wanted, or one that goes afterwards."""
    if wanted is not None:
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="endor-bench-") as directory:
        yield Path(directory)


def _reporter(output: Output) -> Any:
    return lambda what: output.notes.print(what, style="dim")


def _note_missing(output: Output, *peers: str) -> None:
    """Says which contenders cannot take part."""
    from endor_jax import native
    from endor_jax.bench.peers import installed

    if not native.available():
        output.notes.print("the compiled extension was not built: ours is XLA only (endor doctor)")
    for peer in peers:
        if not installed(peer):
            output.notes.print(f"no {peer}: not measured (pip install 'endor_jax[reference]')")


def _check_files(record: Path | None, plot: Path | None = None) -> None:
    """Finds out that a file cannot be written before minutes of measuring, not after.

    Raises OSError for a record, and what `check_plot` raises for a plot.
    """
    from endor_jax.bench.plots import check_plot

    if plot is not None:
        check_plot(plot)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.open("a").close()


def _show(output: Output, measured: Measured, tables: list[RenderableType], record: Path | None) -> None:
    """The record to its file, and to stdout: as JSON, or as tables."""
    values = measured.to_json()
    if record is not None:
        record.write_text(json.dumps(values, indent=1) + "\n")
    if output.as_json:
        output.json(values)
        return
    for table in tables:
        output.results.print(table)
