"""OPT in its variants and the neighbours of Llama, as transformers saves them: streamed, and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from tests.end_to_end.transformers_models import (
    NEW_TOKENS,
    reference,
    save_random,
    torch_greedy,
    torch_logits,
)
from tests.generate.budgets import smallest

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("compiled_quickly")]

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
LLAMA = {**SIZES, "intermediate_size": 112, "num_key_value_heads": 2, "initializer_range": 0.15}
OPT = {**SIZES, "ffn_dim": 112, "init_std": 0.15}
POST = {**OPT, "do_layer_norm_before": False, "init_std": 0.3}
BARE = {"enable_bias": False, "layer_norm_elementwise_affine": False}
VARIANTS = {
    # Windows that end within a chunk of the prompt (128), and are passed by what is generated.
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 50}),
    "qwen2": ("Qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 24}),
    "opt-350m": ("OPT", {**POST, "word_embed_proj_dim": 40}),
    "opt-bare": ("OPT", {**OPT, **BARE, "activation_function": "gelu", "tie_word_embeddings": False}),
}


@dataclass(frozen=True)
class Case:
    """A model that transformers saved, what it computes of a prompt, and the checkpoint made of it."""

    source: Path
    checkpoint: Path
    prompt: list[int]
    tokens: list[int]
    logits: np.ndarray


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp(request.param)
    source = save_random(*VARIANTS[request.param], directory / "source")
    endor.convert(source, directory / "dst")
    prompt = np.random.default_rng(1).integers(3, SIZES["vocab_size"], 140).tolist()
    return Case(source, directory / "dst", prompt, *torch_greedy(reference(source), prompt))


def test_streamed_from_disk(case: Case):
    """Of tokens that differ in every variant: tests/models/test_parity."""
    device, host = smallest(case.checkpoint, context=200)
    with endor.load(case.checkpoint, context=200, device_memory=device, host_memory=host) as model:
        assert model.plan.count("disk") > 1
        tokens = [token.id for token in model.generate(case.prompt, max_tokens=NEW_TOKENS)]
        assert tokens == case.tokens
        logits = model.logits([case.prompt + tokens])[0]
        assert np.abs(logits - case.logits).max() <= 1e-3


def test_exported_it_is_the_same_to_transformers(case: Case, tmp_path: Path):
    endor.export(case.checkpoint, tmp_path / "exported")
    ids = case.prompt + case.tokens
    np.testing.assert_array_equal(torch_logits(reference(tmp_path / "exported"), ids), case.logits)
