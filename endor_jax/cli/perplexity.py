"""`endor perplexity`: how well a checkpoint predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from endor_jax.cli.console import Checkpoint, DeviceMemory, HostMemory, Json, Output, Quiet, Verbose


def command(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Option(help="A UTF-8 text file.")],
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a block.")] = 512,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Blocks that pass through the layers together: memory for fewer reads.")
    ] = 4,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity on a text, with its standard error, in one pass over the layers per batch of blocks."""
    from endor_jax.evaluate.perplexity import perplexity
    from endor_jax.generate.model import load

    output = Output(as_json, quiet, verbose)
    text = read_text(data)
    with load(
        checkpoint,
        device_memory=device_memory,
        host_memory=host_memory,
        context=sequence_length,
        batch=batch_size,
    ) as model:
        output.detail(repr(model.plan))
        with output.progress() as progress:
            result = perplexity(
                model,
                model.encode(text),
                sequence_length=sequence_length,
                progress=lambda done, total: progress("scoring", done, total),
            )
    if as_json:
        output.json(
            {
                "perplexity": result.value,
                "standard_error": result.standard_error,
                "tokens": result.tokens,
                "sequence_length": sequence_length,
            }
        )
    else:
        output.line(
            f"perplexity {result.value:.3f} ± {result.standard_error:.3f} "
            f"({result.tokens:,} tokens in blocks of {sequence_length})"
        )


def read_text(name: str) -> str:
    """A text file. Raises NotFoundError, or InvalidInputError for bytes that are no UTF-8."""
    from endor_jax.errors import InvalidInputError, NotFoundError

    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(
            f"data {name}", got="no such file", expected="a text file", fix="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"data {name}", got=f"bytes that are no text ({error})", expected="UTF-8", fix="convert it first"
        ) from error
