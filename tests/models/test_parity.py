"""Tiny random transformers models in torch: decoder functions give the same logits and greedy tokens."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax import models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 64}
LLAMA = {**SIZES, "intermediate_size": 56, "num_attention_heads": 4, "initializer_range": 0.3}
OPT = {**SIZES, "ffn_dim": 56, "num_attention_heads": 4, "init_std": 0.3}
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
    "opt": ("OPT", OPT),
    "opt-untied": ("OPT", {**OPT, "tie_word_embeddings": False}),
}
# (start of a name in torch, in ours); the first that fits is taken.
NAMES = {
    "llama": [
        ("input_layernorm.weight", "attention_norm.scale"),
        ("post_attention_layernorm.weight", "mlp_norm.scale"),
        ("self_attn.q_proj", "attention.query"),
        ("self_attn.k_proj", "attention.key"),
        ("self_attn.v_proj", "attention.value"),
        ("self_attn.o_proj", "attention.output"),
        ("mlp.gate_proj", "mlp.gate"),
        ("mlp.up_proj", "mlp.up"),
        ("mlp.down_proj", "mlp.down"),
        ("norm.weight", "norm.scale"),
    ],
    "opt": [
        ("self_attn_layer_norm.weight", "attention_norm.scale"),
        ("self_attn_layer_norm", "attention_norm"),
        ("self_attn.q_proj", "attention.query"),
        ("self_attn.k_proj", "attention.key"),
        ("self_attn.v_proj", "attention.value"),
        ("self_attn.out_proj", "attention.output"),
        ("fc1", "mlp.up"),
        ("fc2", "mlp.down"),
        ("embed_positions.weight", "positions"),
    ],
}


@pytest.fixture(params=VARIANTS, ids=str)
def reference(request: pytest.FixtureRequest):
    family, config = VARIANTS[request.param]
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**config))
    # Biases and norms start as zeros and ones, which would hide a wrong name.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def model(reference, make_model):
    """The same model as decoder functions, its parameters taken from the torch state dict."""
    decoder = models.decoder(models.from_hf(reference.config.to_dict()))
    family = decoder.config.family
    prefix = {"llama": "model.", "opt": "model.decoder."}[family]
    state = {name.removeprefix(prefix): tensor.numpy() for name, tensor in reference.state_dict().items()}
    inside = [{} for _ in range(decoder.config.layers)]
    outside = {}
    for name, value in state.items():
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            # OPT calls the second norm of a layer as it calls the last one of the model.
            rest = rest.replace("final_layer_norm.weight", "mlp_norm.scale").replace("final_layer", "mlp")
            inside[int(layer)][renamed(family, rest)] = jnp.asarray(value)
        else:
            name = name.replace("final_layer_norm.weight", "norm.scale").replace("final_layer_norm", "norm")
            outside[renamed(family, name)] = jnp.asarray(value)
    return make_model(
        decoder,
        stem={name: outside[name] for name in decoder.stem_shapes},
        layers=inside,
        final={name: outside[name] for name in decoder.final_shapes},
        embedding=state["embed_tokens.weight"],
        head=state["lm_head.weight"],
    )


def renamed(family: str, name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in NAMES[family] if name.startswith(old)), name)


def test_logits(reference, model):
    ids = np.random.default_rng(0).integers(3, 97, size=(2, 21))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(
        model.logits(ids, model.caches(batch=2, capacity=21), start=0), expected, atol=1e-4
    )


def test_greedy_tokens(reference, model):
    prompt = np.random.default_rng(1).integers(3, 97, size=(1, 8))
    expected = reference.generate(
        torch.from_numpy(prompt), do_sample=False, max_new_tokens=40, min_new_tokens=40, eos_token_id=None
    ).numpy()[0, 8:]
    assert len(set(expected.tolist())) > 3
    caches = model.caches(batch=1, capacity=48)
    tokens = [int(model.logits(prompt, caches, start=0)[0, -1].argmax())]
    while len(tokens) < 40:
        logits = model.logits(np.array([[tokens[-1]]]), caches, start=7 + len(tokens))
        tokens.append(int(logits[0, -1].argmax()))
    assert tokens == expected.tolist()
