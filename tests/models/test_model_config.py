"""Hugging Face configs: what is read, what is ignored, and that everything else is refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.models import LlamaConfig, OptConfig, from_hf

# HuggingFaceTB/SmolLM2-135M-Instruct, as published (v4 spelling).
SMOLLM2 = json.loads("""{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
  "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
  "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "transformers_version": "4.42.3",
  "use_cache": true, "vocab_size": 49152
}""")
# facebook/opt-125m, as published.
OPT_125M = json.loads("""{
  "_name_or_path": "facebook/opt-125m", "_remove_final_layer_norm": false, "activation_dropout": 0.0,
  "activation_function": "relu", "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0,
  "bos_token_id": 2, "do_layer_norm_before": true, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 3072,
  "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
  "model_type": "opt", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
  "prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.21.0.dev0", "use_cache": true,
  "vocab_size": 50272, "word_embed_proj_dim": 768
}""")


def test_published_llama():
    assert from_hf(SMOLLM2) == LlamaConfig(
        vocabulary_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        max_positions=8192,
        norm_epsilon=1e-5,
        rope_theta=100_000.0,
        attention_bias=False,
        mlp_bias=False,
        tied_head=True,
    )


def test_published_opt():
    config = from_hf(OPT_125M)
    assert config == OptConfig(
        vocabulary_size=50_272,
        hidden_size=768,
        intermediate_size=3072,
        layers=12,
        heads=12,
        max_positions=2048,
        tied_head=True,
    )
    assert (config.kv_heads, config.head_dim, config.norm_epsilon) == (12, 64, 1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 500_000, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1.0},
    ],
)
def test_rope_spellings(rope: dict):
    assert from_hf({"model_type": "llama", **rope}).rope_theta == 5e5


def test_missing_keys_have_transformers_defaults():
    llama = from_hf({"model_type": "llama"})
    assert (llama.kv_heads, llama.head_dim, llama.rope_theta, llama.norm_epsilon) == (32, 128, 1e4, 1e-6)
    assert (llama.layers, llama.vocabulary_size, llama.tied_head) == (32, 32_000, False)
    opt = from_hf({"model_type": "opt"})
    assert (opt.layers, opt.intermediate_size, opt.vocabulary_size, opt.tied_head) == (12, 3072, 50_272, True)


def test_null_means_derived():
    config = from_hf({**SMOLLM2, "num_key_value_heads": None, "head_dim": None})
    assert (config.kv_heads, config.head_dim) == (9, 64)


def test_head_dim_is_free():
    assert from_hf({**SMOLLM2, "head_dim": 48}).head_dim == 48
    assert from_hf({**SMOLLM2, "hidden_size": 577, "head_dim": 64}).hidden_size == 577


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        (SMOLLM2, "hidden_act", "gelu"),
        (SMOLLM2, "rope_interleaved", True),
        (SMOLLM2, "quantization_config", {"quant_method": "gptq"}),
        (SMOLLM2, "partial_rotary_factor", 0.5),
        (SMOLLM2, "sliding_window", 4096),
        (SMOLLM2, "num_local_experts", 8),
        (SMOLLM2, "is_encoder_decoder", True),
        (SMOLLM2, "pruned_heads", {"0": [1]}),
        (OPT_125M, "do_layer_norm_before", False),
        (OPT_125M, "word_embed_proj_dim", 512),
        (OPT_125M, "_remove_final_layer_norm", True),
        (OPT_125M, "enable_bias", False),
        (OPT_125M, "layer_norm_elementwise_affine", False),
        (OPT_125M, "activation_function", "gelu"),
        (OPT_125M, "quantization_config", {"bits": 4}),
        (OPT_125M, "rope_theta", 1e4),
    ],
)
def test_unimplemented_keys_are_refused_by_name_and_value(base: dict, key: str, value: object):
    with pytest.raises(UnsupportedError) as error:
        from_hf({**base, key: value})
    assert f"'{key}'" in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("rope", "key"),
    [
        ({"rope_type": "llama3", "rope_theta": 5e5}, "rope_type"),
        ({"type": "linear"}, "type"),
        ({"rope_type": "default", "factor": 2.0}, "factor"),
    ],
)
def test_scaled_rope_is_refused(name: str, rope: dict, key: str):
    with pytest.raises(UnsupportedError, match=f"'{name}.{key}'.*plain RoPE"):
        from_hf({**SMOLLM2, name: rope})


def test_unknown_family():
    with pytest.raises(UnsupportedError, match=r"model_type.*'gpt2'.*llama, opt"):
        from_hf({"model_type": "gpt2"})
    with pytest.raises(InvalidInputError, match=r"model_type.*no value.*llama, opt"):
        from_hf({"vocab_size": 100})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 2}, "9 heads and 2 kv_heads"),
        ({"num_attention_heads": 7}, "hidden_size 576, 7 heads and no head_dim"),
        ({"head_dim": 33}, "head_dim 33.*even"),
        ({"hidden_size": 0}, "'hidden_size': got 0.*at least 1"),
        ({"hidden_size": "576"}, "'hidden_size': got '576'"),
        ({"num_hidden_layers": True}, "'num_hidden_layers': got True"),
        ({"rms_norm_eps": None}, "'rms_norm_eps': got None"),
        ({"rope_theta": -1}, "'rope_theta': got -1"),
        ({"rope_scaling": 2}, "'rope_scaling': got 2.*table"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings': got 'yes'"),
    ],
)
def test_contradictions_are_refused(change: dict, message: str):
    with pytest.raises(InvalidInputError, match=message):
        from_hf({**SMOLLM2, **change})


def test_direct_construction_is_checked():
    with pytest.raises(InvalidInputError, match="layers 0"):
        dataclasses.replace(from_hf(SMOLLM2), layers=0)
    with pytest.raises(InvalidInputError, match="hidden_size 768 and 7 heads"):
        dataclasses.replace(from_hf(OPT_125M), heads=7)


@pytest.mark.reference
@pytest.mark.parametrize("family", ["LlamaConfig", "OPTConfig"])
def test_every_key_that_transformers_writes_is_known(family: str):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, family)()
    full, short = config.to_dict(), json.loads(config.to_json_string())
    assert from_hf(full) == from_hf(short) == from_hf({"model_type": config.model_type})
