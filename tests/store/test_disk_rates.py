"""How fast a disk is read: a bounded measurement, and a memory of it that may be damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from endor_jax.errors import UnsupportedError
from endor_jax.store import disk_rates
from endor_jax.store.direct import READERS, ReadAt, read_part
from endor_jax.store.disk_rates import IN_FLIGHT, Rates, Reading, disk_of, keep, measure, rates_of, remembered
from endor_jax.store.part import write_part
from endor_jax.store.remembered import recall, remember

MIB, GB = 2**20, 1e9
ONE = {reads: Reading(reads * GB, 1e-10) for reads in IN_FLIGHT}
RATES = Rates(cold_by_reads=ONE, warm_by_reads={reads: Reading(9 * GB) for reads in IN_FLIGHT})


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for what is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/endor_jax/disks.json"


@pytest.fixture
def parts(tmp_path: Path) -> list[tuple[Path, int]]:
    data = np.arange(5 * MIB, dtype=np.uint32).view(np.uint8)
    write_part(tmp_path / "part", data)
    return [(tmp_path / "part", data.shape[0])]


def test_every_reader_can_be_measured_with_any_number_of_reads_in_flight(parts) -> None:
    rates = measure(parts, READERS)
    assert set(rates) >= {"preadv", "mmap", "tensorstore"}
    for each in rates.values():
        for by_reads in (each.cold_by_reads, each.warm_by_reads):
            assert tuple(by_reads) == IN_FLIGHT
            assert all(reading.bytes_per_second > 0 for reading in by_reads.values())
            assert all(reading.cpu_seconds_per_byte > 0 for reading in by_reads.values())


def test_the_best_of_a_state() -> None:
    assert RATES.cold == 4 * GB
    assert RATES.warm == 9 * GB


class Counting:
    """`open_part`, counting the bytes that are read."""

    def __init__(self) -> None:
        self.bytes, self._open = 0, disk_rates.open_part

    @contextmanager
    def __call__(self, *arguments: Any, **options: Any) -> Iterator[ReadAt]:
        with self._open(*arguments, **options) as read_at:

            def count(into: np.ndarray, at: int) -> None:
                self.bytes += into.shape[0]
                read_at(into, at)

            yield count


def test_measuring_is_bounded_in_bytes_and_in_time(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    monkeypatch.setattr(disk_rates, "open_part", counting)
    monkeypatch.setattr(disk_rates, "MEASURED_SECONDS", 0.2)
    monkeypatch.setattr(disk_rates, "MEASURED_BYTES", 50 * MIB)
    clock = time.perf_counter()
    measure(parts * 100, ["direct"])  # 2 GB
    assert time.perf_counter() - clock < 30
    assert counting.bytes <= len(IN_FLIGHT) * (50 * MIB + disk_rates.PIECE_BYTES)
    counting.bytes = 0
    monkeypatch.setattr(disk_rates, "MEASURED_SECONDS", 0.0)
    measure(parts * 100, ["preadv"])
    assert (
        counting.bytes == 2 * sum(IN_FLIGHT) * disk_rates.PIECE_BYTES - 2 * 4 * MIB
    )  # the third piece is short


def test_a_refused_reader_has_no_rate_and_that_is_remembered(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT")
    assert set(rates_of(parts, ["preadv", "direct"])) == {"preadv"}
    with pytest.raises(UnsupportedError):
        read_part(parts[0][0], np.empty(parts[0][1], np.uint8), reader="direct")
    monkeypatch.setattr(disk_rates, "measure", None)
    assert set(rates_of(parts, ["preadv", "direct"])) == {"preadv"}


def test_only_what_is_not_known_is_measured(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rates_of(parts, ["preadv"])
    asked: list[Any] = []
    monkeypatch.setattr(
        disk_rates, "measure", lambda _, readers: asked.append(readers) or dict.fromkeys(readers, RATES)
    )
    second = rates_of(parts, ["preadv", "mmap"])
    assert asked == [["mmap"]]
    assert second == first | {"mmap": RATES}


def test_errors_of_reading_come_through(parts) -> None:
    (parts[0][0] / "c/0").write_bytes(b"short")
    with pytest.raises(Exception, match="truncated"):
        measure(parts, ["preadv"])


def test_rates_are_those_of_a_file_system_and_of_parts_of_one_size_class(tmp_path: Path) -> None:
    assert disk_of(tmp_path, [MIB, 3 * MIB]) == disk_of(tmp_path / "..", [3 * MIB])
    assert disk_of(tmp_path, [MIB]) != disk_of(tmp_path, [2 * MIB])
    assert disk_of(tmp_path, [8 * MIB]) == disk_of(tmp_path, [800 * MIB])  # read in pieces
    assert disk_of(Path("/proc"), [MIB]) != disk_of(tmp_path, [MIB])


def test_rates_come_back_by_disk() -> None:
    assert remembered("here 1") == {}
    keep("here 1", {"preadv": RATES, "direct": None})
    keep("here 2", {"preadv": RATES})
    assert remembered("here 1") == {"preadv": RATES, "direct": None}
    assert remembered("here 2") == {"preadv": RATES}
    keep("here 2", {"mmap": RATES})
    assert remembered("here 2") == {"preadv": RATES, "mmap": RATES}


def entry(**changed: Any) -> dict[str, Any]:
    held = {str(reads): [1.0, 0.0] for reads in IN_FLIGHT}
    return {"preadv": {"cold": held, "warm": held | {key.strip("r"): it for key, it in changed.items()}}}


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        "text",
        {"unheard-of": entry()["preadv"]},
        {"preadv": []},
        {"preadv": {"cold": {}}},
        {"preadv": {"cold": 1.0, "warm": 2.0}},  # what version 0.1 kept
        {"preadv": {"cold": {}, "warm": {}}},
        entry(r1=[-1.0, 0.0]),
        entry(r1=[0.0, 0.0]),
        entry(r1=[1.0, -1.0]),
        entry(r1=[1.0]),
        entry(r1=["fast", 0.0]),
        entry(r1=[float("nan"), 0.0]),
        entry(r1=[1.0, float("inf")]),
        entry(r1=[10**400, 0.0]),
        entry(r3=[1.0, 0.0]),
        entry(rx=[1.0, 0.0]),
    ],
)
def test_damaged_rates_are_none_and_are_mended(value: Any) -> None:
    remember("disks.json", {"disk": value})
    assert remembered("disk") == {}
    keep("disk", {"preadv": RATES})
    assert remembered("disk") == {"preadv": RATES}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff", "[" * 100_000])
def test_a_damaged_file_is_none_and_is_mended(memory: Path, text: str) -> None:
    memory.parent.mkdir(parents=True)
    memory.write_text(text, encoding="latin1")
    assert recall("disks.json", "a") is None
    remember("disks.json", {"a": 1})
    remember("disks.json", {"b": 2})
    assert (recall("disks.json", "a"), recall("disks.json", "b")) == (1, 2)
    assert os.listdir(memory.parent) == ["disks.json"]


def test_memory_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember("disks.json", {"a": 1})
    assert recall("disks.json", "a") is None


def test_where_the_memory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number, unset in enumerate(("", "relative/path")):  # which the specification says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        remember("disks.json", {str(number): 1})
        assert f'"{number}": 1' in (tmp_path / "home/.cache/endor_jax/disks.json").read_text()
