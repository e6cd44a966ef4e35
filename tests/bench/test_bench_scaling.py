"""`endor bench scaling`: figures from samples, a whole run over one and two devices, what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from endor_jax import models
from endor_jax.bench.environment import Environment
from endor_jax.bench.plot_scaling import plot_scaling
from endor_jax.bench.scaling import ScalingRecord, ScalingRow, ScalingSettings
from endor_jax.bench.scaling_turn import Row, Turn
from endor_jax.bench.stream_passes import Passes
from endor_jax.cli.bench.scaling import scaling_table
from endor_jax.cli.main import app
from endor_jax.errors import OptionError
from endor_jax.generate.scaling import Exchange, Load, Machine, Spread, cache_bytes
from endor_jax.streaming.prediction import Prediction
from endor_jax.streaming.timeline import Stages
from tests.tiny_models import LLAMA

LOAD = Load(models.from_hf(LLAMA), layer_bytes=250.0, head_bytes=0.0, context=1)
INFINITE = float("inf")


def turn(devices: int, *seconds: float, predicted: float) -> Turn:
    machine = Machine(
        link_bytes_per_second=None,
        disk_bytes_per_second=1000.0 * devices,
        store_bytes_per_second=INFINITE,
        weight_bytes_per_second=INFINITE,
        step_seconds=0.0,
        ends_seconds=0.0,
        memory_bytes_per_second=INFINITE,
        device_memory_bytes=float(
            cache_bytes(LOAD, Spread(tensor=devices, devices_per_host=devices), sequences=1)
        ),
        host_memory_bytes=0.0,
        inside=Exchange(0.0, INFINITE),
        between=Exchange(0.0, INFINITE),
    )
    passes = Passes(seconds, (0.0,) * len(seconds))
    prediction = Prediction(1, predicted, 0.0, 0.0, 0.0, predicted, "read", False)
    return Turn(prediction, passes, Stages(len(seconds)), 1000.0, machine, LOAD, 0.5)


def record() -> ScalingRecord:
    rows = [
        ScalingRow(
            Row(devices, rate), 1, (turn(devices, 1 / devices, 2 / devices, predicted=1.25 / devices),) * 2
        )
        for rate in (1000.0, None)
        for devices in (1, 2)
    ]
    settings = ScalingSettings(devices=(1, 2), rate=1000.0)
    return ScalingRecord(settings, "now", tuple(rows), Environment(None, {}, {}))


def test_figures_are_those_of_all_samples() -> None:
    one, two = record().on(slowed=True)
    assert (one.row.store, two.row.store) == ("0.001 MB/s a device",) * 2
    assert one.passes.seconds == (1.0, 2.0) * 2
    assert (one.tokens_per_second, two.tokens_per_second) == (pytest.approx(2 / 3), pytest.approx(4 / 3))
    assert (one.predicted, two.predicted) == (0.8, 1.6)
    assert (one.read_bytes_per_device, two.read_bytes_per_device) == (1000.0, 500.0)
    # 1000 bytes, 1000 bytes per second and device.
    assert [row.closed_form and row.closed_form.tokens_per_second for row in (one, two)] == [1.0, 2.0]
    values = record().to_json()
    assert values["rows"][0]["load_averages"] == [0.5, 0.5]
    assert scaling_table(record()).row_count == 4


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_a_picture_is_drawn(tmp_path: Path) -> None:
    plot_scaling(record(), tmp_path / "scaling.svg")
    assert (tmp_path / "scaling.svg").read_bytes().startswith(b"<?xml")


def test_devices_that_do_not_divide_the_largest_are_refused() -> None:
    for devices in ((), (0, 1), (2, 3)):
        with pytest.raises(OptionError, match="numbers from 1 on that divide the largest"):
            ScalingSettings(devices=devices)


def test_a_run_predicts_and_measures_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options: dict[str, Any] = {
        "--model": "llama-10m",
        "--layers": 3,
        "--devices": 2,
        "--rate": "20MB",
        "--passes": 2,
        "--rounds": 1,
        "--work-dir": tmp_path,
        "--record": tmp_path / "record.json",
    }
    words = [str(word) for option in options.items() for word in option]
    done = CliRunner().invoke(app, ["bench", "scaling", *words])
    assert done.exit_code == 0, done.output
    slowed, plain = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert (slowed["devices"], slowed["store"], plain["store"]) == (2, "20 MB/s a device", "page cache")
    assert len(slowed["passes"]["seconds"]) == len(plain["passes"]["seconds"]) == 2
    # A disk of 20 MB/s for each of two devices, so no pass is over before its bytes can have come.
    read = slowed["read_bytes_per_device"]
    assert read == plain["read_bytes_per_device"]
    assert slowed["predicted"]["read_seconds"] == pytest.approx(read / 20e6)
    assert slowed["closed_form"]["read_seconds"] == pytest.approx(read / 20e6)
    assert min(slowed["passes"]["seconds"]) > 0.5 * read / 20e6
    assert slowed["predicted"]["gather_seconds"] > 0
    assert slowed["closed_form"]["gather_seconds"] == pytest.approx(slowed["predicted"]["gather_seconds"])
    assert slowed["closed_form"]["compute_seconds"] == pytest.approx(
        slowed["predicted"]["compute_seconds"], rel=0.2
    )
    assert plain["predicted"] is None  # too small to be measured
    assert plain["stages"][0]["passes"] == 3
