"""Pipelines: stages with some of the layers each give what one device gives, and work at the same time."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax.cli.main import app
from endor_jax.errors import InvalidInputError, OptionError, UnsupportedError
from endor_jax.generate import batch as batch_module
from endor_jax.generate import loading
from endor_jax.generate import pipeline as pipeline_module
from endor_jax.generate.caches import Caches
from endor_jax.generate.continuation import wishes_for
from endor_jax.generate.pipeline import Pipeline
from endor_jax.generate.placement import head_record
from endor_jax.generate.runner import Runner
from endor_jax.generate.stages import stages_of
from endor_jax.store.manifest import read_manifest
from endor_jax.streaming.devices import first_stages
from endor_jax.streaming.timeline import Timeline
from tests.tiny_models import LLAMA, OPT_350M, write_tiny

ROOT = Path(__file__).parents[2]
ENDS = {"eos_token_id": list(range(30))}
"""So many tokens that end a text that sequences end at different times."""
MODELS = {
    "llama": LLAMA | ENDS | {"num_hidden_layers": 5, "vocab_size": 317},
    "opt": OPT_350M | ENDS | {"num_hidden_layers": 3},
}
CASES = [("llama", 2, 1, 4), ("llama", 2, 2, 4), ("opt", 3, 1, 3)]
"""Model, stages, devices of each, sequences at once."""
if os.environ.get("ENDOR_TEST_PIPELINES") == "all":
    CASES = [(name, s, n, b) for name in MODELS for s in (2, 3) for n in (1, 2) for b in (1, 4, 9)]
CONTEXT = 256
LENGTHS = (1, 5, 130, 2, 7)
MOST = 6


def prompts() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In two parts per record, which one device reads as two devices do."""
    base = tmp_path_factory.mktemp(request.param)
    source = write_tiny(base / "source", MODELS[request.param], tokenizer=True)
    endor.convert(source, base / "model", prune="magnitude", sparsity=0.5, shards=2)
    return base / "model"


def answers(model: endor.Model) -> dict[int, tuple[list[int], str | None]]:
    done = dict(model.complete_batch(prompts(), max_tokens=MOST))
    return {index: (each.token_ids, each.finish_reason) for index, each in sorted(done.items())}


@pytest.fixture(scope="module")
def alone(path: Path) -> tuple[dict[int, tuple[list[int], str | None]], np.ndarray, list[np.ndarray]]:
    """Of one device: greedy answers, logits, losses."""
    with endor.load(path, context=CONTEXT, batch=4) as model:
        found = answers(model)
        assert {reason for _, reason in found.values()} == {"end", "length"}
        return found, model.logits([prompts()[1]] * 2), model.losses(prompts()[2:4])


@pytest.mark.parametrize(
    ("path", "stages", "devices", "batch"), CASES, ids=lambda value: str(value), indirect=["path"]
)
def test_it_gives_what_one_device_gives(path: Path, alone, stages: int, devices: int, batch: int) -> None:
    mesh = first_stages(stages, devices)
    with endor.load(path, context=CONTEXT, batch=batch, mesh=mesh) as model:
        assert model.stages == stages
        assert answers(model) == alone[0]
        logits, losses = model.logits([prompts()[1]] * 2), model.losses(prompts()[2:4])
        ids = [token.id for token in model.generate(prompts()[1], max_tokens=MOST)]
    assert ids == alone[0][1][0]
    if devices == 1:  # what is computed on one device is the same to the bit
        np.testing.assert_array_equal(logits, alone[1])
        for one, other in zip(losses, alone[2], strict=True):
            np.testing.assert_array_equal(one, other)
    else:
        scale = np.abs(alone[1]).max()
        np.testing.assert_allclose(logits, alone[1], rtol=0, atol=64 * np.finfo(np.float32).eps * scale)


@pytest.mark.parametrize("path", ["llama"], indirect=True)
def test_a_conversation_keeps_its_history_in_every_stage(path: Path) -> None:
    first, wishes = prompts()[3], wishes_for(4, None, ())
    answered = []
    two = jax.make_mesh((2, 1), ("stage", "model"), devices=jax.devices()[:2])
    for mesh in (None, two):
        with endor.load(path, context=CONTEXT, mesh=mesh) as model:
            model.tokenizer = None  # so that no token ends a text
            session = model.session()
            ids = first + [token.id for token in session.generate(first, wishes)]
            following = [token.id for token in session.generate([*ids, 9, 9], wishes)]
            assert session.statistics is not None
            answered.append((ids, following, session.statistics.cached_tokens))
    assert answered[0] == answered[1]
    assert answered[1][2] > len(first)


@pytest.mark.parametrize("path", ["llama"], indirect=True)
def test_a_stage_has_its_layers_and_no_others(path: Path) -> None:
    manifest = read_manifest(path)
    stages = stages_of(manifest, 3, head=head_record(manifest))
    with endor.load(path, context=CONTEXT, mesh=first_stages(3, 1)) as model:
        for number, stage in enumerate(stages):
            runner, plan = model._pipeline.stages[number], model.plans[number]
            own = [f"layers.{layer}" for layer in stage.layers]
            names = [demand.name for demand in plan.demands]
            assert names[: len(own)] == own
            assert all("block" in name for name in names[len(own) :])
            assert (len(names) > len(own), runner.embedding is not None) == (stage.last, stage.first)
            assert set(plan.tiers) == {"device"}
            stored = sum(manifest.record(name).stored_bytes for name in own)
            head = manifest.record(head_record(manifest)).stored_bytes if stage.last else 0
            assert runner.executor.bytes_read == stored + head


