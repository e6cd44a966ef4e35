"""Progress where there is no terminal: lines on stderr, now and then."""

from __future__ import annotations

import pytest

from endor_jax.cli import console
from endor_jax.cli.console import Output


def shown(output: Output, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with output.progress() as report:
        report("looking", 0, 0)
        report("pruning layers.0", 1, 8)
        report("pruning layers.1", 2, 8)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(
        [0.0, 31.0, 31.0, 32.0, 62.0, 62.0]
    )  # at the start; at each report, twice where a line comes
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock, 62.0))
    assert shown(Output(False, False, False), capsys) == ["looking", " 25%  pruning layers.1"]


def test_none_when_quiet_or_soon_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(Output(False, False, False), capsys) == []
    monkeypatch.setattr(console, "LINE_SECONDS", -1)
    assert len(shown(Output(False, False, False), capsys)) == 3
    assert shown(Output(False, True, False), capsys) == []
