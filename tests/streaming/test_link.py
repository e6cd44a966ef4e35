"""Which way is taken: a pure decision, a bounded measurement, and a memory of it that may be damaged."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import DoesNotFitError, OptionError, UnsupportedError
from endor_jax.memory import aligned_buffer
from endor_jax.streaming import cuda_runtime, link, link_rates
from endor_jax.streaming.link import SHARED, WORTH, choose, choose_link
from endor_jax.streaming.link_rates import Measured, Rates, copy_rate, measure_link
from endor_jax.streaming.transfer import WAYS
from tests.streaming.fake_cudart import FakeCuda, compile_fake_cudart

GB, GIB = 1e9, 2**30
# As seen on GPUs with PCIe 5: one thread's copy, the link, and a new array for every transfer.
OLD_JAXLIB = {"pageable": Rates(9 * GB, 9 * GB), "registered": Rates(9 * GB, 9 * GB)}
NEW_JAXLIB = {"pageable": Rates(9 * GB, 9 * GB), "registered": Rates(54 * GB, 54 * GB)}
PINNED_HOST = {"pinned_host": Rates(7 * GB, 55 * GB)}


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for what is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/endor_jax/links.json"


@pytest.fixture
def device() -> jax.Device:
    return jax.local_devices()[0]


@pytest.fixture
def own_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The CPU is treated as a device with memory of its own, and measured on little; without CUDA."""
    monkeypatch.setattr(link, "shares_memory", lambda device: False)
    monkeypatch.setattr(link_rates, "PART_BYTES", 2**16)
    monkeypatch.setattr(cuda_runtime, "SONAMES", (str(tmp_path / "libcudart.so"),))
    monkeypatch.setattr(cuda_runtime, "runtime_paths", lambda: cuda_runtime.SONAMES)


def test_pinned_where_jaxlib_sees_it() -> None:
    chosen = choose(Measured(NEW_JAXLIB | PINNED_HOST))
    assert (chosen.ring, chosen.kept) == ("registered", "registered")  # pinned_host is hardly faster
    assert chosen.why.startswith(
        "ring: registered is 6.0 times as fast as pageable; host tier: registered is"
    )
    assert (chosen.ring_bytes_per_second, chosen.kept_bytes_per_second) == (54 * GB, 54 * GB)


def test_pinned_host_for_the_host_tier_where_jaxlib_does_not_see_it() -> None:
    chosen = choose(Measured(OLD_JAXLIB | PINNED_HOST), kept_bytes=64 * GIB, pool_bytes=64 * GIB)
    assert (chosen.ring, chosen.kept) == ("pageable", "pinned_host")
    assert chosen.why == (
        "ring: no way is faster than pageable; host tier: pinned_host is 6.1 times as fast as pageable"
    )
    assert (chosen.ring_bytes_per_second, chosen.kept_bytes_per_second) == (9 * GB, 55 * GB)


def test_a_host_tier_larger_than_the_pool_goes_elsewhere_and_says_so() -> None:
    for rates, kept in ((OLD_JAXLIB, "pageable"), (NEW_JAXLIB, "registered")):
        chosen = choose(Measured(rates | PINNED_HOST), kept_bytes=64 * GIB + 1, pool_bytes=64 * GIB)
        assert chosen.kept == kept
        assert chosen.why.endswith(
            "(its 68,719,476,737 bytes exceed JAX's pool of pinned host memory, 68,719,476,736)"
        )


rates = st.floats(1e6, 1e12)


@given(st.fixed_dictionaries({way: st.builds(Rates, rates, rates) for way in WAYS}))
def test_no_way_is_much_faster_than_the_chosen_one(measured: dict) -> None:
    chosen = choose(Measured(measured))
    assert measured[chosen.ring].ring >= WORTH * max(each.ring for each in measured.values())
    assert measured[chosen.kept].kept >= WORTH * max(each.kept for each in measured.values())


@pytest.mark.parametrize("way", WAYS)
def test_a_named_way_is_taken_however_slow(way: str) -> None:
    chosen = choose(Measured(NEW_JAXLIB | PINNED_HOST), way=way, kept_bytes=1, pool_bytes=1)
    assert (chosen.ring, chosen.kept, chosen.why) == (way, way, "asked for by name")


