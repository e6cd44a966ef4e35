"""`endor bench decode`: tokens per second of a resident model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from endor_jax.cli.bench.options import (
    Plot,
    Record,
    Sparsity,
    WorkDir,
    check_files,
    reporter,
    show,
    working_directory,
)
from endor_jax.cli.bench.tables import figures_table
from endor_jax.cli.console import Json, Output, Quiet, Verbose

if TYPE_CHECKING:
    from endor_jax.bench.decode import DecodeRecord


def command(
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
    from endor_jax.sources.smollm2 import fetch_smollm2

    check_files(record, plot)
    settings = DecodeSettings(sparsity=sparsity, values=values, prompt=prompt, tokens=tokens, rounds=rounds)
    output = Output(as_json, quiet, verbose)
    cache = Path(os.environ.get("ENDOR_CACHE", "~/.cache/endor_jax")).expanduser()
    with working_directory(work_dir) as directory:
        measured = measure_decode(
            model or fetch_smollm2(cache), directory, settings=settings, report=reporter(output)
        )
    show(output, measured, [decode_table(measured)], record)
    if plot is not None:
        plot_decode(measured, plot)


def decode_table(record: DecodeRecord) -> Table:
    """A row per contender."""
    caption = f"ours is {record.peer_ratio:.2f} times as fast as the faster peer"
    headings = "tokens/s", "slowest", "fastest", "prompt ms", "tokens as ours"
    table = figures_table(f"{record.model}, {record.threads} thread(s)", *headings, caption=caption)
    for timing in record.timings:
        rates = sorted(each.tokens_per_second for each in timing.generations)
        prompts = sorted(each.prompt_seconds for each in timing.generations)
        table.add_row(
            timing.contender,
            *(f"{rate:.1f}" for rate in (timing.tokens_per_second, rates[0], rates[-1])),
            f"{1e3 * prompts[len(prompts) // 2]:.0f}",
            f"{record.same_tokens(timing)} of {len(timing.token_ids)}",
        )
    return table
