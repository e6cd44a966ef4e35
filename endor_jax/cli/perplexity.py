"""`endor perplexity`: how well a checkpoint predicts a text."""

from __future__ import annotations

from typing import Annotated

import typer

from endor_jax.cli.blocks import Data, SequenceLength
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
from endor_jax.cli.devices import PipelineParallel, TensorParallel, mesh_of


def command(
    checkpoint: Checkpoint,
    data: Data = None,
    sequence_length: SequenceLength = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Score only these of the shuffled blocks, 64:104 for example. Default: all, in order."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the shuffle. Default: 0.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Blocks that pass through the layers together: memory for fewer reads.")
    ] = 4,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    cache_size: CacheSize = None,
    cache_dir: CacheDir = None,
    tensor_parallel: TensorParallel = None,
    pipeline_parallel: PipelineParallel = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity on a text, with its standard error, in one pass over the layers per batch of blocks."""
    from endor_jax.cli.blocks import choice_of, default_length, note_calibration, token_blocks, tokenizer_at
    from endor_jax.evaluate.perplexity import perplexity_of_blocks
    from endor_jax.generate.model import load

    output = Output(as_json, quiet, verbose)
    length = sequence_length or default_length(checkpoint)
    choice = choice_of(data, length, blocks=blocks, seed=seed)
    chosen = token_blocks(choice, tokenizer_at(checkpoint))
    note_calibration(checkpoint, choice, output)
    with load(
        checkpoint,
        device_memory=device_memory,
        host_memory=host_memory,
        cache=cache_of(cache_size, cache_dir),
        context=length,
        batch=batch_size,
        mesh=mesh_of(pipeline_parallel, tensor_parallel),
    ) as model:
        output.detail(repr(model.plan))
        with output.progress() as progress:
            result = perplexity_of_blocks(
                model, chosen, progress=lambda done, total: progress("scoring", done, total)
            )
    if as_json:
        figures = {
            "perplexity": result.value,
            "standard_error": result.standard_error,
            "tokens": result.tokens,
        }
        output.json(figures | choice.values)
    else:
        value = f"{result.value:.3f} ± {result.standard_error:.3f}"
        output.line(f"perplexity {value} ({result.tokens:,} tokens: {choice})")
