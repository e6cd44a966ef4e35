"""The options of every verb that several processes can do together, and how they share stdout."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from endor_jax.peers.peers import Peers

Coordinator = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Of several processes: where process 0 listens for the others."),
]
Processes = Annotated[int | None, typer.Option(help="How many processes run the model together.")]
ProcessIndex = Annotated[int | None, typer.Option(help="Which of them this one is; the first is 0.")]
PeerTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds after which a silent process, or one that is waited for, is lost. Default: 30."
    ),
]


@contextlib.contextmanager
def joined(
    coordinator: str | None,
    *,
    processes: int | None,
    process_index: int | None,
    peer_timeout: float | None,
) -> Iterator[Peers | None]:
    """The other processes of the run, for as long as this one works with them; None if it is alone.

    To be entered before JAX is used. Only process 0 has a stdout meanwhile. Raises OptionError if some of
    these options are missing, and what `join` raises.
    """
    from endor_jax.errors import OptionError

    several = {"--coordinator": coordinator, "--processes": processes, "--process-index": process_index}
    given = [name for name, value in several.items() if value is not None]
    if not given and peer_timeout is None:
        yield None
        return
    if len(given) < len(several):
        raise OptionError(
            "several processes",
            got=", ".join(given) or "--peer-timeout",
            expected=", ".join(several),
            fix="say all three in every process, or none",
        )
    assert coordinator is not None
    assert processes is not None
    assert process_index is not None
    from endor_jax.peers.join import TIMEOUT_SECONDS, join

    timeout = TIMEOUT_SECONDS if peer_timeout is None else peer_timeout
    with (
        stdout_of_process_0(process_index),
        join(coordinator, processes=processes, index=process_index, timeout_seconds=timeout) as peers,
    ):
        yield peers


@contextlib.contextmanager
def stdout_of_process_0(process_index: int) -> Iterator[None]:
    """Sends what is printed to stdout in process 0 and to nowhere in the others.

    File descriptor 1 is stderr meanwhile: gloo, which connects the processes of CPUs, writes to it.
    """
    python = sys.stdout
    python.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        place = descriptor if process_index == 0 else os.devnull
        with open(
            place, "w", encoding=python.encoding, errors=python.errors, closefd=place != descriptor
        ) as results:
            sys.stdout = results
            yield
    finally:
        sys.stdout = python
        os.dup2(descriptor, 1)
        os.close(descriptor)
