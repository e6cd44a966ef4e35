"""`endor reshard`: a checkpoint cut for another number of devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from endor_jax.cli.console import Json, Output, Quiet, Verbose


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint directory.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="Where to write: nothing, or an interrupted reshard.")
    ],
    shards: Annotated[
        int, typer.Option(min=1, help="Every record gets a multiple of so many parts, for as many devices.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what an interrupted reshard left.")
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Cut a checkpoint into other parts, without its source. Every bit of the weights stays as it is."""
    from endor_jax.conversion.reshard import reshard
    from endor_jax.store.destination import taken_bytes
    from endor_jax.streaming.sizes import format_size

    output = Output(as_json, quiet, verbose)
    with output.progress() as progress:
        manifest = reshard(source, destination, shards=shards, resume=resume, progress=progress)
    stored_bytes = taken_bytes(Path(destination))
    if as_json:
        output.json({"path": destination, "shards": manifest.shards, "stored_bytes": stored_bytes})
    else:
        output.line(f"{destination}: {format_size(stored_bytes)}, shards: {manifest.shards}")
