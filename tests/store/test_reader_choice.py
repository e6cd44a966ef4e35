"""Which reader is chosen, and how many of its reads are in flight: a pure decision on measured rates."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.store import disk_rates, reader_choice
from endor_jax.store.disk_rates import IN_FLIGHT, Rates, Reading
from endor_jax.store.part import write_part
from endor_jax.store.reader_choice import choose, choose_reader

MIB, GB = 2**20, 1e9


def flat(*, cold: float, warm: float) -> Rates:
    """Rates that do not depend on the number of reads in flight."""
    return Rates(*({reads: Reading(rate) for reads in IN_FLIGHT} for rate in (cold, warm)))


BUFFERED, DIRECT = flat(cold=2 * GB, warm=12 * GB), flat(cold=3 * GB, warm=3 * GB)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty place for what is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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
        rates = {"preadv": flat(cold=GB, warm=9 * GB), "direct": flat(cold=cold * GB, warm=cold * GB)}
        assert choose(rates, read_bytes=101, cache_bytes=100).reader == expected


def test_disk_faster_than_memory() -> None:
    rates = {"preadv": BUFFERED, "direct": flat(cold=20 * GB, warm=20 * GB)}
    assert choose(rates, read_bytes=1, cache_bytes=100).reader == "direct"


def test_without_o_direct_there_is_one_left() -> None:
    choice = choose({"preadv": BUFFERED}, read_bytes=10**12, cache_bytes=0)
    assert (choice.reader, choice.why) == ("preadv", "the file system has no O_DIRECT")


@pytest.mark.parametrize("reader", ["mmap", "tensorstore"])
def test_these_are_never_chosen(reader: str) -> None:
    fastest = {"preadv": BUFFERED, "direct": DIRECT, reader: flat(cold=99 * GB, warm=99 * GB)}
    for cache in (0, 10**12):
        assert choose(fastest, read_bytes=10**9, cache_bytes=cache).reader in ("preadv", "direct")


def test_small_checkpoints_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_choice, "rates_of", None)
    endor.save(tmp_path / "x", [{"w": np.ones(100, np.float32)}])
    with endor.open(tmp_path / "x") as checkpoint:
        assert checkpoint.reader == "preadv"
        assert "too few for it to matter" in checkpoint.reader_choice.why


def test_it_is_chosen_once_at_the_first_read_of_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_choice, "SMALL_BYTES", 0)
    rates, measured = {"preadv": flat(cold=1.0, warm=1.0)}, []

    def slowly(parts: object, readers: object) -> dict[str, Rates]:
        measured.append(parts)
        time.sleep(0.05)  # the other threads ask meanwhile
        return rates

    monkeypatch.setattr(reader_choice, "rates_of", slowly)  # each choice would measure
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


def test_large_ones_are_measured_once(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose_reader(parts)
    assert first.reader in ("preadv", "direct")
    assert set(first.rates) <= {"preadv", "direct"}
    assert first.reads in IN_FLIGHT
    assert tuple(first.expected) == IN_FLIGHT
    monkeypatch.setattr(disk_rates, "measure", None)
    assert choose_reader(parts).rates == first.rates


@pytest.mark.parametrize(
    ("rates", "reads"),
    [((3.0, 3.0, 3.0), 1), ((1.0, 3.0, 3.05), 2), ((1.0, 2.0, 3.0), 4), ((2.0, 1.0, 2.0), 1)],
)
def test_as_few_reads_are_in_flight_as_are_about_as_fast_as_any(rates: tuple[float, ...], reads: int) -> None:
    measured = {n: Reading(rate) for n, rate in zip(IN_FLIGHT, rates, strict=True)}
    flat_one = {n: Reading(1.0) for n in IN_FLIGHT}
    cold = choose({"preadv": Rates(measured, flat_one)}, read_bytes=2, cache_bytes=1)
    assert (cold.reads, cold.cached, cold.expected) == (reads, False, measured)
    warm = choose({"preadv": Rates(flat_one, measured)}, read_bytes=1, cache_bytes=1)
    assert (warm.reads, warm.cached, warm.expected) == (reads, True, measured)


def test_direct_reads_come_from_the_disk_even_where_the_page_cache_has_room() -> None:
    choice = choose({"preadv": flat(cold=1.0, warm=1.0), "direct": DIRECT}, read_bytes=1, cache_bytes=1)
    assert (choice.reader, choice.cached) == ("direct", False)


def test_of_a_reader_asked_for_by_name_the_reads_in_flight_are_chosen(parts) -> None:
    for reader, cached in (("preadv", True), ("mmap", True)):
        choice = choose_reader(parts, reader=reader)
        assert (choice.reader, choice.why, choice.cached) == (reader, "it was asked for", cached)
        assert choice.expected == choice.rates[reader].warm_by_reads


def test_small_checkpoints_take_the_reader_asked_for_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_choice, "rates_of", None)
    choice = choose_reader([(Path("nowhere"), 100)], reader="direct")
    assert (choice.reader, choice.why, choice.expected) == ("direct", "it was asked for", {})
