"""`endor compare`: what a checkpoint lost and saved beside another one of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endor_jax.cli.blocks import Choice, Data, SequenceLength
from endor_jax.cli.console import DeviceMemory, HostMemory, Json, Output, Quiet, Verbose
from endor_jax.location import locate

if TYPE_CHECKING:
    from endor_jax.evaluate.compare import Comparison, Side


def command(
    a: Annotated[str, typer.Argument(help="A checkpoint, of the dense original for example.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Another checkpoint of the same model.", metavar="B")],
    data: Data = None,
    sequence_length: SequenceLength = None,
    blocks: Annotated[
        str,
        typer.Option(
            help="Which of the shuffled blocks: text that calibration, by default 0:64, has not seen."
        ),
    ] = "64:104",
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffle.")] = 0,
    batch_size: Annotated[
        int,
        typer.Option(min=1, help="Blocks scored together: fewer reads, but their logits are kept in memory."),
    ] = 1,
    generated_tokens: Annotated[
        int, typer.Option(min=0, help="Of the generation that is timed; 0 leaves it out.")
    ] = 32,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw it: a file .svg, .png or .pdf. Needs matplotlib.")
    ] = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity, KL divergence per token, agreement, bytes and tokens per second of two checkpoints."""
    from endor_jax.bench.plots import check_plot
    from endor_jax.cli.blocks import choice_of, default_length, note_calibration, token_blocks, tokenizer_at
    from endor_jax.evaluate.compare import compare

    if plot is not None:
        check_plot(plot)
    output = Output(as_json, quiet, verbose)
    length = sequence_length or default_length(a)
    choice = choice_of(data, length, blocks=blocks, seed=seed)
    chosen = token_blocks(choice, tokenizer_at(a))
    for checkpoint in (a, b):
        note_calibration(checkpoint, choice, output)
    with output.progress() as progress:
        result = compare(
            a,
            b,
            chosen,
            device_memory=device_memory,
            host_memory=host_memory,
            batch=batch_size,
            generated_tokens=generated_tokens,
            progress=lambda done, total: progress("scoring both", done, total),
        )
    if plot is not None:
        from endor_jax.bench.plot_compare import plot_comparison

        plot_comparison(result, plot, names=(_name(a), _name(b)))
    if as_json:
        files = {"plot": None if plot is None else str(plot)}
        output.json(comparison_values(result, paths=(a, b)) | choice.values | files)
        return
    _show(result, output, names=(_name(a), _name(b)), choice=choice)
    if plot is not None:
        output.line(f"drawn in {plot}")


def comparison_values(result: Comparison, *, paths: tuple[str, str]) -> dict[str, Any]:
    """A comparison as JSON."""
    divergence = result.divergence
    return {
        "a": {"path": paths[0], **_side_values(result.a)},
        "b": {"path": paths[1], **_side_values(result.b)},
        "divergence": {
            "mean": divergence.mean,
            "standard_error": divergence.standard_error,
            "median": divergence.median,
            "percentile_99": divergence.percentile_99,
        },
        "agreement": result.agreement,
        "ratio": result.ratio,
        "ratio_standard_error": result.ratio_standard_error,
        "tokens": result.tokens,
    }


def _side_values(side: Side) -> dict[str, Any]:
    return {
        "perplexity": side.perplexity.value,
        "standard_error": side.perplexity.standard_error,
        "stored_bytes": side.stored_bytes,
        "sparsity": side.sparsity,
        "bytes_per_weight": side.bytes_per_weight,
        "tokens_per_second": side.tokens_per_second,
    }


def _show(result: Comparison, output: Output, *, names: tuple[str, str], choice: Choice) -> None:
    """A table of both, and what was found token by token."""
    from rich.table import Table

    from endor_jax.streaming.sizes import format_size

    a, b, kl = result.a, result.b, result.divergence
    table = Table(title=f"{result.tokens:,} tokens: {choice}", title_justify="left")
    for heading in ("", *names, f"{names[1]} / {names[0]}"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        "perplexity",
        *(f"{side.perplexity.value:.3f} ± {side.perplexity.standard_error:.3f}" for side in (a, b)),
        f"{result.ratio:.4f} ± {result.ratio_standard_error:.4f}",
    )
    table.add_row(
        "files", *(format_size(s.stored_bytes) for s in (a, b)), f"{b.stored_bytes / a.stored_bytes:.3f}"
    )
    table.add_row(
        "bytes per weight of a layer",
        *(f"{side.bytes_per_weight:.3f}" for side in (a, b)),
        f"{b.bytes_per_weight / a.bytes_per_weight:.3f}",
    )
    table.add_row("zeros in the layers", *(f"{side.sparsity:.1%}" for side in (a, b)), "")
    if a.tokens_per_second and b.tokens_per_second:
        rates = a.tokens_per_second, b.tokens_per_second
        table.add_row("tokens per second", *(f"{rate:.1f}" for rate in rates), f"{rates[1] / rates[0]:.2f}")
    output.results.print(table)
    output.line(
        f"KL divergence per token {kl.mean:.5f} ± {kl.standard_error:.5f} nats "
        f"(median {kl.median:.5f}, 99th percentile {kl.percentile_99:.4f})"
    )
    output.line(f"the same likeliest token for {result.agreement:.2%}")


def _name(path: str) -> str:
    """What a checkpoint is called in a table: its directory."""
    place = locate(path)
    return place.resolve().name if isinstance(place, Path) else place.name
