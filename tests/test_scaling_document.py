"""docs/scaling.md: its Python runs, its figures are the record's and the model's, so is its picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import endor_jax as endor
from docs.draw_scaling import (
    DEVICES,
    H200,
    IN_HOST_MEMORY,
    LOADS,
    PICTURE,
    RECORD,
    best,
    draw,
    largest_batch,
    measured_table,
    table,
    tensor_parallel,
)
from endor_jax.generate.gathers import layer_gathers
from endor_jax.generate.scaling import Estimate, Spread, cache_bytes, estimate
from tests.tiny_models import write_tiny

TEXT = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny(tmp_path / "source", tokenizer=True)
    endor.convert(source, tmp_path / "smol.endor", shards=8)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(block, "scaling.md", "exec"), {})


def test_its_tables_and_its_picture_are_those_of_the_script() -> None:
    assert table() in TEXT, "run: python docs/draw_scaling.py"
    assert measured_table() in TEXT, "run: python docs/draw_scaling.py"
    assert draw() == PICTURE.read_text(), "run: python docs/draw_scaling.py"
    assert f"]({PICTURE.name})" in TEXT
    assert f"](benchmarks/{RECORD.name})" in TEXT


def test_its_assumed_rates_are_those_of_the_curves() -> None:
    for words in (
        f"{H200.link_bytes_per_second / 1e9:g} GB/s each",
        f"| {H200.disk_bytes_per_second / 1e9:g} GB/s |",
        f"| {H200.store_bytes_per_second / 1e9:g} GB/s |",
        f"{H200.weight_bytes_per_second / 1e12:g} TB/s of stored bytes",
        f"{H200.step_seconds * 1e6:g} µs | guessed",
        f"once a pass and micro-batch {H200.ends_seconds * 1e3:g} ms",
        f"{H200.inside.latency_seconds * 1e6:g} µs, {H200.inside.bytes_per_second / 1e9:g} GB/s",
        f"{H200.between.latency_seconds * 1e6:g} µs, {H200.between.bytes_per_second / 1e9:g} GB/s",
        f"| {H200.device_memory_bytes / 2**30:g} GiB |",
        f"{LOADS['Llama-2-70B'].stored_bytes / 1e9:.1f} GB, context 2048",
    ):
        assert words in TEXT, words


def test_what_it_says_of_the_record_is_there() -> None:
    rows = json.loads(RECORD.read_text())["rows"]
    slowed = {row["devices"]: row for row in rows if row["rate"] is not None}
    gain = slowed[8]["tokens_per_second"] / slowed[1]["tokens_per_second"]
    assert f"give {gain:.1f} times the tokens of one" in TEXT
    worst = max(
        abs(said / row["tokens_per_second"] - 1)
        for row in slowed.values()
        for said in (row["predicted_tokens_per_second"], row["closed_form"]["tokens_per_second"])
    )
    (said,) = re.findall(r"agree with that within ([\d.]+) %", TEXT)
    assert 100 * worst <= float(said) < 100 * worst + 1


def test_what_it_says_follows_is_what_the_model_says() -> None:
    load = LOADS["Llama-2-70B"]

    def one(devices: int) -> Estimate:
        return estimate(load, tensor_parallel(devices), IN_HOST_MEMORY)

    assert one(8).transferred_bytes == 0 < one(4).transferred_bytes
    assert "from 1 to 8 devices it is 60 times" in TEXT
    assert one(8).tokens_per_second / one(1).tokens_per_second == pytest.approx(60, abs=3)
    assert len(layer_gathers(load.config, 8)) * load.config.layers == 320
    assert "320 gathers a pass" in TEXT
    assert one(8).binding == "compute"
    assert {one(n).binding for n in DEVICES if n > 8} == {"gather"}
    for devices, words, gain in (
        (16, "twice as many tokens at 16 devices", 2),
        (64, "twelve times at 64", 12),
    ):
        alone = largest_batch(load, IN_HOST_MEMORY, devices, 1)
        assert alone is not None
        assert words in TEXT
        found = best(load, IN_HOST_MEMORY, devices)[1].tokens_per_second / alone.tokens_per_second
        assert found == pytest.approx(gain, rel=0.25)
    caches = [cache_bytes(each, Spread(), 1) for each in LOADS.values()]
    assert "caches seven times as large" in TEXT
    assert caches[1] / caches[0] == pytest.approx(7, abs=0.5)
