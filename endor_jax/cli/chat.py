"""`endor chat`: a conversation, whose history stays in the cache from turn to turn."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from endor_jax.cli.console import Checkpoint, DeviceMemory, HostMemory, Json, Output, Quiet, Verbose
from endor_jax.cli.generate import statistics_values, summary
from endor_jax.cli.sampling import MinP, RepetitionPenalty, Seed, Stop, Temp, TopK, TopP

if TYPE_CHECKING:
    from endor_jax.generate.model import Model
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
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Talk with a chat model, a line at a time; what was said stays in the cache."""
    from endor_jax.errors import InvalidInputError
    from endor_jax.generate.model import load
    from endor_jax.generate.sampling import Sampler

    output = Output(as_json, quiet, verbose)
    sampler = Sampler(
        temperature=temp,
        top_p=top_p,
        seed=seed,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    with load(checkpoint, device_memory=device_memory, host_memory=host_memory, context=context) as model:
        output.detail(repr(model.plan))
        session, answered = _begin(model, system), False
        if sys.stdin.isatty():
            output.notes.print(HELP, style="dim")
        for message in _messages():
            if message == "/reset":
                session = _begin(model, system)
                continue
            try:
                _answer(session, message, output, sampler=sampler, max_tokens=max_tokens, stop=stop or [])
                if session.statistics is not None and not as_json:
                    output.detail(summary(model, session.statistics))
                answered = True
            except InvalidInputError as error:
                if not answered:  # not what was said last, but the model or an option
                    raise
                output.notes.print(f"{error}; /reset begins anew")


def _begin(model: Model, system: str | None) -> Session:
    """A conversation in which nothing was said yet but the system's message."""
    session = model.session()
    if system is not None:
        session.messages.append({"role": "system", "content": system})
    return session


def _messages() -> Iterator[str]:
    """Lines from stdin, with a prompt where somebody types them; blank ones are left out."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
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
    assert session.statistics is not None
    if output.as_json:
        text, ids = session.messages[-1]["content"], [token.id for token in tokens]
        sys.stdout.write(
            json.dumps({"text": text, "token_ids": ids} | statistics_values(session.statistics)) + "\n"
        )
        sys.stdout.flush()
