"""What a model's passes cost by measured rates: measured once, never on the model, for one and many rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import endor_jax as endor
from endor_jax import models
from endor_jax.generate import costs as costs_module
from endor_jax.generate import step_rates as step_rates_module
from endor_jax.generate.costs import costs_of
from endor_jax.generate.placement import Geometry, geometry
from endor_jax.generate.step_rates import step_rates
from endor_jax.store import disk_rates, reader_choice
from endor_jax.store.disk_rates import IN_FLIGHT, Rates, Reading
from endor_jax.store.reader_choice import Choice
from endor_jax.streaming import measure
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.devices import Devices, first_devices, one_device, over_mesh
from endor_jax.streaming.gather_rates import Gathering
from endor_jax.streaming.rates import Curve
from tests.generate.budgets import smallest
from tests.tiny_models import LLAMA, OPT, write_tiny

READING = {reads: Reading(1e9) for reads in IN_FLIGHT}
CHOICE = Choice("preadv", "for this test", {"preadv": Rates(READING, READING)}, reads=1)
LAYERS = 10
FLAT = Curve(((1, 1e-9), (2, 2e-9)))
"""A nanosecond for each weight but the first."""


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for what is measured, and no time for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(disk_rates, "MEASURED_SECONDS", 0.001)
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "SHAPES", ((16, 16), (32, 64), (64, 64)))
    monkeypatch.setattr(step_rates_module, "REPEATS", 1)
    monkeypatch.setattr(step_rates_module, "STEPS", 2)
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda: 1)
    return tmp_path / "cache/endor_jax/rates.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("costs")
    write_tiny(directory / "source", LLAMA | {"num_hidden_layers": LAYERS})
    endor.convert(directory / "source", directory / "model.endor", prune="magnitude", sparsity=0.5)
    return directory / "model.endor"


def geometry_of(config: dict[str, Any], sequences: int = 1) -> Geometry:
    return replace(geometry(models.from_hf(config), "bfloat16", 64, sequences), cache_tier="device")


@pytest.mark.parametrize(("config", "rows"), [(LLAMA, 3), (OPT, 1)])
def test_steps_of_a_family_are_measured_once_and_take_time(
    config: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(config: dict[str, Any] = config) -> step_rates_module.StepRates:
        return step_rates(
            geometry_of(config),
            rows=rows,
            curve=lambda _: FLAT,
            device=default_device(),
            codec="packed:2",
            dtype="bfloat16",
        )

    first = measured()
    assert min(first.block_seconds, first.head_seconds, first.ends_seconds) > 0
    again = step_rates_module.StepRates(1.0, 2.0, 3.0)
    monkeypatch.setattr(step_rates_module, "_measure", lambda *_, **__: again)
    assert measured() == first
    other = {"enable_bias": False} if config is OPT else {"attention_bias": True}
    assert measured(config | other) == again


def test_a_small_opt_has_the_bytes_of_the_real_cache() -> None:
    config = OPT | {"hidden_size": 96, "word_embed_proj_dim": 96, "num_attention_heads": 12}
    shape = geometry_of(config)
    decoder, capacity = step_rates_module._small(shape)
    assert decoder.config.head_dim == shape.config.head_dim
    assert capacity * decoder.config.kv_heads == shape.capacity * shape.config.kv_heads


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that cost a nanosecond per weight, steps of 1, 2 and 3 seconds."""
    monkeypatch.setattr(costs_module, "product_curve", lambda product, device: FLAT)
    rates = step_rates_module.StepRates(1.0, 2.0, 3.0)
    monkeypatch.setattr(costs_module, "step_rates", lambda *_, **__: rates)


def test_a_record_costs_its_step_and_its_products(tiny: Path, flat: None) -> None:
    with endor.open(tiny) as opened:
        shape = geometry_of(LLAMA | {"num_hidden_layers": LAYERS})
        costs = costs_of(opened.manifest, shape, choice=CHOICE, devices=one_device(default_device()))
    assert costs is not None
    assert (costs.ends_seconds, costs.sequences, costs.moved_bytes) == (3.0, 1, 0)
    assert (costs.readings, costs.reads, costs.cached) == (READING, 1, False)
    assert (costs.ring_bytes_per_second, costs.kept_bytes_per_second) == (None, None)
    *layers, head = costs.record_seconds
    # Queries, outputs, MLP; keys and values, which are so small that they are stored dense.
    weights = 2 * 64 * 64 + 3 * 96 * 64 + 2 * 32 * 64
    assert layers == [pytest.approx(1 + 1e-9 * weights, abs=2e-8)] * LAYERS
    assert head == pytest.approx(2 + 1e-9 * 320 * 64, abs=1e-8)


