"""`endor bench stream`: the streaming loop beside its slowest stage, budgets as predicted, batches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

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
    from rich.console import RenderableType

    from endor_jax.bench.stream import StreamRecord


def command(
    model: Annotated[
        str, typer.Option(help="A checkpoint, or a model of this shape, made with random weights.")
    ] = "llama-1b",
    sparsity: Sparsity = 0.5,
    rate: Annotated[
        list[str] | None,
        typer.Option(help="Of a slowed store, such as 500MB a second. May be given several times."),
    ] = None,
    sequences: Annotated[
        list[int] | None, typer.Option(min=1, help="That a pass serves. May be given several times.")
    ] = None,
    reader: Annotated[str, typer.Option(help="Of the disk itself.")] = "direct",
    passes: Annotated[int, typer.Option(min=1, help="In a turn, each a token of every sequence.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of everything.")] = 3,
    sweep: Annotated[int, typer.Option(min=0, help="Budgets, from nothing resident to everything.")] = 7,
    work_dir: WorkDir = None,
    record: Record = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The streaming loop beside its slowest stage alone, no overlap and a dense stream; budgets; batches."""
    from endor_jax.bench.plot_stream import plot_stream
    from endor_jax.bench.stream import RATES, SEQUENCES, StreamSettings, measure_stream
    from endor_jax.streaming.sizes import parse_size

    check_files(record, plot)
    settings = StreamSettings(
        model=model,
        sparsity=sparsity,
        reader=reader,
        rates=tuple(float(parse_size(each)) for each in rate or ()) or RATES,
        sequences=tuple(sequences or SEQUENCES),
        passes=passes,
        rounds=rounds,
        budgets=sweep,
    )
    output = Output(as_json, quiet, verbose)
    note_missing(output)

    def keep(predictions: dict[str, Any]) -> None:
        if record is not None:  # before anything has run
            record.write_text(json.dumps({"benchmark": "stream"} | predictions, indent=1) + "\n")

    with working_directory(work_dir) as directory:
        measured = measure_stream(directory, settings=settings, report=reporter(output), predicted=keep)
    show(output, measured, stream_tables(measured), record)
    if plot is not None:
        plot_stream(measured, plot)


def stream_tables(record: StreamRecord) -> list[RenderableType]:
    """Stores, then budgets, then batches."""
    tables: list[RenderableType] = [_case_table(record)]
    if record.sweep:
        tables.append(_sweep_table(record))
    tables.append(_batch_table(record))
    return tables


def _case_table(record: StreamRecord) -> Table:
    order = record.order
    kept = "before every step" if order.kept else "NOT before every step"
    caption = f"put(i+{order.ahead}) was issued {kept} of {order.steps}"
    headings = "seqs", "loop ms", "middle half", "slowest", "ms", "loop/it", "/limit"
    table = figures_table("a pass", *headings, "no overlap", "dense", caption=caption)
    for case in record.cases:
        lower, upper = (f"{1e3 * seconds:.4g}" for seconds in case.loop.quartile_seconds)
        table.add_row(
            case.store,
            str(case.sequences),
            f"{1e3 * case.loop.median_seconds:.4g}",
            f"{lower}-{upper}",
            case.slowest,
            f"{1e3 * case.alone[case.slowest].median_seconds:.4g}",
            f"{case.of_slowest:.3f}",
            f"{case.of_limit:.3f}",
            f"{case.overlap_gain:.2f} x",
            "" if case.dense_gain is None else f"{case.dense_gain:.2f} x",
        )
    return table


def _sweep_table(record: StreamRecord) -> Table:
    from endor_jax.bench.stream_sweep import worst_error, worst_step
    from endor_jax.streaming.sizes import format_size

    error = worst_error(record.sweep)
    caption = f"least step {worst_step(record.sweep):.3f}"
    caption += ", no prediction" if error is None else f", largest error {error:.1%}"
    table = figures_table(
        "budgets", "resident", "predicted tokens/s", "achieved", "error", "bound by", caption=caption
    )
    for point in record.sweep:
        prediction = point.predicted.prediction
        table.add_row(
            format_size(point.predicted.plan.device_budget_bytes),
            format_size(point.predicted.resident_bytes),
            "" if prediction is None else f"{prediction.tokens_per_second:.2f}",
            f"{point.tokens_per_second:.2f}",
            "" if point.error is None else f"{point.error:+.1%}",
            "" if prediction is None else prediction.binding,
        )
    return table


def _batch_table(record: StreamRecord) -> Table:
    caption = f"{record.batch_gain:.1f} times as many tokens"
    if record.link is not None:
        share = record.link.bytes_per_second / record.link.pinned_bytes_per_second
        caption += f"; link {record.link.bytes_per_second / 1e9:.1f} GB/s, {share:.0%} of a pinned copy"
    table = figures_table("sequences", "tokens/s", "least", "most", caption=caption)
    for point in record.batch:
        rates = point.tokens_per_second, min(point.rates), max(point.rates)
        table.add_row(str(point.sequences), *(f"{rate:.2f}" for rate in rates))
    return table
