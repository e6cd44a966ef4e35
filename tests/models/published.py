"""config.json of published Llamas, what is in them written by hand, and how many parameters they have."""

from __future__ import annotations

from typing import Any

_V4 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_LLAMA_1 = {
    **_V4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float16",
    "transformers_version": "4.28.0.dev0",
    "vocab_size": 32_000,
}
_LLAMA_2 = {
    **_V4,
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 4096,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "vocab_size": 32_000,
}
_CODE = {**_LLAMA_2, "max_position_embeddings": 16_384, "rope_theta": 1_000_000, "torch_dtype": "bfloat16"}
_LLAMA_3 = {
    **_V4,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500_000.0,
    "transformers_version": "4.40.0.dev0",
    "vocab_size": 128_256,
}


def scaling(factor: float) -> dict[str, Any]:
    return {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


_LLAMA_3_1 = {
    **_LLAMA_3,
    "eos_token_id": [128_001, 128_008, 128_009],
    "max_position_embeddings": 131_072,
    "mlp_bias": False,
    "rope_scaling": scaling(8.0),
    "transformers_version": "4.43.0.dev0",
}
_LLAMA_3_2 = {**_LLAMA_3_1, "rope_scaling": scaling(32.0), "tie_word_embeddings": True}
_SMOL = {
    **_V4,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "is_llama_config": True,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "transformers_version": "4.40.1",
    "vocab_size": 49_152,
}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


_7B, _13B, _70B = (4096, 11_008, 32, 32, 32), (5120, 13_824, 40, 40, 40), (8192, 28_672, 80, 64, 8)

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-1-7B": (_LLAMA_1, 6_738_415_616),
    "Llama-2-7B": (_LLAMA_2 | _sizes(*_7B), 6_738_415_616),
    "Llama-2-13B": (_LLAMA_2 | _sizes(*_13B), 13_015_864_320),
    "Llama-2-70B": (_LLAMA_2 | _sizes(*_70B), 68_976_648_192),
    "CodeLlama-7B": (_CODE | _sizes(*_7B) | {"vocab_size": 32_016}, 6_738_546_688),
    "CodeLlama-13B": (_CODE | _sizes(*_13B) | {"vocab_size": 32_016}, 13_016_028_160),
    "CodeLlama-34B": (_CODE | _sizes(8192, 22_016, 48, 64, 8), 33_743_970_304),
    "CodeLlama-70B": (_CODE | _sizes(*_70B) | {"vocab_size": 32_016}, 68_976_910_336),
    "TinyLlama-1.1B": (
        _LLAMA_2 | _sizes(2048, 5632, 22, 32, 4) | {"max_position_embeddings": 2048},
        1_100_048_384,
    ),
    "Llama-3-8B": (_LLAMA_3 | _sizes(4096, 14_336, 32, 32, 8), 8_030_261_248),
    "Llama-3-70B": (_LLAMA_3 | _sizes(*_70B), 70_553_706_496),
    "Llama-3.1-8B": (_LLAMA_3_1 | _sizes(4096, 14_336, 32, 32, 8), 8_030_261_248),
    "Llama-3.1-70B": (_LLAMA_3_1 | _sizes(*_70B), 70_553_706_496),
    "Llama-3.1-405B": (_LLAMA_3_1 | _sizes(16_384, 53_248, 126, 128, 8), 405_853_388_800),
    "Llama-3.2-1B": (_LLAMA_3_2 | _sizes(2048, 8192, 16, 32, 8) | {"head_dim": 64}, 1_235_814_400),
    "Llama-3.2-3B": (_LLAMA_3_2 | _sizes(3072, 8192, 28, 24, 8) | {"head_dim": 128}, 3_212_749_824),
    "Llama-3.3-70B": (_LLAMA_3_1 | _sizes(*_70B), 70_553_706_496),
    "SmolLM-135M": (
        _SMOL | _sizes(576, 1536, 30, 9, 3) | {"max_position_embeddings": 2048, "rope_theta": 10_000.0},
        134_515_008,
    ),
    "SmolLM2-360M": (
        _SMOL | _sizes(960, 2560, 32, 15, 5) | {"max_position_embeddings": 8192, "rope_theta": 100_000},
        361_821_120,
    ),
    "SmolLM2-1.7B": (
        _SMOL | _sizes(2048, 8192, 24, 32, 32) | {"max_position_embeddings": 8192, "rope_theta": 130_000},
        1_711_376_384,
    ),
}
"""Name → what its config.json says, and its parameters, a tied head counted once."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Llama-2-7B-GPTQ": (
        _LLAMA_2 | _sizes(*_7B) | {"quantization_config": {"bits": 4, "quant_method": "gptq"}},
        "'quantization_config'.*'gptq'",
    ),
    "Yarn-Llama-2-7B-64k": (
        _LLAMA_2
        | _sizes(*_7B)
        | {
            "rope_scaling": {
                "factor": 16.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
                "finetuned": True,
            }
        },
        "'rope_scaling.type': got 'yarn'.*'default', 'linear', 'llama3'",
    ),
    "Llama-3.2-11B-Vision": (
        {"architectures": ["MllamaForConditionalGeneration"], "model_type": "mllama"},
        "'mllama'",
    ),
    "Llama-4-Scout": ({"model_type": "llama4", "text_config": {}}, "'llama4'"),
    "Phi-3-mini": ({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}, "'phi3'"),
    "Gemma-2-2B": ({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}, "'gemma2'"),
    "Mixtral-8x7B": ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral'.*mistral, opt, qwen2"),
    "Qwen3-30B-A3B": ({"model_type": "qwen3_moe", "num_experts": 128}, "'qwen3_moe'"),
    "SmolLM3-3B": ({"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0]}, "'smollm3'"),
}
"""Relatives that are not read: what their config.json says, and what the refusal must name."""
