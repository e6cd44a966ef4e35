"""Every variant of the Llama family against transformers: all resident, and streamed with a 64 MiB device.

The small models are given the longest context that 64 MiB allow, so that what is left is less than they need
and their layers are read from disk for every token. One larger model does not fit whatever the context is.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.generate.placement import CHUNK
from endor_jax.store.manifest import read_manifest
from tests.end_to_end.transformers_models import (
    NEW_TOKENS,
    reference,
    save_random,
    torch_greedy,
    torch_logits,
)
from tests.generate.budgets import smallest

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("compiled_quickly")]

BUDGET_BYTES = 64 * 2**20
PLENTY = 2**33
INDEX = "model.safetensors.index.json"
PROMPT_TOKENS = 150  # more than a chunk, and than the context that the scaled models "were trained for"

BASE = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 224,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16_384,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.12,
    "tie_word_embeddings": False,
}
LLAMA_3_THETA = {"rope_type": "default", "rope_theta": 5e5}
LLAMA_3_SCALED = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_SCALED = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LARGER = {  # 72 MiB of layers
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 26,
    "tie_word_embeddings": True,
    "rope_parameters": LLAMA_3_SCALED,
    "initializer_range": 0.06,
}


@dataclass(frozen=True)
class Variant:
    """What differs from BASE, and how it is saved. context: None for the longest that the budget allows."""

    config: dict[str, Any]
    low: str | None = None
    shard: str = "5GB"
    context: int | None = None


VARIANTS = {
    "llama-1-sharded": Variant({"num_key_value_heads": 4, "rms_norm_eps": 1e-6}, shard="1MB"),
    "llama-2": Variant({}),
    "llama-3": Variant({"rope_parameters": LLAMA_3_THETA}),
    "llama-3.1": Variant({"rope_parameters": LLAMA_3_SCALED}),
    "llama-3.2-tied": Variant({"rope_parameters": LLAMA_3_SCALED, "tie_word_embeddings": True}),
    "linear-scaling": Variant({"rope_parameters": LINEAR_SCALED}),
    "one-kv-head-of-48": Variant({"num_key_value_heads": 1, "head_dim": 48}),
    "mlp-bias": Variant({"mlp_bias": True}),
    "attention-bias-mixed-dtypes": Variant({"attention_bias": True}, low="bfloat16"),
    "larger": Variant(LARGER, context=256),
}


@dataclass(frozen=True)
class Case:
    """A converted variant, and what transformers computes with its source."""

    variant: Variant
    source: Path
    checkpoint: Path
    context: int
    prompt: list[int]
    tokens: list[int]
    logits: np.ndarray


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    variant = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    source = save_random(
        "Llama", {**BASE, **variant.config}, directory / "source", low=variant.low, shard=variant.shard
    )
    endor.convert(source, directory / "dst")
    prompt = np.random.default_rng(1).integers(3, BASE["vocab_size"], PROMPT_TOKENS).tolist()
    tokens, logits = torch_greedy(reference(source), prompt)
    context = variant.context or longest_context(directory / "dst")
    return Case(variant, source, directory / "dst", context, prompt, tokens, logits)


def longest_context(checkpoint: Path) -> int:
    """The longest context with which the checkpoint fits into BUDGET_BYTES, in whole chunks."""
    chunks = range(1, BASE["max_position_embeddings"] // CHUNK)
    over = bisect_right(chunks, BUDGET_BYTES, key=lambda n: smallest(checkpoint, context=CHUNK * n)[0])
    return CHUNK * chunks[over - 1]


def compare(case: Case, model: endor.Model) -> None:
    tokens = [token.id for token in model.generate(case.prompt, max_tokens=NEW_TOKENS)]
    assert tokens == case.tokens
    assert len(set(tokens)) > 3
    difference = np.abs(model.logits([case.prompt + tokens])[0] - case.logits).max()
    assert difference <= 1e-3
    print(f"largest difference {difference:.2e}")


def test_a_source_is_what_its_variant_says(case: Case):
    shards = len(list(case.source.glob("*.safetensors")))
    assert (shards > 1) == (case.variant.shard != "5GB") == (case.source / INDEX).exists()
    manifest = read_manifest(case.checkpoint)
    dtypes = {t.dtype for record in manifest.records for _, t in manifest.layout(record).tensors}
    assert dtypes == {"float32", *filter(None, [case.variant.low])}


@pytest.mark.parametrize("name", ["llama-3.1", "linear-scaling"])
def test_the_prompt_is_long_enough_for_scaling_to_matter(tmp_path: Path, name: str):
    source = save_random("Llama", {**BASE, **VARIANTS[name].config}, tmp_path)
    ids = list(range(3, PROMPT_TOKENS))
    plain = {"rope_type": "default", "rope_theta": VARIANTS[name].config["rope_parameters"]["rope_theta"]}
    scaled, unscaled = (
        torch_logits(reference(source, **change), ids) for change in ({}, {"rope_parameters": plain})
    )
    assert np.abs(scaled - unscaled).max() > 0.1


def test_resident(case: Case):
    budgets = {"device_memory": PLENTY, "host_memory": PLENTY}
    with endor.load(case.checkpoint, context=case.context, **budgets) as model:
        assert model.plan.count("device") == len(model.plan.tiers)
        compare(case, model)


def test_streamed_with_64_mib(case: Case):
    device, host = smallest(case.checkpoint, context=case.context)
    assert device <= BUDGET_BYTES
    # What a whole chunk of context leaves of the budget would hold some of such small layers.
    device = device if case.variant.context is None else BUDGET_BYTES
    with endor.load(case.checkpoint, context=case.context, device_memory=device, host_memory=host) as model:
        assert model.plan.count("disk") >= 1
        compare(case, model)
        assert model.statistics is not None
        print(model.plan, model.statistics)
        assert model.statistics.bytes_read >= (NEW_TOKENS - 1) * model.plan.read_bytes_per_pass > 0
