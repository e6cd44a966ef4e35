"""`endor generate`: text from a checkpoint, as it comes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endor_jax.cli.console import Checkpoint, DeviceMemory, HostMemory, Json, Output, Quiet, Verbose
from endor_jax.cli.plan import plan_values

if TYPE_CHECKING:
    from endor_jax.generate.model import Model
    from endor_jax.generate.statistics import Statistics


def command(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The prompt; - reads it from stdin.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 100,
    temp: Annotated[float, typer.Option(help="Temperature; 0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and generation together.")] = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    ignore_chat_template: Annotated[
        bool, typer.Option("--ignore-chat-template", help="Take the prompt as it is.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate text. Chat models get the prompt in their chat template."""
    from endor_jax.generate.model import load
    from endor_jax.generate.sampling import Sampler

    output = Output(as_json, quiet, verbose)
    sampler = Sampler(temperature=temp, top_p=top_p, seed=seed)
    text = _text(prompt)
    with load(checkpoint, device_memory=device_memory, host_memory=host_memory, context=context) as model:
        output.detail(repr(model.plan))
        ids = prompt_ids(model, text, ignore_chat_template=ignore_chat_template)
        tokens = []
        for token in model.generate(ids, max_tokens=max_tokens, sampler=sampler):
            output.text(token.text)
            tokens.append(token)
        output.text("\n")
        assert model.statistics is not None
        if as_json:
            generated = {"text": "".join(t.text for t in tokens), "token_ids": [t.id for t in tokens]}
            output.json(generated | statistics_values(model.statistics) | {"plan": plan_values(model.plan)})
        else:
            output.notes.print(_summary(model.statistics), style="dim")


def _text(prompt: str) -> str:
    """The prompt, or all of stdin for "-". Raises InvalidInputError for bytes that are no text."""
    from endor_jax.errors import InvalidInputError

    try:
        text = sys.stdin.read() if prompt == "-" else prompt
        text.encode()  # Python lets some undecodable bytes through, as lone surrogates
    except UnicodeError as error:
        raise InvalidInputError(
            "prompt", got=f"bytes that are no text ({error})", expected="UTF-8", fix="convert it first"
        ) from error
    return text


def prompt_ids(model: Model, text: str, *, ignore_chat_template: bool) -> list[int] | str:
    """The prompt as one user turn of the model's chat template, if it has one and it is wanted."""
    from endor_jax.text import render

    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer.chat_template is None or ignore_chat_template:
        return text
    chat = render(tokenizer, [{"role": "user", "content": text}])
    return tokenizer.encode(chat, add_special=False)


def statistics_values(statistics: Statistics) -> dict[str, Any]:
    """Statistics as JSON."""
    return {
        "prompt_tokens": statistics.prompt_tokens,
        "prompt_tokens_per_second": statistics.prompt_tokens_per_second,
        "generation_tokens_per_second": statistics.generation_tokens_per_second,
        "bytes_read": statistics.bytes_read,
        "bytes_transferred": statistics.bytes_transferred,
        "peak_device_bytes": statistics.peak_device_bytes,
        "peak_host_bytes": statistics.peak_host_bytes,
    }


def _summary(statistics: Statistics) -> str:
    from endor_jax.streaming.sizes import format_size

    return (
        f"prompt {statistics.prompt_tokens} tokens at {statistics.prompt_tokens_per_second:.1f} tokens/s, "
        f"generation {statistics.generated_tokens} tokens at "
        f"{statistics.generation_tokens_per_second:.2f} tokens/s, "
        f"{format_size(statistics.bytes_read)} read, "
        f"peak memory {format_size(statistics.peak_host_bytes)}"
    )
