"""`endor`: registers the verbs and turns errors into one line and the documented exit code.

0 ok, 1 failed, 2 usage, 3 does not fit, 4 corrupt checkpoint, 5 another process is lost, 130 interrupted.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer

from endor_jax.cli import (
    bench,
    chat,
    compare,
    convert,
    demo,
    doctor,
    eval,
    export,
    generate,
    info,
    perplexity,
    plan,
    reshard,
    trace,
    verify,
)
from endor_jax.cli.console import interrupted, one_line, stop_if_interrupted
from endor_jax.errors import DoesNotFitError, EndorError
from endor_jax.version import VERSION

INTERRUPTED = 130

app = typer.Typer(
    name="endor",
    help="Run large language models on GPUs too small for them: pruned weights, streamed compressed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The verb, with our own errors and ^C as one line on stderr and as an exit code."""

    @functools.wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        interrupted.clear()
        before = signal.signal(signal.SIGINT, _interrupt)
        try:
            command(*args, **options)
            stop_if_interrupted()
        except BaseException as error:
            if interrupted.is_set():  # whatever became of the KeyboardInterrupt on its way up
                raise _exit("interrupted", INTERRUPTED) from error
            if isinstance(error, EndorError):
                raise _exit(str(error), error.exit_code) from error
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise _exit(str(error), 1) from error  # a full disk, a directory that may not be read
            raise
        finally:
            signal.signal(signal.SIGINT, before)

    return guarded


def _interrupt(number: int, frame: FrameType | None) -> None:
    interrupted.set()
    raise KeyboardInterrupt


def _exit(text: str, code: int) -> typer.Exit:
    """Says why; names in it come from files, so line breaks and control characters are taken out."""
    lines = text.split("\n") if code == DoesNotFitError.exit_code else [text]  # only a plan has several
    sys.stderr.write(f"endor: {chr(10).join(map(one_line, lines))}\n")
    return typer.Exit(code)


MODULES = (
    *(convert, reshard, export, info, plan, generate, chat, trace),
    *(perplexity, compare, eval, doctor, demo, verify),
)
for module in MODULES:
    app.command(module.__name__.rsplit(".", 1)[1])(_guarded(module.command))

_suites = typer.Typer(name="bench", help="Measurements that anyone can repeat.", no_args_is_help=True)
for suite in bench.SUITES:
    _suites.command(suite.__name__.rsplit(".", 1)[1])(_guarded(suite.command))
app.add_typer(_suites)


def _show_version(wanted: bool) -> bool:
    if wanted:
        sys.stdout.write(f"endor {VERSION}\n")
        raise typer.Exit
    return wanted


Version = Annotated[
    bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
]


@app.callback(help=app.info.help)
def options(version: Version = False) -> None:
    """What can be asked of `endor` itself."""


def run() -> None:
    """The entry point of the `endor` command."""
    app()


if __name__ == "__main__":
    run()