@pytest.mark.parametrize("path", ["llama"], indirect=True)
def test_from_disk_every_stage_reads_its_layers_once_per_pass(
    path: Path, alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_model = loading.place_model

    def on_disk(*args, **options):
        shape, plan = place_model(*args, **options)
        return shape, replace(plan, tiers=("disk",) * len(plan.tiers))

    monkeypatch.setattr(loading, "place_model", on_disk)
    with endor.load(path, context=CONTEXT, batch=4, mesh=first_stages(2, 1)) as model:
        executors = model._pipeline.executors
        ids = model.complete(prompts()[1], max_tokens=MOST).token_ids
        assert ids == alone[0][1][0]
        read = [executor.bytes_read for executor in executors]
        assert read == [len(ids) * plan.read_bytes_per_pass for plan in model.plans.values()]
        assert model.statistics is not None
        assert model.statistics.bytes_read == sum(read) > 0


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """What works in each tick, in order: stages with the numbers of their lanes."""
    seen: list[list[tuple[int, int]]] = []
    lanes: dict[int, int] = {}
    advance_stage, tick = pipeline_module.advance_stage, batch_module.tick
    working: list[Pipeline] = []

    def stage(runner: Runner, caches: Caches, feeds, entering):
        (number,) = (i for i, other in working[-1].stages.items() if other is runner)
        seen[-1].append((number, lanes[id(caches)]))
        return advance_stage(runner, caches, feeds, entering)

    def one(pipeline: Pipeline, under_way):
        working.append(pipeline)
        seen.append([])
        for each in under_way:
            for caches in each.caches.values() if each is not None else ():
                lanes.setdefault(id(caches), len(lanes) // pipeline.count)
        return tick(pipeline, under_way)

    monkeypatch.setattr(pipeline_module, "advance_stage", stage)
    monkeypatch.setattr(batch_module, "tick", one)
    return seen


@pytest.mark.parametrize("path", ["llama"], indirect=True)
def test_every_stage_works_on_another_lane_in_the_same_tick(path: Path, ticks) -> None:
    with endor.load(path, context=CONTEXT, batch=3, mesh=first_stages(3, 1)) as model:
        model.tokenizer = None  # so that no token ends a text
        done = dict(model.complete_batch([[1], [2, 3], [4]], max_tokens=4))
    assert [len(each.token_ids) for _, each in sorted(done.items())] == [4, 4, 4]
    # Three lanes of four tokens: twelve ticks, and two to run empty.
    expected = [
        [(stage, (tick - stage) % 3) for stage in range(3) if 0 <= tick - stage < 12] for tick in range(14)
    ]
    assert ticks == expected


@pytest.mark.parametrize("path", ["llama"], indirect=True)
def test_the_command_makes_a_pipeline(path: Path) -> None:
    outputs = []
    for options in ([], ["--pipeline-parallel", "2", "--tensor-parallel", "2"]):
        command = [
            "generate",
            str(path),
            "-p",
            "Once",
            "--max-tokens",
            "4",
            "--context",
            str(CONTEXT),
            "--json",
        ]
        done = CliRunner().invoke(app, [*command, *options])
        assert done.exit_code == 0, done.output
        outputs.append(json.loads(done.stdout))
    assert outputs[0]["token_ids"] == outputs[1]["token_ids"]
    assert (list(outputs[0]["plans"]), list(outputs[1]["plans"])) == (["0"], ["0", "1"])
    assert outputs[1]["plan"] == outputs[1]["plans"]["0"]


@pytest.mark.parametrize("path", ["llama"], indirect=True)
def test_what_cannot_be_a_pipeline_is_refused(path: Path) -> None:
    with pytest.raises(OptionError, match=r"got 3 stages of 4 devices, expected at most 8 devices"):
        first_stages(3, 4)
    with pytest.raises(InvalidInputError, match=r"got 6 pipeline stages, expected 1 to 5, the layers"):
        endor.load(path, mesh=first_stages(6, 1))
    three = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("a", "b", "c"))
    with pytest.raises(InvalidInputError, match=r"'c': 2\}.*one axis \(two for a pipeline\)"):
        endor.load(path, mesh=three)
    with pytest.raises(UnsupportedError, match=r"timeline: got 2 pipeline stages in one process"):
        endor.load(path, mesh=first_stages(2, 1), timeline=Timeline())
    with endor.load(path, context=CONTEXT, mesh=first_stages(2, 1)) as model:
        with pytest.raises(InvalidInputError, match="got id 317, expected 0 to 316"):
            model.complete([317], max_tokens=2)
        assert len(model.complete([316], max_tokens=2).token_ids) > 0  # nothing was closed


@pytest.mark.parametrize("path", ["llama"], indirect=True)
def test_two_processes_give_what_one_device_gives(path: Path, alone) -> None:
    """Each with one device and one stage, over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    wanted = {"path": str(path), "context": CONTEXT, "prompts": prompts(), "most": MOST, "port": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.generate.pipeline_process", json.dumps(wanted | {"index": index})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    manifest = read_manifest(path)
    stages = stages_of(manifest, 2, head=head_record(manifest))
    for number, (process, (stdout, stderr)) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, stderr
        said = json.loads(stdout.splitlines()[-1])
        assert said["answers"] == [list(alone[0][index]) for index in range(len(LENGTHS))]
        np.testing.assert_array_equal(np.array(said["losses"][0], np.float32), alone[2][0])
        assert said["stages"] == [number]
        layers = {int(found[1]) for each in said["read"] if (found := re.search(r"layers\.(\d+)", each))}
        assert layers == set(stages[number].layers)
