"""Hugging Face configs: what is read, what is ignored, and that everything else is refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.models import LlamaConfig, OptConfig, from_hf
from endor_jax.models.rope import LinearScaling, Llama3Scaling, Rope

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

MISTRAL, QWEN2, QWEN3 = ({"model_type": name} for name in ("mistral", "qwen2", "qwen3"))


def llama(config: dict) -> LlamaConfig:
    read = from_hf(config)
    assert isinstance(read, LlamaConfig)
    return read


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
        rope=Rope(theta=100_000.0),
        qkv_bias=False,
        output_bias=False,
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


FACTORS = {
    "factor": 8.0,
    "low_freq_factor": 1,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_3 = Llama3Scaling(
    factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=8192
)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"rope_theta": 5e5}, None),
        ({"rope_theta": 500_000, "rope_scaling": None}, None),
        ({"rope_theta": 5e5, "rope_scaling": {}, "rope_parameters": None}, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "default"}}, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, None),
        ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}}, None),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1.0}, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}, LinearScaling(4.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 1.0}}, LinearScaling(1.0)),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e5}},
            LinearScaling(2.5),
        ),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **FACTORS}}, LLAMA_3),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "llama3", "rope_type": "llama3", **FACTORS}}, LLAMA_3),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **FACTORS}}, LLAMA_3),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            LinearScaling(2.0),
        ),
    ],
)
def test_rope_spellings(keys: dict, scaling: LinearScaling | Llama3Scaling | None):
    assert llama({"model_type": "llama", **keys}).rope == Rope(theta=5e5, scaling=scaling)


def test_missing_keys_have_transformers_defaults():
    made = llama({"model_type": "llama"})
    assert (made.kv_heads, made.head_dim, made.norm_epsilon, made.tied_head) == (32, 128, 1e-6, False)
    assert (made.layers, made.vocabulary_size, made.rope) == (32, 32_000, Rope(theta=1e4))
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
        (MISTRAL, "attention_bias", True),
        (MISTRAL, "layer_types", ["sliding_attention"] * 32),
        (MISTRAL, "num_local_experts", 8),
        (MISTRAL, "hidden_act", "gelu"),
        (QWEN2, "attention_bias", True),
        (QWEN2, "use_mrope", True),
        (QWEN2, "num_experts", 60),
        (QWEN3, "mlp_bias", True),
        (QWEN3, "num_experts_per_tok", 8),
        (QWEN3, "partial_rotary_factor", 0.5),
        (SMOLLM2, "num_local_experts", 8),
        (SMOLLM2, "is_encoder_decoder", True),
        (SMOLLM2, "pruned_heads", {"0": [1]}),
        (OPT_125M, "activation_function", "gelu_new"),
        (OPT_125M, "activation_function", ["relu"]),
        (OPT_125M, "learned_embeddings", False),
        (OPT_125M, "scale_embeddings", True),
        (OPT_125M, "layer_norm_epsilon", 1e-6),
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
        *(({"rope_type": kind, "factor": 2.0}, "rope_type") for kind in ("dynamic", "yarn", "longrope")),
        ({"type": "mrope"}, "type"),
        ({"rope_type": None}, "rope_type"),
        ({"rope_type": "default", "factor": 2.0}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.0}, "attention_factor"),
        ({"rope_type": "llama3", **FACTORS, "beta_fast": 32}, "beta_fast"),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_other_rope_is_refused_by_name(name: str, rope: dict, key: str):
    with pytest.raises(UnsupportedError) as error:
        from_hf({**SMOLLM2, name: rope})
    assert f"'{name}.{key}': got {rope[key]!r}" in str(error.value)
    if key in ("rope_type", "type"):
        assert "'default', 'linear', 'llama3'" in str(error.value)


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("rope", "key", "message"),
    [
        ({"type": "linear"}, "factor", "no such key.*'linear'"),
        ({"type": "linear", "factor": None}, "factor", "got None.*positive"),
        ({"type": "linear", "factor": "2"}, "factor", "got '2'"),
        ({"type": "linear", "factor": 0.5}, "factor", r"got 0\.5.*at least 1"),
        ({"type": "linear", "rope_type": "default"}, "type", "'linear' beside rope_type 'default'"),
        ({"rope_type": "llama3", **FACTORS, "low_freq_factor": True}, "low_freq_factor", "got True"),
        ({"rope_type": "llama3", **FACTORS, "high_freq_factor": 1}, "high_freq_factor", r"more than.*1\.0"),
        (
            {"rope_type": "llama3", **FACTORS, "original_max_position_embeddings": None},
            "original_max_position_embeddings",
            "got None.*integer",
        ),
        *(
            ({"rope_type": "llama3", **{k: v for k, v in FACTORS.items() if k != key}}, key, "no such key")
            for key in FACTORS
        ),
    ],
)
def test_wrong_and_missing_rope_keys_are_named(name: str, rope: dict, key: str, message: str):
    with pytest.raises(InvalidInputError, match=f"'{name}.{key}': got .*{message.removeprefix('got ')}"):
        from_hf({**SMOLLM2, name: rope})


def test_null_rope_theta_is_refused():
    with pytest.raises(InvalidInputError, match="'rope_theta': got None"):
        from_hf({**SMOLLM2, "rope_theta": None})


def test_unknown_family():
    families = "llama, mistral, opt, qwen2, qwen3"
    for other in ("gpt2", "phi3", "gemma2", "mixtral", "qwen2_moe", "qwen3_moe"):
        with pytest.raises(UnsupportedError, match=f"model_type.*'{other}'.*{families}"):
            from_hf({"model_type": other})
    with pytest.raises(UnsupportedError, match=f"model_type.*'opt'.*{families}"):
        from_hf({"model_type": ["opt"]})
    with pytest.raises(InvalidInputError, match=f"model_type.*no value.*{families}"):
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
        ({"attention_bias": None}, "'attention_bias': got None"),
        ({"rms_norm_eps": None}, "'rms_norm_eps': got None"),
        ({"rope_theta": -1}, "'rope_theta': got -1"),
        ({"rope_theta": 10**400}, "'rope_theta': got 1000.*positive"),
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
    with pytest.raises(InvalidInputError, match="embedding_size 0"):
        dataclasses.replace(from_hf(OPT_125M), projected_size=0)
    with pytest.raises(InvalidInputError, match=r"window 0.*at least 1"):
        dataclasses.replace(from_hf(SMOLLM2), window=0)


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        ({"word_embed_proj_dim": 512}, {"projected_size": 512}),
        ({"word_embed_proj_dim": None}, {"projected_size": None}),
        ({"do_layer_norm_before": False}, {"pre_norm": False, "final_norm": False}),
        ({"_remove_final_layer_norm": True}, {"final_norm": False}),
        ({"enable_bias": False}, {"bias": False}),
        ({"layer_norm_elementwise_affine": False}, {"affine_norms": False}),
        ({"activation_function": "gelu"}, {"activation": "gelu"}),
        ({"tie_word_embeddings": False}, {"tied_head": False}),
    ],
)
def test_variants_of_opt(keys: dict, fields: dict):
    plain = from_hf(OPT_125M)
    assert isinstance(plain, OptConfig)
    assert from_hf(OPT_125M | keys) == dataclasses.replace(plain, **fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word_embed_proj_dim": 0}, "'word_embed_proj_dim': got 0"),
        ({"_remove_final_layer_norm": None}, "'_remove_final_layer_norm': got None"),
        ({"do_layer_norm_before": 1}, "'do_layer_norm_before': got 1"),
        ({"enable_bias": "no"}, "'enable_bias': got 'no'"),
    ],
)
def test_values_that_no_opt_has(change: dict, message: str):
    with pytest.raises(InvalidInputError, match=message):
        from_hf(OPT_125M | change)


def test_neighbours_differ_from_a_llama_of_the_same_sizes():
    sizes = {"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 100, "intermediate_size": 99}
    sizes["max_position_embeddings"] = 512
    plain = llama({"model_type": "llama", **sizes})
    assert llama(MISTRAL | sizes) == dataclasses.replace(plain, window=4096)
    assert llama(MISTRAL | sizes | {"sliding_window": None}) == plain
    assert llama(QWEN2 | sizes) == dataclasses.replace(plain, qkv_bias=True)
    assert llama(QWEN3 | sizes) == dataclasses.replace(plain, head_norms=True)
    biased = dataclasses.replace(plain, head_norms=True, qkv_bias=True, output_bias=True)
    assert llama(QWEN3 | sizes | {"attention_bias": True}) == biased


FULL, SLIDING = "full_attention", "sliding_attention"
USED = {"use_sliding_window": True, "sliding_window": 9, "num_hidden_layers": 4}


@pytest.mark.parametrize("base", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("keys", "window"),
    [
        ({"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 0}, None),
        ({"use_sliding_window": False, "max_window_layers": None}, None),
        (USED | {"max_window_layers": 4}, None),
        (USED | {"max_window_layers": 28}, None),
        (USED | {"max_window_layers": 0}, 9),
        (USED | {"sliding_window": None, "max_window_layers": 0}, None),
        (USED | {"layer_types": [SLIDING] * 4}, 9),
        (USED | {"layer_types": [FULL] * 4}, None),
        (USED | {"layer_types": None, "max_window_layers": 0}, 9),
        # The list comes first, as in transformers.
        (USED | {"layer_types": [FULL] * 4, "max_window_layers": 0}, None),
    ],
)
def test_windows_of_qwen(base: dict, keys: dict, window: int | None):
    assert llama(base | keys).window == window


@pytest.mark.parametrize("base", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("keys", "kind", "message"),
    [
        ({"max_window_layers": 1}, UnsupportedError, "'max_window_layers': got 1.*all of the 4 layers"),
        ({"layer_types": [FULL, SLIDING] * 2}, UnsupportedError, "'layer_types'.*all of the 4 layers"),
        ({"layer_types": ["chunked_attention"] * 4}, UnsupportedError, "'chunked_attention'"),
        ({"layer_types": [FULL] * 3}, InvalidInputError, "got 3 of them.*each of the 4"),
        ({"layer_types": "all"}, InvalidInputError, "'layer_types': got 'all'"),
        ({"use_sliding_window": None}, InvalidInputError, "'use_sliding_window': got None"),
        ({"sliding_window": -1}, InvalidInputError, "'sliding_window': got -1"),
        ({"max_window_layers": -1}, InvalidInputError, "'max_window_layers': got -1.*at least 0"),
        (
            {"use_sliding_window": False, "layer_types": [SLIDING] * 4},
            InvalidInputError,
            "'sliding_attention' without a window",
        ),
    ],
)
def test_windows_of_qwen_that_are_refused(base: dict, keys: dict, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        from_hf(base | USED | keys)


def test_a_window_of_mistral_is_a_number():
    with pytest.raises(InvalidInputError, match="'sliding_window': got 0"):
        from_hf(MISTRAL | {"sliding_window": 0})


def test_a_mistral_may_say_that_it_has_no_biases():
    assert from_hf(MISTRAL | {"attention_bias": False}) == from_hf(MISTRAL)
    with pytest.raises(UnsupportedError, match="'attention_bias': got True"):
        from_hf(MISTRAL | {"attention_bias": True})


def test_the_head_dim_of_a_qwen3_is_not_derived():
    assert llama(QWEN3 | {"hidden_size": 1024}).head_dim == 128
    with pytest.raises(InvalidInputError, match="'head_dim': got None"):
        from_hf(QWEN3 | {"head_dim": None})


@pytest.mark.reference
@pytest.mark.parametrize(
    "family", ["LlamaConfig", "MistralConfig", "OPTConfig", "Qwen2Config", "Qwen3Config"]
)
def test_every_key_that_transformers_writes_is_known(family: str):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, family)()
    full, short = config.to_dict(), json.loads(config.to_json_string())
    assert from_hf(full) == from_hf(short) == from_hf({"model_type": config.model_type})
