"""Sizes as people write them, and the budgets that follow where none is given."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.streaming import budget
from endor_jax.streaming.sizes import format_size, parse_size

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * GIB),
        ("8GB", 8 * 10**9),
        ("300 MiB", 300 * 2**20),
        (" 1.5kib ", 1536),
        ("0.1GB", 10**8),
        ("2TB", 2 * 10**12),
        ("1TiB", 2**40),
        ("4096", 4096),
        ("7B", 7),
        ("9007199254740993", 9007199254740993),
        (0, 0),
        (123, 123),
    ],
)
def test_parse(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "-1GiB", "8 elephants", "8G", "8iB", "1e3", "1.GB", "8GiBs", -1]
)
def test_refused(text: str | int) -> None:
    with pytest.raises(
        InvalidInputError, match=r"size: got .*expected a number with B, KB.*write for example"
    ):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (300 * 2**20, "300 MiB"),
        (GIB, "1 GiB"),
    ],
)
def test_format(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**50))
def test_formatted_sizes_parse(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=1e-3)


class TestBudgets:
    @pytest.fixture(autouse=True)
    def free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budget, "free_host_bytes", lambda: 100 * GIB)
        monkeypatch.setattr(budget, "free_device_bytes", lambda device: 10 * GIB)

    def of(self, platform: str, device: Any = None, host: Any = None) -> tuple[float, float]:
        fake = Mock(spec=jax.Device, platform=platform)
        device_bytes, host_bytes = budget.budgets(fake, device, host)
        return device_bytes / GIB, host_bytes / GIB

    def test_asked_for(self) -> None:
        assert self.of("cpu", "8GiB", 3 * GIB) == (8, 3)

    def test_gpu(self) -> None:
        assert self.of("gpu") == pytest.approx((9, 90))

    def test_cpu_shares_one_memory(self) -> None:
        assert self.of("cpu") == pytest.approx((72, 18))
        assert self.of("cpu", "20GiB") == pytest.approx((20, 70))
        assert self.of("cpu", host="20GiB") == pytest.approx((70, 20))
        assert self.of("cpu", "1TiB") == pytest.approx((1024, 9))


def test_free_memory_of_this_machine() -> None:
    assert 2**20 < budget.free_host_bytes() < 2**50


def test_device_that_does_not_tell_its_memory() -> None:
    with pytest.raises(InvalidInputError, match=r"give a budget: device_memory"):
        budget.free_device_bytes(jax.local_devices()[0])


def test_default_device_follows_jax() -> None:
    other = jax.local_devices()[1]
    assert budget.default_device() == jax.local_devices()[0]
    with jax.default_device(other):
        assert budget.default_device() == other


@pytest.mark.parametrize(("unclaimed", "free"), [(30, 60), (1000, 90), (None, 90)])
def test_what_other_processes_hold_is_not_free(
    monkeypatch: pytest.MonkeyPatch, unclaimed: int | None, free: int
) -> None:
    def runtime() -> object:
        if unclaimed is None:
            raise UnsupportedError("CUDA", got="none", expected="one", fix="install it")
        return object()

    monkeypatch.setattr(budget, "find_runtime", runtime)
    monkeypatch.setattr(budget, "unclaimed_bytes", lambda _, ordinal: unclaimed if ordinal == 1 else 0)
    device = Mock(spec=jax.Device, platform="gpu", local_hardware_id=1)
    device.memory_stats.return_value = {"bytes_limit": 100, "bytes_in_use": 10, "pool_bytes": 40}
    assert budget.free_device_bytes(device) == free
