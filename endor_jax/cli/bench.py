"""`endor bench`: measurements that anyone can repeat."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from endor_jax.cli.console import Json, Output, Quiet, Verbose

if TYPE_CHECKING:
    from endor_jax.bench.memory import MemoryRecord

SUITES = ("memory",)


def command(
    suite: Annotated[str, typer.Argument(metavar="memory", help="What to measure.")],
    model: Annotated[str, typer.Option(help="A model of this shape, made with random weights.")] = "llama-1b",
    work_dir: Annotated[
        Path | None, typer.Option(help="Where models are made and kept. Default: somewhere temporary.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure: memory states what convert and generate said beforehand that they take, and what they took."""
    from endor_jax.bench.memory import measure_memory
    from endor_jax.errors import OptionError

    if suite not in SUITES:
        raise OptionError(
            "bench", got=repr(suite), expected=" or ".join(SUITES), fix="choose one: endor bench memory"
        )
    output = Output(as_json, quiet, verbose)

    def report(what: str) -> None:
        output.notes.print(what, style="dim")

    if work_dir is not None:
        measured = measure_memory(model, work_dir, report=report)
    else:
        with tempfile.TemporaryDirectory(prefix="endor-bench-") as directory:
            measured = measure_memory(model, Path(directory), report=report)
    if record is not None:
        record.write_text(json.dumps(measured.to_json(), indent=1) + "\n")
    if as_json:
        output.json(measured.to_json())
    else:
        _print(output, measured)


def _print(output: Output, measured: MemoryRecord) -> None:
    from rich.table import Table

    from endor_jax.streaming.sizes import format_size

    def size(count: int | None) -> str:
        return "none" if count is None else format_size(count)

    table = Table(measured.model, "stated", "limit", "taken", "seconds", "kept")
    for sample in measured.samples:
        table.add_row(
            sample.verb,
            size(sample.stated_bytes),
            size(sample.limit_bytes),
            size(sample.taken_bytes),
            f"{sample.seconds:.1f}",
            "yes" if sample.kept else "no",
        )
    output.results.print(table)