def test_a_named_way_never_becomes_another() -> None:
    refused = Measured(OLD_JAXLIB, {"pinned_host": "device x: got memories device"})
    with pytest.raises(
        UnsupportedError,
        match=r"got 'pinned_host', and device x: got memories device, expected pageable or registered",
    ):
        choose(refused, way="pinned_host")
    with pytest.raises(UnsupportedError, match="got 'shared', and device and host are two memories"):
        choose(refused, way="shared")
    with pytest.raises(OptionError, match=r"way to the device: got 'pined', expected pageable or registered"):
        choose(refused, way="pined")
    with pytest.raises(DoesNotFitError, match="pinned_host"):
        choose(Measured(PINNED_HOST), way="pinned_host", kept_bytes=2, pool_bytes=1)


def test_on_cpu_nothing_is_moved_nor_measured(device: jax.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "link_rates", None)
    assert choose_link(device) == choose_link(device, way="shared") == SHARED
    assert (SHARED.ring_bytes_per_second, SHARED.kept_bytes_per_second) == (None, None)
    with pytest.raises(
        UnsupportedError, match=r"'registered', and device and host are one memory, expected sh"
    ):
        choose_link(device, way="registered")
    with pytest.raises(OptionError, match=r"got 'fast', expected shared; leave it out"):
        choose_link(device, way="fast")


@pytest.mark.usefixtures("own_memory")
def test_measuring_gives_positive_rates_and_reasons(device: jax.Device) -> None:
    measured = measure_link(device, part_bytes=2**16)
    assert measured.rates.keys() == {"pageable", "pinned_host"}
    assert all(each.ring > 0 and each.kept > 0 for each in measured.rates.values())
    assert measured.refused["registered"].startswith("pinned memory: no CUDA runtime (")
    assert measured.limit is None


@pytest.mark.usefixtures("own_memory")
def test_a_link_is_measured_once(device: jax.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose_link(device)
    monkeypatch.setattr(link_rates, "measure_link", None)
    assert choose_link(device) == first
    assert choose_link(device, way="pinned_host").measured == first.measured


@pytest.mark.usefixtures("own_memory")
def test_anew_measures_whatever_is_remembered(device: jax.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_link(device)
    monkeypatch.setattr(link_rates, "measure_link", lambda device, part_bytes: Measured(NEW_JAXLIB))
    assert choose_link(device, anew=True).ring == "registered"


def damages(held: dict) -> dict[str, object]:
    entry = next(iter(held.values()))
    return {
        "no JSON": "{",
        "no entry": {},
        "an entry of another kind": dict.fromkeys(held, 3),
        "a rate too few": dict.fromkeys(held, entry | {"rates": {"pageable": [1.0]}}),
        "a way too few": dict.fromkeys(held, entry | {"rates": {"pageable": [1.0, 1.0]}}),
        "a rate of nothing": dict.fromkeys(held, entry | {"rates": entry["rates"] | {"pageable": [0, 1]}}),
        "an endless rate": dict.fromkeys(held, entry | {"limit": float("inf")}),
        "another machine": {f"not {key}": value for key, value in held.items()},
    }


@pytest.mark.usefixtures("own_memory")
def test_a_damaged_memory_means_measuring_again(device: jax.Device, memory: Path) -> None:
    choose_link(device)
    held = json.loads(memory.read_text())
    for name, damaged in damages(held).items():
        memory.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
        measured = choose_link(device).measured
        assert measured.rates.keys() == {"pageable", "pinned_host"}, name
        assert all(each.ring > 0 and each.kept > 0 for each in measured.rates.values()), name


def test_with_cuda_all_ways_and_the_limit_are_measured(
    device: jax.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compile_fake_cudart(tmp_path)
    cuda = FakeCuda(path)
    monkeypatch.setattr(cuda_runtime, "runtime_paths", lambda: (str(path),))
    measured = measure_link(device, part_bytes=2**16)
    assert measured.rates.keys() == set(WAYS)
    assert not measured.refused
    assert measured.limit
    assert len(cuda.of("cudaHostRegister")) == len(cuda.of("cudaHostUnregister"))
    assert len(cuda.of("cudaMalloc")) == len(cuda.of("cudaFree")) == 1
    cuda.fail("cudaMalloc")  # no room outside of JAX's pool
    assert measure_link(device, part_bytes=2**16).limit is None
    with pytest.raises(UnsupportedError, match=r"cudaMalloc of .*: got cudaErrorMemoryAllocation"):
        copy_rate(device, aligned_buffer(4096))
    assert len(cuda.of("cudaHostRegister")) == len(cuda.of("cudaHostUnregister"))
