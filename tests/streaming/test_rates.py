"""Rates of this machine: measured once, positive, remembered for this machine only; curves of products."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.streaming import measure, rates
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.measure import SHAPES, copy_rate, expand_rate, matrix_copies, product_curve
from endor_jax.streaming.rates import Curve, Product, figures, remembered

PRODUCT = Product("packed:2", "bfloat16", "bfloat16", "float32", rows=2)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for what is measured, and no time for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "CACHES", 0)
    monkeypatch.setattr(measure, "SHAPES", ((16, 16), (32, 64), (64, 64)))
    return tmp_path / "endor_jax/rates.json"


def test_a_curve_goes_through_three_sizes_and_is_measured_once(memory, monkeypatch) -> None:
    device = default_device()
    curve = product_curve(PRODUCT, device)
    assert [weights for weights, _ in curve.points] == [256, 2048, 4096]
    assert all(seconds > 0 for _, seconds in curve.points)
    monkeypatch.setattr(measure, "matrix_copies", None)
    assert product_curve(PRODUCT, device) == curve
    (key,) = json.loads(memory.read_text())
    assert key.endswith("linear packed:2 bfloat16, 2 x bfloat16, to float32")


def test_what_was_kept_by_somebody_else_is_measured_again(memory: Path) -> None:
    device = default_device()
    curve = product_curve(PRODUCT, device)
    kept = json.loads(memory.read_text())
    memory.write_text(json.dumps({key: [1.0] for key in kept}))
    assert len(product_curve(PRODUCT, device).points) == len(curve.points)
    assert len(next(iter(json.loads(memory.read_text()).values()))) == 3


def test_expansion_and_copies_have_rates() -> None:
    device = default_device()
    assert expand_rate("raw", "float32", device) > 0
    assert copy_rate(device) > 0


def test_copies_of_a_matrix_are_more_than_a_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CACHES", 2)
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda: 2**20)
    matrices = matrix_copies((512, 512), "packed:2", "bfloat16", default_device())
    words = [part for matrix in matrices for part in matrix.parts if isinstance(part, jax.Array)]
    assert sum(each.nbytes for each in words) >= 2 * 2**20
    assert len({each.unsafe_buffer_pointer() for each in words}) == len(matrices)


def test_matrices_are_half_pruned_where_the_codec_has_a_bitmap() -> None:
    for codec, low, high in (("packed:2", 0.49, 0.51), ("dense-packed:3", 0.0, 0.01)):
        matrix = matrix_copies((64, 64), codec, "bfloat16", default_device())[0]
        dense = np.asarray(measure.expand(matrix)).astype(np.float32)
        assert low <= (dense == 0).mean() <= high


def test_rates_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    device, calls = default_device(), []

    def measured() -> list[float]:
        calls.append(1)
        return [float(len(calls))]

    assert remembered(device, "x", measured) == (1.0,)
    assert remembered(device, "x", measured) == (1.0,)
    assert remembered(device, "y", measured) == (2.0,)
    assert remembered(device, "x", measured, anew=True) == (3.0,)
    assert remembered(device, "x", measured) == (3.0,)
    monkeypatch.setattr(rates, "usable_cpus", lambda: range(1000))
    assert remembered(device, "x", measured) == (4.0,)


@pytest.mark.parametrize(
    "kept", [None, 1.0, {}, [], ["a"], [0.0], [-1.0], [float("nan")], [float("inf")], [[1.0]], [10**400]]
)
def test_figures_that_no_measurement_gives_are_none(kept: object) -> None:
    assert figures(kept) is None
    assert figures([1, 2.5]) == (1.0, 2.5)


def test_a_curve_is_straight_between_its_points_and_beyond() -> None:
    curve = Curve(((10, 1.0), (20, 2.0), (40, 6.0)))
    assert [curve.seconds(n) for n in (10, 15, 20, 30, 40, 60)] == [0.0, 0.5, 1.0, 3.0, 5.0, 9.0]
    assert curve.seconds(1) == 0.0  # a tiny one costs what any operation does
    assert curve.per_second == pytest.approx(5.0)


@given(st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3), st.integers(1, 10**10))
def test_seconds_of_a_curve_are_never_negative(seconds: list[float], weights: int) -> None:
    curve = Curve(tuple(zip((10, 1000, 100_000), seconds, strict=True)))
    assert curve.seconds(weights) >= 0
    assert curve.per_second > 0


def test_sizes_of_a_curve_rise() -> None:
    sizes = [rows * columns for rows, columns in SHAPES]
    assert sizes == sorted(set(sizes))
