"""Where output goes: results on stdout, everything else on stderr; machine output with --json."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from endor_jax.evaluate.finite import finite

if TYPE_CHECKING:
    from endor_jax.store.remote.cache import PartCache

Json = Annotated[bool, typer.Option("--json", help="Machine output on stdout, everything else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
DeviceMemory = Annotated[
    str | None, typer.Option(help="Budget on the device, for example 8GiB. Default: 90 % of what is free.")
]
HostMemory = Annotated[
    str | None, typer.Option(help="Budget in host memory, for example 32GiB. Default: 90 % of what is free.")
]
Checkpoint = Annotated[
    str, typer.Argument(help="A checkpoint: a directory, or s3:// or gs:// and where it is.", metavar="DST")
]
CacheSize = Annotated[
    str | None,
    typer.Option(
        help="Of an object store: how much of it to keep on a local disk, for example 20GiB, the default; "
        "0B keeps nothing."
    ),
]
CacheDir = Annotated[str | None, typer.Option(help="Where. Default: ~/.cache/endor_jax/parts.")]

_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
"""Paths and generated text are no rich markup: "[b]" and ":heart:" are printed as they are."""

_PIPE_WIDTH = 120

LINE_SECONDS = 30
"""How often a line of progress comes where there is no bar: few in a log, and none of what is soon done."""


def cache_of(size: str | None, directory: str | None) -> PartCache | None:
    """The cache that --cache-size and --cache-dir ask for; None if neither is given.

    Raises OptionError for a size that is none.
    """
    from endor_jax.store.remote.cache import PartCache
    from endor_jax.streaming.sizes import parse_size

    if size is None and directory is None:
        return None
    return PartCache(None if size is None else parse_size(size), directory)


interrupted = threading.Event()
"""Set by ^C. The exception that comes with it is lost when it strikes inside a callback of a library."""


def stop_if_interrupted() -> None:
    """Raises KeyboardInterrupt if ^C was pressed: for places that long work passes often."""
    if interrupted.is_set():
        raise KeyboardInterrupt


def read_text(read: Callable[[], str]) -> str:
    """What `read` gives. Raises InvalidInputError for bytes that are no text."""
    from endor_jax.errors import InvalidInputError

    try:
        return read()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            "stdin", got=f"bytes that are no text ({error})", expected="UTF-8", fix="convert it first"
        ) from error


def one_line(text: str) -> str:
    """The same without line breaks and control characters, which names in a checkpoint may have."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@dataclass(frozen=True)
class Output:
    """How a verb talks: as JSON or to a person, with how many words."""

    as_json: bool
    quiet: bool
    verbose: bool

    @property
    def notes(self) -> Console:
        """For what is no result: stderr, or nowhere with --quiet."""
        return Console(stderr=True, quiet=self.quiet, soft_wrap=True, **_PLAIN)

    @property
    def results(self) -> Console:
        """For people: stdout. A pipe has no width that a table must fit into."""
        return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, **_PLAIN)

    def line(self, text: str) -> None:
        """A result in words: stdout, as long as it is."""
        self.results.print(text, soft_wrap=True)

    def text(self, text: str) -> None:
        """Generated text as it comes: stdout, or stderr when stdout is for JSON."""
        stop_if_interrupted()
        stream = sys.stderr if self.as_json else sys.stdout
        if not (self.as_json and self.quiet):
            stream.write(text)
            stream.flush()

    def detail(self, text: str) -> None:
        """Something that only --verbose wants."""
        if self.verbose:
            self.notes.print(text)

    def json(self, value: Mapping[str, Any]) -> None:
        """The machine's result; null for numbers that JSON has not."""
        sys.stdout.write(json.dumps(finite(value), indent=1, allow_nan=False) + "\n")

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """Yields the function that shows progress: (what, done, total).

        It is a bar on stderr, if that is a terminal; otherwise a line there every LINE_SECONDS.
        """
        notes = self.notes
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=notes, disable=self.quiet or not notes.is_terminal, transient=True
        ) as bar:
            task = bar.add_task("starting", total=None)

            latest = time.monotonic()

            def report(what: str, done: int, total: int) -> None:
                nonlocal latest
                stop_if_interrupted()
                bar.update(task, description=what, completed=done, total=total)
                if bar.disable and time.monotonic() > latest + LINE_SECONDS:
                    latest = time.monotonic()
                    notes.print(f"{done / total:4.0%}  {what}" if total else what, style="dim")

            yield report
