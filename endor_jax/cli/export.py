"""`endor export`: a checkpoint back to files that others read."""

from __future__ import annotations

from typing import Annotated

import typer

from endor_jax.cli.console import Checkpoint, Json, Output, Quiet, Verbose


def command(
    checkpoint: Checkpoint,
    destination: Annotated[str, typer.Argument(metavar="OUT", help="A directory to write.")],
    to: Annotated[
        str, typer.Option(metavar="safetensors|sparse-bitmask|orbax", help="What to write.")
    ] = "safetensors",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a checkpoint as safetensors that transformers loads, or for others; zeros stay zeros."""
    from endor_jax.conversion.export import export

    output = Output(as_json, quiet, verbose)
    with output.progress() as progress:
        path = export(checkpoint, destination, to=to, progress=progress)
    names = sorted(file.name for file in path.iterdir())
    if as_json:
        output.json({"path": str(path), "files": names})
    else:
        output.line(f"{path}: {', '.join(names)}")
