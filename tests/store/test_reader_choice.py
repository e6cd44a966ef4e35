"""Which reader is chosen: a pure decision, a bounded measurement, and a memory of it that may be damaged."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import UnsupportedError
from endor_jax.store import reader_choice
from endor_jax.store.direct import READERS, read_part
from endor_jax.store.part import write_part
from endor_jax.store.reader_choice import Rates, choose, choose_reader, measure, remember, remembered

MIB, GB = 2**20, 1e9
BUFFERED, DIRECT = Rates(cold=2 * GB, warm=12 * GB), Rates(cold=3 * GB, warm=3 * GB)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for what is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/endor_jax/readers.json"


@pytest.fixture
def parts(tmp_path: Path) -> list[tuple[Path, int]]:
    data = np.arange(5 * MIB, dtype=np.uint32).view(np.uint8)
    write_part(tmp_path / "part", data)
    return [(tmp_path / "part", data.shape[0])]


def test_what_fits_in_the_page_cache_comes_from_there() -> None:
    rates = {"preadv": BUFFERED, "direct": DIRECT}
    choice = choose(rates, read_bytes=100, cache_bytes=100)
    assert (choice.reader, choice.rates) == ("preadv", rates)
    assert "fits in the page cache" in choice.why


def test_what_does_not_fit_goes_past_it() -> None:
    choice = choose({"preadv": BUFFERED, "direct": DIRECT}, read_bytes=101, cache_bytes=100)
    assert choice.reader == "direct"
    assert "does not fit in the page cache" in choice.why


def test_past_the_cache_may_cost_a_little_but_not_much() -> None:
    for cold, expected in ((0.95, "direct"), (0.8, "preadv")):
        rates = {"preadv": Rates(GB, 9 * GB), "direct": Rates(cold * GB, cold * GB)}
        assert choose(rates, read_bytes=101, cache_bytes=100).reader == expected


def test_disk_faster_than_memory() -> None:
    rates = {"preadv": BUFFERED, "direct": Rates(20 * GB, 20 * GB)}
    assert choose(rates, read_bytes=1, cache_bytes=100).reader == "direct"


def test_without_o_direct_there_is_one_left() -> None:
    choice = choose({"preadv": BUFFERED}, read_bytes=10**12, cache_bytes=0)
    assert (choice.reader, choice.why) == ("preadv", "the file system has no O_DIRECT")


@pytest.mark.parametrize("reader", ["mmap", "tensorstore"])
def test_these_are_never_chosen(reader: str) -> None:
    fastest = {"preadv": BUFFERED, "direct": DIRECT, reader: Rates(99 * GB, 99 * GB)}
    for cache in (0, 10**12):
        assert choose(fastest, read_bytes=10**9, cache_bytes=cache).reader in ("preadv", "direct")


def test_small_checkpoints_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_choice, "measure", None)
    endor.save(tmp_path / "x", [{"w": np.ones(100, np.float32)}])
    with endor.open(tmp_path / "x") as checkpoint:
        assert checkpoint.reader == "preadv"
        assert "too few for it to matter" in checkpoint.reader_choice.why


def test_it_is_chosen_once_at_the_first_read_of_a_part(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_choice, "SMALL_BYTES", 0)
    rates, measured = {"preadv": Rates(1.0, 1.0)}, []

    def slowly(parts: object) -> dict[str, Rates]:
        measured.append(parts)
        time.sleep(0.05)  # the other threads ask meanwhile
        return rates

    monkeypatch.setattr(reader_choice, "measure", slowly)
    monkeypatch.setattr(reader_choice, "remember", lambda disk, rates: None)  # each choice would measure
    endor.save(tmp_path / "x", [{"w": np.ones(100, np.float32)}])
    with endor.open(tmp_path / "x") as checkpoint:
        checkpoint.read_file(next(name for name in checkpoint.manifest.files))
        with checkpoint.open_part(checkpoint.manifest.parts[0]) as read_at:
            read_at(np.empty(8, np.uint8), 0)
        assert not measured  # pieces are read with preadv whatever is chosen
        with ThreadPoolExecutor(4) as pool:
            for read in [pool.submit(checkpoint.read_tensor, "layers.0", "w") for _ in range(4)]:
                assert read.result().sum() == 100
        assert len(measured) == 1
        assert checkpoint.reader_choice.rates == rates
        assert checkpoint.reader == "preadv"
    assert len(measured) == 1


def test_large_ones_are_measured_once(parts, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose_reader(parts)
    assert first.reader in ("preadv", "direct")
    assert set(first.rates) <= {"preadv", "direct"}
    monkeypatch.setattr(reader_choice, "measure", None)
    assert choose_reader(parts).rates == first.rates
    assert os.listdir(memory.parent) == ["readers.json"]


def test_measuring_is_bounded(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_choice, "MEASURED_SECONDS", 10.0)
    many = parts * 100  # 2 GB
    read, opened = [0], reader_choice.open_part

    class Counting:
        def __init__(self, *arguments, **options):
            self.context = opened(*arguments, **options)

        def __enter__(self):
            read_at = self.context.__enter__()
            return lambda into, at: (read.__setitem__(0, read[0] + into.shape[0]), read_at(into, at))

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    monkeypatch.setattr(reader_choice, "open_part", Counting)
    measure(many)
    assert read[0] <= 4 * (64 + 2) * MIB
    monkeypatch.setattr(reader_choice, "MEASURED_SECONDS", 0.0)
    read[0] = 0
    measure(many)
    assert read[0] == 4 * reader_choice.BLOCK_BYTES


def test_every_reader_can_be_measured(parts) -> None:
    clock = time.perf_counter()
    rates = measure(parts, READERS)
    assert time.perf_counter() - clock < 30
    assert set(rates) >= {"preadv", "mmap", "tensorstore"}
    assert all(rate.cold > 0 and rate.warm > 0 for rate in rates.values())


def test_refused_reader_has_no_rate(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT")
    assert set(measure(parts)) == {"preadv"}
    with pytest.raises(UnsupportedError):
        read_part(parts[0][0], np.empty(parts[0][1], np.uint8), reader="direct")


def test_memory_comes_back() -> None:
    assert remembered("here 1") is None
    remember("here 1", {"preadv": BUFFERED, "direct": DIRECT})
    remember("here 2", {"preadv": DIRECT})
    assert remembered("here 1") == {"preadv": BUFFERED, "direct": DIRECT}
    assert remembered("here 2") == {"preadv": DIRECT}
    assert remembered("elsewhere") is None


GOOD = {"preadv": {"cold": 1.0, "warm": 2.0}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "\\xff",
        "[" * 100_000,
        json.dumps({"disk": []}),
        json.dumps({"disk": {}}),
        json.dumps({"disk": {"direct": GOOD["preadv"]}}),
        json.dumps({"disk": GOOD | {"mmap": GOOD["preadv"]}}),
        json.dumps({"disk": {"preadv": {"cold": 1.0}}}),
        json.dumps({"disk": {"preadv": {"cold": -1.0, "warm": 2.0}}}),
        json.dumps({"disk": {"preadv": {"cold": float("nan"), "warm": 2.0}}}),
        json.dumps({"disk": {"preadv": {"cold": "fast", "warm": 2.0}}}),
        json.dumps({"disk": {"preadv": {"cold": 10**400, "warm": 2.0}}}),
    ],
)
def test_damaged_memory_is_none_and_is_mended(memory: Path, text: str) -> None:
    memory.parent.mkdir(parents=True)
    memory.write_text(text)
    assert remembered("disk") is None
    remember("disk", {"preadv": BUFFERED})
    assert remembered("disk") == {"preadv": BUFFERED}


def test_memory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember("disk", {"preadv": BUFFERED})
    assert remembered("disk") is None


def test_where_the_memory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in ("", "relative/path"):  # which the specification says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert reader_choice._memory() == tmp_path / "home/.cache/endor_jax/readers.json"