def test_matrices_that_are_stored_as_their_own_bytes_cost_something_too(
    tmp_path: Path, flat: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no matrix of a layer has a codec: `--values raw`, and nothing pruned."""
    write_tiny(tmp_path / "source", LLAMA)
    endor.convert(tmp_path / "source", tmp_path / "model.endor", values="raw")
    asked = []
    monkeypatch.setattr(costs_module, "product_curve", lambda product, device: asked.append(product) or FLAT)
    with endor.open(tmp_path / "model.endor") as opened:
        devices = one_device(default_device())
        costs = costs_of(opened.manifest, geometry_of(LLAMA), choice=CHOICE, devices=devices)
    assert costs is not None
    layer, *_ = costs.record_seconds
    assert layer == pytest.approx(1 + 1e-9 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64), abs=1e-8)
    assert "dense-raw" in {product.codec for product in asked}


def test_a_model_whose_matrices_are_their_own_bytes_has_a_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_choice, "SMALL_BYTES", 0)
    write_tiny(tmp_path / "source", LLAMA)
    endor.convert(tmp_path / "source", tmp_path / "model.endor", values="raw")
    with endor.load(tmp_path / "model.endor") as model:
        assert model.prediction is not None
        assert model.prediction.compute_seconds > 0


def test_devices_of_one_processor_add_up_and_gather(
    tmp_path: Path, flat: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny(tmp_path / "source", LLAMA)
    endor.convert(source, tmp_path / "4.endor", prune="magnitude", sparsity=0.5, shards=4)
    monkeypatch.setattr(costs_module, "gathering", lambda devices: Gathering(0.25, 1e12))
    monkeypatch.setattr(costs_module, "usable_cpus", lambda: (0, 1))
    with endor.open(tmp_path / "4.endor") as opened:
        shape = replace(geometry_of(LLAMA), devices=4)
        devices = over_mesh(first_devices(4))
        costs = costs_of(opened.manifest, shape, choice=CHOICE, devices=devices)
        # What other processes' devices give could only be measured with them.
        split = Devices(devices.own[:2], devices.mesh)
        assert costs_of(opened.manifest, shape, choice=CHOICE, devices=split) is None
    assert costs is not None
    # Four steps on two processors take two turns; four products of a quarter each, that of one.
    weights = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64
    assert costs.record_seconds[0] == pytest.approx(2 * 1 + 1e-9 * weights, abs=1e-7)
    assert costs.ends_seconds == 6.0
    # Six for each of four layers, because four devices share two key-value heads; one for all of the head.
    assert costs.gather_seconds == pytest.approx(0.25 * (6 * 4 + 1))


def test_micro_batches_pass_one_after_another_and_waiting_caches_move(tiny: Path, flat: None) -> None:
    config = LLAMA | {"num_hidden_layers": LAYERS}
    shape = replace(geometry_of(config, sequences=6), micro_batch=2, cache_tier="host")
    with endor.open(tiny) as opened:
        costs = costs_of(opened.manifest, shape, choice=CHOICE, devices=one_device(default_device()))
    assert costs is not None
    assert (costs.sequences, costs.ends_seconds) == (6, 9.0)
    assert costs.record_seconds[0] == pytest.approx(3.0, abs=1e-3)
    assert costs.moved_bytes == 2 * shape.cache_bytes


def test_a_small_checkpoint_is_not_measured_and_has_no_prediction(tiny: Path, memory: Path) -> None:
    with endor.load(tiny) as model:
        assert model.prediction is None
        model.complete([1, 2], max_tokens=2)
    assert not memory.parent.exists()


def test_a_model_says_before_the_first_token_what_it_will_take_and_afterwards_what_it_took(
    tiny: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_choice, "SMALL_BYTES", 0)
    device, host = smallest(tiny)
    with endor.load(tiny, device_memory=device, host_memory=host) as model:
        prediction = model.prediction
        assert prediction is not None
        assert prediction.read_seconds > 0
        assert prediction.compute_seconds > 0
        assert not model.plan.queued  # with so little memory they take turns
        assert prediction.seconds == max(
            prediction.read_seconds + prediction.compute_seconds,
            prediction.compute_seconds + prediction.reading_processor_seconds,
        )
        statistics = model.complete([1, 2], max_tokens=6).statistics
        assert model.prediction == prediction
        achieved = statistics.achieved
        assert achieved is not None
        assert achieved.tokens_per_second == pytest.approx(1 / achieved.seconds)
        waited = achieved.read_wait_seconds + achieved.transfer_wait_seconds
        assert achieved.compute_seconds == pytest.approx(achieved.seconds - waited, abs=1e-9)
        assert statistics.stages.passes == statistics.timed_tokens == 4
        assert statistics.stages.read_bytes > 0
    kept = json.loads(memory.read_text())
    # Of the layers, also as their own bytes, and of the head.
    assert sum(": linear " in key for key in kept) == 3
    assert sum(": steps LlamaConfig(" in key for key in kept) == 1


def test_nothing_was_achieved_where_no_pass_was_timed(tiny: Path) -> None:
    with endor.load(tiny) as model:
        assert model.complete([1, 2], max_tokens=2).statistics.achieved is None
