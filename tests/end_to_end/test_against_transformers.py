"""Converted and streamed under the smallest budget, in float32: transformers' tokens and logits.

The variants of Llama are in test_llama_family.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import MissingDependencyError
from tests.end_to_end.transformers_models import NEW_TOKENS, reference, save_random, torch, torch_greedy
from tests.generate.budgets import smallest

pytestmark = pytest.mark.reference

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
LLAMA = {**SIZES, "intermediate_size": 112, "initializer_range": 0.15}
VARIANTS = {
    "llama": ("Llama", {**LLAMA, "num_key_value_heads": 2}),
    "opt": ("OPT", {**SIZES, "ffn_dim": 112, "word_embed_proj_dim": 64, "init_std": 0.15}),
    "opt-untied": (
        "OPT",
        {**SIZES, "ffn_dim": 112, "word_embed_proj_dim": 64, "init_std": 0.15, "tie_word_embeddings": False},
    ),
}


def compare(checkpoint: Path, model, prompts: list[list[int]], *, context: int, budget: int) -> float:
    """Asserts equal tokens and near logits, streamed; the largest difference."""
    device, host = smallest(checkpoint, context=context)
    worst = 0.0
    with endor.load(checkpoint, context=context, device_memory=device + budget, host_memory=host) as streamed:
        assert streamed.plan.count("disk") > 1
        streamed.tokenizer = None  # which would end a text where transformers was told to go on
        for prompt in prompts:
            expected, logits = torch_greedy(model, prompt)
            tokens = [token.id for token in streamed.generate(prompt, max_tokens=NEW_TOKENS)]
            assert tokens == expected
            difference = np.abs(streamed.logits([prompt + tokens])[0] - logits).max()
            assert difference <= 1e-3
            worst = max(worst, float(difference))
    return worst


@pytest.mark.parametrize("variant", VARIANTS)
def test_tiny_random_models(tmp_path, variant):
    source = save_random(*VARIANTS[variant], tmp_path / "source")
    endor.convert(source, tmp_path / "dst", dtype="float32")
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 300, count).tolist() for count in (1, 140)]
    worst = compare(tmp_path / "dst", reference(source), prompts, context=200, budget=0)
    print(f"{variant}: largest difference {worst:.2e}")


def test_an_exported_model_is_the_same_to_transformers(tmp_path):
    source = save_random(*VARIANTS["llama"], tmp_path / "source")
    endor.convert(source, tmp_path / "dst")
    endor.export(tmp_path / "dst", tmp_path / "exported")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(reference(source)(ids).logits, reference(tmp_path / "exported")(ids).logits)


@pytest.mark.slow
def test_stories15m(tmp_path):
    from tests.real_models import stories15m

    try:
        source = stories15m()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    endor.convert(source, tmp_path / "dst", dtype="float32")
    with endor.load(tmp_path / "dst") as model:
        assert model.tokenizer is not None
        prompts = [model.tokenizer.encode(text) for text in ("Once upon a time", "Lily and her dog")]
    worst = compare(tmp_path / "dst", reference(source), prompts, context=256, budget=0)
    print(f"stories15M: largest difference {worst:.2e}")


@pytest.mark.slow
def test_smollm2(tmp_path):
    """The reference reads what `endor export` writes: GGUF is read by our own code only."""
    from tests.real_models import smollm2_gguf

    endor.convert(smollm2_gguf(), tmp_path / "dst", dtype="float32")
    endor.export(tmp_path / "dst", tmp_path / "exported")
    with endor.load(tmp_path / "dst", context=256) as model:
        assert model.tokenizer is not None
        prompts = [model.tokenizer.encode("The capital of France is")]
    worst = compare(
        tmp_path / "dst", reference(tmp_path / "exported"), prompts, context=256, budget=20 * 2**20
    )
    print(f"SmolLM2: largest difference {worst:.2e}")
