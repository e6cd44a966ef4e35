"""Tensor parallelism: one, two, four and eight devices share every layer, and give what one alone gives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax import models
from endor_jax.cli.main import app
from endor_jax.errors import InvalidInputError, OptionError
from endor_jax.generate.loading import lane_shape, make_runner, place_stages, waiting_cache_bytes
from endor_jax.generate.pipeline import Pipeline
from endor_jax.generate.placement import geometry
from endor_jax.generate.runner import Feed, advance
from endor_jax.generate.scoring import score
from endor_jax.streaming.devices import first_devices, over_mesh, plain_mesh
from endor_jax.streaming.plan import Tier
from tests.tiny_models import LLAMA, OPT, write_tiny

ODD_LLAMA = LLAMA | {
    "vocab_size": 317,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 12,
}
"""Neither heads nor rows of any matrix are multiples of eight, nor the key-value heads of two."""
MODELS = {
    "llama": LLAMA | {"num_hidden_layers": 2},
    "odd llama": ODD_LLAMA,
    "opt": OPT | {"num_hidden_layers": 2, "ffn_dim": 99, "vocab_size": 319},
}
LARGE = LLAMA | {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
"""Large enough that what every part has of its own, headers and norms, is little of it."""
IDS = np.random.default_rng(0).integers(0, 256, (2, 40))
PROMPT = IDS[0].tolist()  # as long as what is scored: the same programs


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same checkpoint in one part per record, and in eight."""
    directory = tmp_path_factory.mktemp("models")
    source = write_tiny(directory / "source", MODELS[request.param], tokenizer=True)
    for shards in (1, 8):
        endor.convert(source, directory / f"{shards}.endor", prune="magnitude", sparsity=0.5, shards=shards)
    return directory / "1.endor", directory / "8.endor"


@pytest.fixture(scope="module")
def alone(model: tuple[Path, Path]) -> tuple[np.ndarray, list[int]]:
    """Logits and greedy tokens of one device without a mesh."""
    with endor.load(model[0], context=128) as one:
        return one.logits(IDS), one.complete(PROMPT, max_tokens=24).token_ids


CASES = [("odd llama", 1), ("odd llama", 2), ("odd llama", 4), ("odd llama", 8)]
CASES += [("opt", 1), ("opt", 2), ("opt", 4), ("opt", 8), ("llama", 2), ("llama", 8)]


@pytest.mark.parametrize(("model", "devices"), CASES, indirect=["model"])
def test_logits_and_tokens_are_those_of_one_device(
    model: tuple[Path, Path], alone: tuple[np.ndarray, list[int]], devices: int
) -> None:
    with endor.load(model[1], context=128, mesh=first_devices(devices)) as several:
        logits, tokens = several.logits(IDS), several.complete(PROMPT, max_tokens=24).token_ids
    scale = np.abs(alone[0]).max()
    np.testing.assert_allclose(logits, alone[0], rtol=0, atol=64 * np.finfo(np.float32).eps * scale)
    assert tokens == alone[1]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large")
    source = write_tiny(directory / "source", LARGE, dtype="bfloat16")
    endor.convert(source, directory / "8.endor", prune="magnitude", sparsity=0.5, shards=8)
    return directory / "8.endor"


