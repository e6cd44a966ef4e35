"""`endor bench memory`: what converting, calibrating and generating stated beforehand, and what they took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from endor_jax.cli.bench.options import Record, WorkDir, check_files, reporter, show, working_directory
from endor_jax.cli.console import Json, Output, Quiet, Verbose

if TYPE_CHECKING:
    from endor_jax.bench.memory import MemoryRecord


def command(
    model: Annotated[str, typer.Option(help="A model of this shape, made with random weights.")] = "llama-1b",
    work_dir: WorkDir = None,
    record: Record = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What converting, calibrating and generating said beforehand that they take, and what they took."""
    from endor_jax.bench.memory import measure_memory

    check_files(record)
    output = Output(as_json, quiet, verbose)
    with working_directory(work_dir) as directory:
        measured = measure_memory(model, directory, report=reporter(output))
    show(output, measured, [memory_table(measured)], record)


def memory_table(record: MemoryRecord) -> Table:
    """A row for each that was run."""
    from endor_jax.streaming.sizes import format_size

    def size(count: int | None) -> str:
        return "none" if count is None else format_size(count)

    table = Table(record.model, "stated", "limit", "taken", "seconds", "kept")
    for sample in record.samples:
        table.add_row(
            sample.what,
            size(sample.stated_bytes),
            size(sample.limit_bytes),
            size(sample.taken_bytes),
            f"{sample.seconds:.1f}",
            "yes" if sample.kept else "no",
        )
    return table
