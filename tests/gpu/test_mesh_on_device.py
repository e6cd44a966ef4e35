"""Tensor parallelism on a CUDA device: a mesh of one, which has all parts, gives what it gives alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import endor_jax as endor
from endor_jax import models
from endor_jax.generate.loading import make_runner
from endor_jax.generate.placement import geometry
from endor_jax.generate.scoring import score
from endor_jax.streaming.devices import over_mesh
from endor_jax.streaming.plan import Tier
from tests.tiny_models import LLAMA, OPT, write_tiny

pytestmark = pytest.mark.gpu

IDS = np.random.default_rng(0).integers(0, 256, (1, 40)).tolist()


@pytest.fixture(params=["llama", "opt"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source = write_tiny(tmp_path / "source", LLAMA if request.param == "llama" else OPT)
    endor.convert(source, tmp_path / "4.endor", prune="magnitude", sparsity=0.5, shards=4)
    return tmp_path / "4.endor"


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices("gpu")[:1]), ("model",))


def test_logits_and_tokens_are_those_without_a_mesh(checkpoint: Path, mesh: Mesh) -> None:
    with endor.load(checkpoint, context=128) as alone:
        expected, tokens = alone.logits(IDS), alone.complete(IDS[0], max_tokens=16).token_ids
    with endor.load(checkpoint, context=128, mesh=mesh) as over_one:
        np.testing.assert_allclose(over_one.logits(IDS), expected, rtol=0, atol=1e-4)
        assert over_one.complete(IDS[0], max_tokens=16).token_ids == tokens


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_the_tier_never_changes_the_arithmetic(checkpoint: Path, mesh: Mesh, tier: Tier) -> None:
    """Kept records and those of the ring travel to the device of the mesh that they are for."""
    devices = over_mesh(mesh)
    with endor.load(checkpoint, context=128, mesh=mesh) as resident:
        expected, plan = resident.logits(IDS), resident.plan
    with endor.open(checkpoint) as opened:
        decoder = models.decoder(models.from_hf(opened.model_config()))
        shape = replace(geometry(decoder.config, "float32", 128), cache_tier="device")
        placed = replace(plan, tiers=(tier,) * len(plan.tiers))
        runner = make_runner(opened, decoder, shape, plan=placed, devices=devices)
        for _ in range(2):
            np.testing.assert_array_equal(score(runner, IDS), expected)
        runner.executor.close()
        runner.embedding.close()
