"""What devices give each other: the gathers of the traced steps, and what they are measured to cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

import endor_jax as endor
from endor_jax import models
from endor_jax.generate import costs, step_rates, steps
from endor_jax.generate.gathers import end_gathers, gather_bytes, layer_gathers
from endor_jax.store import disk_rates, reader_choice
from endor_jax.streaming import measure
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.devices import first_devices, one_device, over_mesh
from endor_jax.streaming.gather_rates import NONE, Gathering, gathering
from endor_jax.streaming.prediction import Prediction
from tests.tiny_models import LLAMA, OPT, write_tiny

MODELS = {
    "llama": LLAMA,
    "opt": OPT,
    "eight heads": LLAMA | {"num_attention_heads": 8, "num_key_value_heads": 8},
}
LAYERS = 2


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gathers")
    source = write_tiny(directory / "source", MODELS[request.param] | {"num_hidden_layers": LAYERS})
    endor.convert(source, directory / "8.endor", prune="magnitude", sparsity=0.5, shards=8)
    return directory / "8.endor"


def exchanged(closed: Any) -> Iterator[int]:
    """Bytes that every gather, or sum, of a program and of those inside it leaves on a device."""
    for equation in closed.eqns:
        if equation.primitive.name in ("all_gather", "psum", "psum_invariant"):
            yield sum(each.aval.size * each.aval.dtype.itemsize for each in equation.outvars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from exchanged(inner)


@pytest.mark.parametrize("devices", [2, 8])
def test_gathers_are_those_of_the_traced_steps(model: Path, devices: int) -> None:
    mesh, rows = first_devices(devices), 3
    with endor.load(model, context=64, mesh=mesh) as loaded:
        runner = loaded._pipeline.runner
        records, held = runner.executor._records, runner.executor._resident
        layer, head = (steps.Record(held[i], records[i].layout) for i in (0, len(records) - 1))
        config = runner.shape.config
        x, start = jnp.zeros((rows, 1, config.hidden_size)), jnp.zeros(rows, jnp.int32)

        def block(record, *rest):
            return steps.block_step(runner.decoder, record, *rest, mesh=mesh)

        def logits(record, x):
            return steps.head_step(record, x, mesh=mesh)

        in_layer = list(exchanged(jax.make_jaxpr(block)(layer, x, runner.new_cache(rows), start).jaxpr))
        in_head = list(exchanged(jax.make_jaxpr(logits)(head, x).jaxpr))
        shape = replace(runner.shape, sequences=rows, micro_batch=rows)
    assert in_layer == [4 * rows * width for width in layer_gathers(config, devices)]
    whole = gather_bytes(shape, head.layout, heads=1)
    assert whole[-1:] == in_head
    assert whole[-1 - LAYERS * len(in_layer) : -1] == LAYERS * in_layer


def test_one_device_gathers_nothing() -> None:
    assert layer_gathers(models.from_hf(LLAMA), 1) == end_gathers(models.from_hf(OPT), 1) == ()
    assert gathering(one_device(default_device())) == NONE
    assert NONE.seconds(10**9) == 0.0


@pytest.fixture
def briefly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for what is measured, and no time for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reader_choice, "SMALL_BYTES", 0)
    monkeypatch.setattr(disk_rates, "MEASURED_SECONDS", 0.001)
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "SHAPES", ((16, 16), (32, 64), (64, 64)))
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda: 1)
    monkeypatch.setattr(step_rates, "REPEATS", 1)
    monkeypatch.setattr(step_rates, "STEPS", 2)
    return tmp_path / "cache/endor_jax/rates.json"


def test_gathers_are_measured_once_per_number_of_devices(briefly: Path) -> None:
    two, four = over_mesh(first_devices(2)), over_mesh(first_devices(4))
    found = gathering(two)
    assert found.latency_seconds > 0
    assert found.bytes_per_second > 0
    assert found.seconds(1000) == pytest.approx(found.latency_seconds + 1000 / found.bytes_per_second)
    assert gathering(two) == found
    gathering(four)
    kept = json.loads(briefly.read_text())
    assert sum(": gathers over " in key for key in kept) == 2
    briefly.write_text(json.dumps({key: [1.0] for key in kept}))
    assert gathering(two).bytes_per_second > 0  # not what somebody else kept
    briefly.write_text(json.dumps({key: [0.5, 2.0] for key in kept}))
    assert gathering(two) == Gathering(0.5, 2.0)


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_a_model_over_a_mesh_says_what_it_will_take(
    model: Path, briefly: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prediction(devices: int) -> Prediction:
        with endor.load(model, context=64, mesh=first_devices(devices)) as loaded:
            assert loaded.prediction is not None
            return loaded.prediction

    monkeypatch.setattr(costs, "gathering", lambda devices: Gathering(1.0, 1e12))
    alone, shared = prediction(1), prediction(4)
    # Six in each layer, for there are fewer key-value heads than devices, and one for each block of the head.
    assert shared.gather_seconds == pytest.approx(6 * LAYERS + 2, rel=1e-6)
    assert shared.binding == "gather"
    assert "gathering-bound (" in str(shared)
    assert "s of gathering per token)" in str(shared)
    assert shared.seconds == shared.compute_seconds + shared.gather_seconds
    assert "gathering" not in str(replace(alone, gather_seconds=0.0, binding="compute"))
