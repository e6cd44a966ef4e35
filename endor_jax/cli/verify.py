"""`endor verify`: every byte of a checkpoint, checked."""

from __future__ import annotations

import time
from dataclasses import asdict

import typer

from endor_jax.cli.console import Checkpoint, Json, Output, Quiet, Verbose, one_line


def command(
    checkpoint: Checkpoint,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check every byte and every rule of the format. Exits with 4 if anything is damaged or missing."""
    from endor_jax.errors import CorruptCheckpointError
    from endor_jax.store.verify import verify
    from endor_jax.streaming.sizes import format_size

    output = Output(as_json, quiet, verbose)
    clock = time.perf_counter()
    with output.progress() as progress:
        report = verify(checkpoint, progress)
    seconds = time.perf_counter() - clock
    for problem in report.problems:
        typer.echo(f"endor: {one_line(str(problem))}", err=True)
    for note in report.notes:
        output.notes.print(one_line(note))
    if as_json:
        output.json(
            {
                "path": checkpoint,
                "ok": report.ok,
                "problems": [asdict(problem) for problem in report.problems],
                "notes": list(report.notes),
                "files": report.files,
                "records": report.records,
                "bytes_checked": report.bytes_checked,
                "seconds": seconds,
            }
        )
    elif report.ok:
        checked = f"{report.files} files, {report.records} records, {format_size(report.bytes_checked)}"
        output.line(f"{checkpoint}: {checked}, every byte as it was written ({seconds:.1f} s)")
    if not report.ok:
        raise typer.Exit(CorruptCheckpointError.exit_code)
