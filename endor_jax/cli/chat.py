"""`endor chat`: a conversation, whose history stays in the cache from turn to turn."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
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
    read_text,
)
from endor_jax.cli.devices import PipelineParallel, TensorParallel, mesh_of
from endor_jax.cli.generate import announce, statistics_values, summary
from endor_jax.cli.sampling import MinP, RepetitionPenalty, Seed, Stop, Temp, TopK, TopP

if TYPE_CHECKING:
    from endor_jax.generate.sampling import Sampler
    from endor_jax.generate.session import Session

HELP = "A line is a message. /reset forgets the conversation, /exit (or the end of the input) leaves."


def command(
    checkpoint: Checkpoint,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of an answer. Default: what the context has room for."),
    ] = None,
    temp: Temp = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    context: Annotated[int | None, typer.Option(help="Tokens of the whole conversation.")] = None,
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
    """Talk with a chat model, a line at a time; what was said stays in the cache."""
    from endor_jax.errors import InvalidInputError
    from endor_jax.generate.model import load
    from endor_jax.generate.sampling import Sampler

    output = Output(as_json, quiet, verbose)
    sampler = Sampler(temp, top_p, seed, top_k, min_p, repetition_penalty)
    with load(
        checkpoint,
        device_memory=device_memory,
        host_memory=host_memory,
        cache=cache_of(cache_size, cache_dir),
        context=context,
        mesh=mesh_of(pipeline_parallel, tensor_parallel),
    ) as model:
        announce(model, output)
        # What the model is told first stays in the cache when all the rest is forgotten.
        begun = [] if system is None else [{"role": "system", "content": system}]
        session, answered = model.session(), False
        session.messages = list(begun)
        if sys.stdin.isatty():
            output.notes.print(HELP, style="dim")
        for message in _messages():
            if message == "/reset":
                session.messages = list(begun)
                continue
            try:
                _answer(session, message, output, sampler=sampler, max_tokens=max_tokens, stop=stop or [])
                answered = True
            except InvalidInputError as error:
                if not answered:  # not what was said last, but the model or an option
                    raise
                sys.stderr.write(f"endor: {error}; /reset begins anew\n")
                if as_json:  # a line for every message
                    _line({"error": str(error)})
            else:
                assert session.statistics is not None
                output.detail(summary(model, session.statistics))


def _messages() -> Iterator[str]:
    """Lines from stdin, with a prompt where somebody types them; blank ones are left out."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = read_text(sys.stdin.readline)
        if not line or line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip()


def _answer(
    session: Session,
    message: str,
    output: Output,
    *,
    sampler: Sampler,
    max_tokens: int | None,
    stop: list[str],
) -> None:
    """One turn: the answer as it comes, or as one line of JSON."""
    tokens = []
    for token in session.reply(message, max_tokens=max_tokens, sampler=sampler, stop=stop):
        output.text(token.text)
        tokens.append(token)
    output.text("\n")
    if output.as_json:
        assert session.statistics is not None
        text, ids = session.messages[-1]["content"], [token.id for token in tokens]
        made = {"text": text, "token_ids": ids, "finish_reason": tokens[-1].finish_reason}
        _line(made | statistics_values(session.statistics))


def _line(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
