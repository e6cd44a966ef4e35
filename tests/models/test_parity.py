"""Tiny random transformers models in torch: decoder functions give the same logits and greedy tokens."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax import models
from endor_jax.sources import locate, open_source
from tests.end_to_end import transformers_models
from tests.end_to_end.conftest import one_thread  # noqa: F401, for all tests of this file
from tests.end_to_end.transformers_models import save_random, torch

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("compiled_quickly")]

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 64}
LLAMA = {**SIZES, "intermediate_size": 56, "num_attention_heads": 4, "initializer_range": 0.3}
OPT = {**SIZES, "ffn_dim": 56, "num_attention_heads": 4, "init_std": 0.3}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}
VARIANTS = {
    "llama-mha": ("Llama", {**LLAMA, "num_key_value_heads": 4}),
    "llama-gqa": ("Llama", {**LLAMA, "num_key_value_heads": 2}),
    "llama-mqa": ("Llama", {**LLAMA, "num_key_value_heads": 1}),
    "llama-tied": ("Llama", {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-head-dim": ("Llama", {**LLAMA, "num_key_value_heads": 2, "head_dim": 12}),
    "llama-biases": ("Llama", {**LLAMA, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "llama-rope-theta": (
        "Llama",
        {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rms_norm_eps": 1e-5},
    ),
    "llama-llama3": (
        "Llama",
        {
            **LLAMA,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 24,
            },
        },
    ),
    "mistral-window": ("Mistral", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 7}),
    "qwen2": ("Qwen2", {**LLAMA, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {**LLAMA, "num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": True}),
    "qwen3-biases-window": (
        "Qwen3",
        {**LLAMA, **WINDOW, "num_key_value_heads": 1, "head_dim": 8, "attention_bias": True},
    ),
    "opt": ("OPT", OPT),
    "opt-untied": ("OPT", {**OPT, "tie_word_embeddings": False}),
    "opt-350m": ("OPT", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    # With more layers, norms behind the sums make nearly all tokens the same.
    "opt-post-norm-untied": (
        "OPT",
        {
            **OPT,
            "do_layer_norm_before": False,
            "tie_word_embeddings": False,
            "num_hidden_layers": 2,
            "init_std": 0.45,
        },
    ),
    "opt-no-final-norm": ("OPT", {**OPT, "_remove_final_layer_norm": True}),
    "opt-no-biases": ("OPT", {**OPT, "enable_bias": False}),
    "opt-no-affine": ("OPT", {**OPT, "layer_norm_elementwise_affine": False}),
    "opt-gelu": ("OPT", {**OPT, "activation_function": "gelu"}),
}


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as transformers saves it."""
    return save_random(*VARIANTS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def reference(directory: Path):
    return transformers_models.reference(directory)


@pytest.fixture(scope="module")
def model(directory: Path, make_model):
    """The same model as decoder functions, its parameters as they are in the files."""
    with open_source(directory) as source:
        decoder = models.decoder(models.from_hf(source.config))
        params: dict[str, dict[str, jax.Array]] = {}
        for place, name in locate(source).items():
            params.setdefault(place.record, {})[place.tensor] = jnp.asarray(source.read(name))
    embedding = params["embedding"]["weight"]
    return make_model(
        decoder,
        stem=params.get("stem", {}),
        layers=[params[f"layers.{i}"] for i in range(decoder.config.layers)],
        final=params.get("final", {}),
        embedding=np.asarray(embedding),
        head=np.asarray(params.get("head", {}).get("weight", embedding)),
    )


PROMPTS = np.random.default_rng(0).integers(3, 97, size=(2, 21))
NEW_TOKENS = 40
CAPACITY = 21 + NEW_TOKENS


def test_logits(reference, model):
    with torch.no_grad():
        expected = reference(torch.from_numpy(PROMPTS)).logits.numpy()
    assert np.abs(expected).max() > 1
    caches = model.caches(batch=2, capacity=CAPACITY)
    np.testing.assert_allclose(model.logits(PROMPTS, caches, start=0), expected, atol=1e-4)


def test_greedy_tokens(reference, model):
    expected = reference.generate(
        torch.from_numpy(PROMPTS),
        attention_mask=torch.ones(2, 21, dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    ).numpy()[:, 21:]
    assert len(set(expected.ravel().tolist())) > 3
    caches = model.caches(batch=2, capacity=CAPACITY)
    tokens = [model.logits(PROMPTS, caches, start=0)[:, -1].argmax(-1)]
    while len(tokens) < NEW_TOKENS:
        logits = model.logits(tokens[-1][:, None], caches, start=20 + len(tokens))
        tokens.append(logits[:, -1].argmax(-1))
    np.testing.assert_array_equal(np.stack(tokens, axis=1), expected)
