"""`endor`: registers the verbs and turns errors into one line and the documented exit code.

0 ok, 1 failed, 2 usage, 3 does not fit, 4 corrupt checkpoint, 130 interrupted.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer

from endor_jax.cli import convert, demo, doctor, export, generate, info, plan
from endor_jax.errors import EndorError

INTERRUPTED = 130

app = typer.Typer(
    name="endor",
    help="Run large language models on GPUs too small for them: pruned weights, streamed compressed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The verb, with our own errors as one line on stderr and as an exit code."""

    @functools.wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except EndorError as error:
            sys.stderr.write(f"endor: {error}\n")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:  # typer ends quietly
            raise
        except OSError as error:  # a full disk, a directory that may not be read
            sys.stderr.write(f"endor: {error}\n")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            sys.stderr.write("\nendor: interrupted\n")
            raise typer.Exit(INTERRUPTED) from error

    return guarded


for module in (convert, export, info, plan, generate, doctor, demo):
    app.command(module.__name__.rsplit(".", 1)[1])(_guarded(module.command))


def run() -> None:
    """The entry point of the `endor` command."""
    app()


if __name__ == "__main__":
    run()
