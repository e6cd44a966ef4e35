"""A search that is interrupted anywhere and begun again finds the same, and repeats no finished try."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from endor_jax.search import bisection, workplace
from endor_jax.search.api import finished_tries
from endor_jax.store.journal import JOURNAL_FILE, Journal
from tests.search.faked import Faked, search
from tests.tiny_models import LLAMA, write_tiny


class Interruption(Exception):
    """Stands for a kill: nothing in the package knows it."""


class Clock:
    """Interrupts at the `stop`-th change on disk."""

    def __init__(self) -> None:
        self.changes, self.stop = 0, -1

    def tick(self) -> None:
        self.changes += 1
        if self.changes == self.stop:
            raise Interruption


@pytest.fixture
def clock(monkeypatch):
    """Changes on disk are counted before and after each of them."""
    made = Clock()

    def ticking(home: object, name: str) -> None:
        change = getattr(home, name)

        def counted(*arguments, **options):
            made.tick()
            result = change(*arguments, **options)
            made.tick()
            return result

        monkeypatch.setattr(home, name, counted)

    for home, name in (
        *((Journal, name) for name in ("start", "add", "remove")),
        *((Path, name) for name in ("rename", "replace", "rmdir")),
        (shutil, "rmtree"),
        (workplace, "sync_directory"),
    ):
        ticking(home, name)
    return made


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def increase(percent: int) -> float:
    return 0.00098 * percent


def first_check_fails(percent: int) -> float:
    return 0.051 if percent == 51 else increase(percent)


@pytest.mark.parametrize(("checked", "best"), [(increase, 51), (first_check_fails, 50)])
def test_interrupted_anywhere_it_finds_the_same(tmp_path, monkeypatch, clock, checked, best):
    source = write_tiny(tmp_path / "source", LLAMA | {"num_hidden_layers": 1}, tokenizer=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nothing pulls the plug here
    monkeypatch.setattr(bisection, "LOWEST", 48)
    monkeypatch.setattr(bisection, "HIGHEST", 53)
    clock.changes = 0
    faked = Faked(increase, checked, before=clock.tick).install(monkeypatch)
    whole = search(source, Path("dst"))
    expected = contents(tmp_path)
    changes, clock.changes = clock.changes, 0
    assert [each.percent for each in whole.tries] == [50, 52, 51]
    assert whole.chosen.percent == best
    assert changes > 35
    for stop in range(1, changes + 1):
        shutil.rmtree("dst")
        Path("dst.search.json").unlink()
        faked.converted.clear()
        faked.scored.clear()
        clock.changes, clock.stop = 0, stop
        with pytest.raises(Interruption):
            search(source, Path("dst"))
        finished = Counter(f"{each.sparsity:.2f}" for each in finished_tries("dst", max_increase=0.05))
        clock.stop = -1
        if Path("dst").exists() and not Path("dst.search", JOURNAL_FILE).exists():
            shutil.rmtree("dst.search", ignore_errors=True)  # all was done but the last removal
        else:
            before = Counter(faked.scored)
            assert search(source, Path("dst")) == whole, f"change {stop}"
            again = Counter(faked.scored) - before
            for each in whole.tries:
                if each.check is not None:
                    del again[f"{each.sparsity:.2f}"]  # it is scored for the check as well
            assert not again & finished, f"change {stop}"
        assert contents(tmp_path) == expected, f"change {stop}"
        assert max(Counter(faked.converted).values()) <= 2
