"""`endor trace`: a short generation with every read, transfer, step and wait recorded, for Perfetto."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endor_jax.cli.console import (
    CacheDir,
    CacheSize,
    Checkpoint,
    DeviceMemory,
    HostMemory,
    Json,
    Output,
    Quiet,
    Verbose,
    cache_of,
)
from endor_jax.location import locate

if TYPE_CHECKING:
    from endor_jax.streaming.tracks import Steady, Work


def command(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The prompt.")],
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate: a pass each.")] = 8,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    cache_size: CacheSize = None,
    cache_dir: CacheDir = None,
    reader: Annotated[
        str | None,
        typer.Option(help="preadv, direct, mmap or tensorstore. Default: the best that was measured."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Opened by ui.perfetto.dev and chrome://tracing.")
    ] = Path("trace.json"),
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw the last passes: a file .svg, .png or .pdf. Needs matplotlib."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Record what every stage does while a model generates, and what the others wait for."""
    from endor_jax.bench.plots import check_plot
    from endor_jax.cli.generate import announce, prompt_ids
    from endor_jax.generate.model import load
    from endor_jax.streaming.timeline import Timeline
    from endor_jax.streaming.trace_events import trace_events
    from endor_jax.streaming.tracks import steady

    if plot is not None:
        check_plot(plot)
    said = Output(as_json, quiet, verbose)
    timeline = Timeline(keep=True)
    with load(
        checkpoint,
        device_memory=device_memory,
        host_memory=host_memory,
        cache=cache_of(cache_size, cache_dir),
        reader=reader,
        timeline=timeline,
    ) as model:
        ids = prompt_ids(model, prompt, ignore_chat_template=False)
        generation = model.generate(ids, max_tokens=max_tokens)
        announce(model, said)
        tokens = sum(1 for _ in generation)
        reader = model.reader
    spans = tuple(timeline.spans)  # all of them: closing the model waited for what was going on
    _write(output, trace_events(spans))
    last = steady(spans)
    if plot is not None:
        from endor_jax.bench.plot_trace import plot_trace

        title = f"{locate(checkpoint).name}, reader {reader}, last {last.passes} of {tokens} passes"
        plot_trace(spans, last, plot, title=title)
    if as_json:
        files = {"trace": str(output), "plot": None if plot is None else str(plot)}
        said.json(files | {"tokens": tokens, "reader": reader} | steady_values(last))
        return
    said.results.print(_table(last))
    said.line(f"{output}: open it with https://ui.perfetto.dev")


def steady_values(last: Steady) -> dict[str, Any]:
    """The last passes as JSON."""
    return {
        "passes": last.passes,
        "pass_seconds": last.pass_seconds,
        "busy": last.busy,
        "waited": last.waited,
        "binding": last.binding,
        "read_bytes": last.read_bytes,
    }


def _table(last: Steady) -> Any:
    """A row per stage."""
    from rich.table import Table

    names: dict[Work, str] = {"read": "reading", "put": "transfer", "step": "computing"}
    table = Table(
        title=f"last {last.passes} passes, {1e3 * last.pass_seconds:.1f} ms each",
        caption=f"everything waits for {names[last.binding]}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("busy", justify="right")
    table.add_column("waited for", justify="right")
    for stage, name in names.items():
        table.add_row(name, f"{last.busy[stage]:.0%}", f"{last.waited[stage]:.0%}")
    return table


def _write(path: Path, events: dict[str, Any]) -> None:
    """All of it, or nothing: what is at `path` is whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        writing.write_text(json.dumps(events))
        os.replace(writing, path)
    finally:
        writing.unlink(missing_ok=True)
