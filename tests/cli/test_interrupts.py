"""^C ends a verb with 130 and one line, also where the exception that comes with it gets lost."""

from __future__ import annotations

import os
import signal

import pytest
import typer

from endor_jax.cli import main
from endor_jax.cli.console import Output, interrupted


@pytest.fixture(autouse=True)
def clear():
    before = signal.getsignal(signal.SIGINT)
    yield
    interrupted.clear()
    assert signal.getsignal(signal.SIGINT) is before


def swallow() -> None:
    """As a callback of a library does."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the signal is handled at the latest here
    except KeyboardInterrupt:
        pass


def replace() -> None:
    """As an import does that is interrupted."""
    try:
        swallow()
    finally:
        raise ImportError("cannot import name")


@pytest.mark.parametrize("command", [swallow, replace])
def test_interrupt_that_gets_lost(command, capsys):
    with pytest.raises(typer.Exit) as caught:
        main._guarded(command)()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "endor: interrupted\n"


def test_long_work_stops(capsys):
    output = Output(as_json=False, quiet=True, verbose=False)
    interrupted.set()
    with pytest.raises(KeyboardInterrupt):
        output.text("more")
    with pytest.raises(KeyboardInterrupt), output.progress() as report:
        report("reading", 1, 2)
    assert capsys.readouterr().out == ""