def held_words() -> Counter[jax.Device]:
    """Bytes of compressed words on each device: one-dimensional arrays of uint32, which nothing else is."""
    held: Counter[jax.Device] = Counter()
    for array in jax.live_arrays():
        if array.ndim == 1 and array.dtype == np.uint32 and array.size > 1024:
            for shard in array.addressable_shards:
                held[shard.device] += shard.data.nbytes
    return held


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    """Bytes of parts that are read, by the number of the part in its record."""
    read: Counter[int] = Counter()
    ordinary = endor.Checkpoint.read_part

    def counted(self: endor.Checkpoint, part, *, into: np.ndarray) -> None:
        read[int(part.path.rpartition(".")[2])] += part.length_bytes
        ordinary(self, part, into=into)

    monkeypatch.setattr(endor.Checkpoint, "read_part", counted)
    return read


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_bytes_read_and_held_per_device_fall_as_their_number(
    large: Path, read_bytes: Counter[int], devices: int
) -> None:
    before = held_words()
    with endor.load(large, context=64, mesh=first_devices(devices), device_memory="1GiB") as model:
        held = held_words() - before
        stored, parts = model.plan.demands, read_bytes.copy()
        assert set(model.plan.tiers) == {"device"}
    whole = sum(demand.read_bytes for demand in stored)
    assert len(held) == devices
    for device in held:
        assert held[device] == pytest.approx(whole / devices, rel=0.1)
    for first in range(0, 8, 8 // devices):
        own = sum(parts[k] for k in range(first, first + 8 // devices))
        assert own == pytest.approx(whole / devices, rel=0.1)


@pytest.mark.parametrize("model", ["odd llama"], indirect=True)
@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_the_tier_never_changes_the_arithmetic(model: tuple[Path, Path], tier: Tier) -> None:
    devices = over_mesh(first_devices(4))
    with endor.load(model[1], context=128, mesh=devices.mesh) as resident:
        expected, plan = resident.logits(IDS), resident.plan
    with endor.open(model[1]) as checkpoint:
        decoder = models.decoder(models.from_hf(checkpoint.model_config()))
        shape = replace(geometry(decoder.config, "float32", 128, devices=4), cache_tier="device")
        placed = replace(plan, tiers=(tier,) * len(plan.tiers))
        runner = make_runner(checkpoint, decoder, shape, plan=placed, devices=devices)
        pipeline = Pipeline({0: runner})
        np.testing.assert_array_equal(score(pipeline, IDS.tolist()), expected)
        np.testing.assert_array_equal(score(pipeline, IDS.tolist()), expected)
        moved = 1 if tier == "device" else 4  # each sequence has a pass of its own
        assert runner.executor.bytes_transferred == moved * sum(4 * d.buffer_bytes for d in placed.demands)
        runner.close()


@pytest.mark.parametrize("model", ["opt"], indirect=True)
def test_a_mesh_that_does_not_divide_the_parts_is_refused(model: tuple[Path, Path]) -> None:
    with pytest.raises(
        InvalidInputError, match=r"in 1 part.*multiple of 2 parts.*endor reshard .* --shards 2"
    ):
        endor.load(model[0], mesh=first_devices(2))
    with pytest.raises(InvalidInputError, match=r"in 8 part.*multiple of 3 parts"):
        endor.load(model[1], mesh=first_devices(3))


def test_a_mesh_of_two_axes_is_refused() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    with pytest.raises(InvalidInputError, match=r"axes \{'data': 2, 'model': 2\}.*one axis"):
        over_mesh(mesh)


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(OptionError, match=r"got 99 devices, expected 1 to 8"):
        first_devices(99)


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_the_command_shares_layers_over_devices(model: tuple[Path, Path]) -> None:
    outputs = []
    for path, options in ((model[0], []), (model[1], ["--tensor-parallel", "4"])):
        command = ["generate", str(path), "-p", "Once", "--max-tokens", "4", "--context", "128", "--json"]
        done = CliRunner().invoke(app, [*command, *options])
        assert done.exit_code == 0, done.output
        outputs.append(json.loads(done.stdout))
    assert outputs[0]["token_ids"] == outputs[1]["token_ids"]
    assert (outputs[0]["plan"]["devices"], outputs[1]["plan"]["devices"]) == (1, 4)


@pytest.mark.parametrize("model", ["odd llama"], indirect=True)
def test_caches_that_wait_in_host_memory_are_spread_too(model: tuple[Path, Path]) -> None:
    devices = over_mesh(first_devices(4))
    with endor.load(model[1], context=128, batch=2, mesh=devices.mesh) as resident:
        plan = resident.plan
    given = []
    with endor.open(model[1]) as checkpoint:
        decoder = models.decoder(models.from_hf(checkpoint.model_config()))
        shape = geometry(decoder.config, "float32", 128, 2, micro_batch=1, devices=4)
        for tier in ("device", "host"):
            placed = replace(shape, cache_tier=tier)
            runner = make_runner(checkpoint, decoder, placed, plan=plan, devices=devices)
            caches = runner.new_caches(2)
            feeds = [Feed(row, PROMPT[row:], 0) for row in range(2)]
            logits = [advance(runner, caches, feeds)]
            logits.append(advance(runner, caches, [Feed(row, [7], len(PROMPT) - row) for row in range(2)]))
            given.append(np.stack(logits))
            kept = caches.take((1, 1)).keys if tier == "device" else caches._waiting[1, 1].keys
            own = decoder.config.head_dim * 128 * kept.dtype.itemsize
            assert [shard.data.nbytes for shard in kept.addressable_shards] == [own] * 4
            assert (kept.sharding.memory_kind == "pinned_host") == (tier == "host")
            runner.close()
    np.testing.assert_array_equal(given[0], given[1])


def test_what_is_no_usable_mesh_is_refused() -> None:
    devices = jax.devices()
    with pytest.raises(InvalidInputError, match=r"got int 4, expected a jax.sharding.Mesh"):
        plain_mesh(4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInputError, match=r"devices \[0, 0\], expected each device once"):
        plain_mesh(Mesh(np.array([devices[0]] * 2), ("model",)))
    with (
        jax.set_mesh(jax.make_mesh((2,), ("other",))),
        pytest.raises(InvalidInputError, match=r"jax.set_mesh"),
    ):
        plain_mesh(first_devices(2))
    explicit = jax.make_mesh((2,), ("model",))
    assert plain_mesh(explicit) == Mesh(np.array(devices[:2]), ("model",))


@pytest.mark.parametrize("model", ["opt"], indirect=True)
def test_peers_without_a_mesh_are_refused(model: tuple[Path, Path]) -> None:
    peers = object.__new__(endor.Peers)
    with pytest.raises(InvalidInputError, match=r"peers: got no mesh with them"):
        endor.load(model[1], peers=peers)


def test_caches_that_wait_are_counted_for_every_device_of_the_process(model: tuple[Path, Path]) -> None:
    """JAX's pool of pinned memory is the process's, and each device has caches of its own in it."""
    with endor.Checkpoint(model[1]) as checkpoint:
        decoder = models.decoder(models.from_hf(checkpoint.model_config()))
        staged = {0: over_mesh(first_devices(4))}
        shape = lane_shape(checkpoint, decoder, staged, stages=1, context=64, batch=1, micro_batch=None)
        (placed,) = place_stages(
            checkpoint, staged, shape=shape, count=1, device_memory=None, host_memory=None, depth=None
        ).values()
    assert waiting_cache_bytes([placed]) == 0
    waits = replace(placed, shape=replace(placed.shape, cache_tier="host"))
    assert waiting_cache_bytes([waits]) == 4 * placed.shape.cache_bytes > 0
