"""A contender in a process of its own, which keeps its model open and generates when it is its turn.

torch and JAX in one process share thread pools and a peak of memory; in two, each has what it has alone, and
the one that waits does nothing. Nothing here imports either, so that neither is in the other's process.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from endor_jax.bench.failures import outcome, result
from endor_jax.bench.page_cache import cached_share, drop
from endor_jax.errors import EndorError, InvalidInputError
from endor_jax.memory import peak_host_bytes

UNCOUNTED = 2
"""Tokens of a turn that are not counted: one waits for the prompt, one for the count of cached pages."""
CLOSE_SECONDS = 30


@dataclass(frozen=True)
class OpenModel:
    """A model that can generate. streamed_bytes: of weights that are moved for each token. platform: where it
    computes, "cpu" or "cuda".

    generate: (prompt ids, tokens) -> greedy tokens as they come.
    """

    generate: Callable[[Sequence[int], int], Iterator[int]]
    streamed_bytes: int
    platform: str


@dataclass(frozen=True)
class Contender:
    """What a process opens. open: a function of a module (it is sent by name), called with `arguments`.

    files: what the weights are read from. reads_ahead: it reads between tokens too; then the time in which
    its files are dropped counts as its own, because it works on meanwhile.
    """

    name: str
    open: Callable[..., AbstractContextManager[OpenModel]]
    arguments: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    reads_ahead: bool = False


@dataclass(frozen=True)
class Turn:
    """One generation. token_seconds: of each token but the first UNCOUNTED. cached_share: of its files'
    pages, before the second token. peak_bytes: resident memory of the process so far, at most."""

    token_ids: tuple[int, ...]
    prompt_seconds: float
    token_seconds: tuple[float, ...]
    cached_share: float
    peak_bytes: int


class ContenderProcess:
    """A process that has opened a contender. `close` is idempotent.

    streamed_bytes, platform: as in OpenModel.
    """

    def __init__(self, contender: Contender):
        """Starts it and waits until the model is open. Raises what opening raises: our errors as they are,
        others as an EndorError with their text."""
        self.contender = contender
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, contender), daemon=True)
        self._process.start()
        there.close()
        try:
            self.streamed_bytes, self.platform = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, prompt: Sequence[int], tokens: int, *, cold: bool) -> Turn:
        """One generation; cold: its files are dropped before every token. Raises as `take_turn` does."""
        self._connection.send({"prompt": tuple(prompt), "tokens": tokens, "cold": cold})
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError as error:
            self._process.join(CLOSE_SECONDS)
            raise EndorError(
                self.contender.name,
                got=f"the end of its process, with code {self._process.exitcode}",
                expected="an answer",
                fix="look for what it printed; -9 may be a lack of memory: ask for fewer layers",
            ) from error
        return result(answer)

    def close(self) -> None:
        """Ends the process; what does not end by itself is killed."""
        self._connection.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> ContenderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(connection: Connection, contender: Contender) -> None:
    """The life of the process: opens, says what it opened, takes a turn per request until the pipe ends."""
    with ExitStack() as stack:
        enter = stack.enter_context
        model: Any = outcome(_explained, contender.name, lambda: enter(contender.open(**contender.arguments)))
        if not isinstance(model, OpenModel):
            connection.send(model)
            return
        connection.send((model.streamed_bytes, model.platform))
        with suppress(EOFError):  # the end of the pipe is that of the work
            while True:
                turn = functools.partial(take_turn, contender, model, **connection.recv())
                connection.send(outcome(_explained, contender.name, turn))


def _explained(name: str, job: Callable[[], Any]) -> Any:
    """What a job returns; an error that is not ours becomes one of ours, with its place and text."""
    try:
        return job()
    except EndorError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise EndorError(
            f"{name}, {place.filename}:{place.lineno}",
            got=f"{type(error).__name__}: {error}",
            expected="a model that generates",
            fix="run the contender by itself",
        ) from error


def take_turn(
    contender: Contender, model: OpenModel, *, prompt: Sequence[int], tokens: int, cold: bool
) -> Turn:
    """A generation, timed token by token.

    Raises InvalidInputError if the text ends early, and what generating raises.
    """
    start = time.perf_counter()
    coming = model.generate(prompt, tokens)
    ids, seconds, share = [next(coming)], [], 0.0
    prompt_seconds = time.perf_counter() - start
    while len(ids) < tokens:
        start = time.perf_counter()
        if cold:
            drop(contender.files)
        if not contender.reads_ahead:
            start = time.perf_counter()
        if len(ids) == UNCOUNTED - 1:
            share = cached_share(contender.files)
        token = next(coming, None)
        if token is None:
            raise InvalidInputError(
                contender.name,
                got=f"an end of text after {len(ids)} tokens",
                expected=f"{tokens}",
                fix="ask for fewer tokens",
            )
        ids.append(token)
        if len(ids) > UNCOUNTED:
            seconds.append(time.perf_counter() - start)
    return Turn(tuple(ids), prompt_seconds, tuple(seconds), share, peak_host_bytes())
