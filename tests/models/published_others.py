"""config.json of published OPTs, Mistrals and Qwens, and how many parameters they have.

OPT and Qwen2.5-0.5B: as public repositories quote them (OPT: EasyDeL 0.0.8). The others: from memory.
transformers counts as many parameters in models of these configs.
"""

from __future__ import annotations

from typing import Any

_OPT = {
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "eos_token_id": 2,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "pad_token_id": 1,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "transformers_version": "4.21.0.dev0",
    "use_cache": True,
    "vocab_size": 50_272,
}


def _opt(hidden: int, layers: int, heads: int, embedding: int | None = None) -> dict[str, Any]:
    return _OPT | {
        "ffn_dim": 4 * hidden,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "word_embed_proj_dim": hidden if embedding is None else embedding,
    }


_NORM = {"_remove_final_layer_norm": False}

OPT: dict[str, tuple[dict[str, Any], int]] = {
    "opt-125m": (_opt(768, 12, 12) | _NORM | {"_name_or_path": "facebook/opt-125m"}, 125_239_296),
    "opt-350m": (_opt(1024, 24, 16, 512) | {"do_layer_norm_before": False}, 331_196_416),
    "opt-1.3b": (_opt(2048, 24, 32), 1_315_758_080),
    "opt-2.7b": (_opt(2560, 32, 32) | _NORM, 2_651_596_800),
    "opt-6.7b": (_opt(4096, 32, 32) | _NORM, 6_658_473_984),
    "opt-13b": (_opt(5120, 40, 40) | _NORM | {"output_projection": True}, 12_853_473_280),
    "opt-30b": (_opt(7168, 48, 56) | _NORM | {"output_projection": True}, 29_974_540_288),
    "opt-66b": (_opt(9216, 64, 72) | _NORM, 65_719_701_504),
    "galactica-125m": (
        _opt(768, 12, 12)
        | _NORM
        | {
            "activation_function": "gelu",
            "attention_dropout": 0.1,
            "bos_token_id": 0,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "learned_embeddings": True,
            "scale_embeddings": False,
            "vocab_size": 50_000,
        },
        125_030_400,
    ),
}
"""Name → what its config.json says, and its parameters, a tied head counted once."""

_LLAMA_LIKE = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


_MISTRAL = _LLAMA_LIKE | {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 32_768,
    "model_type": "mistral",
    "rms_norm_eps": 1e-05,
    "transformers_version": "4.42.0.dev0",
}
_QWEN2 = _LLAMA_LIKE | {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1_000_000.0,
    "transformers_version": "4.40.1",
    "use_mrope": False,
    "use_sliding_window": False,
}
_QWEN3 = _LLAMA_LIKE | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "model_type": "qwen3",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": None,
    "transformers_version": "4.51.0",
    "use_sliding_window": False,
    "vocab_size": 151_936,
}


def _context(positions: int, layers: int) -> dict[str, int]:
    return {
        "max_position_embeddings": positions,
        "sliding_window": positions,
        "max_window_layers": layers,
    }


NEIGHBOURS: dict[str, tuple[dict[str, Any], int]] = {
    "Mistral-7B-v0.1": (
        _MISTRAL
        | _sizes(4096, 14_336, 32, 32, 8)
        | {"rope_theta": 10_000.0, "sliding_window": 4096, "vocab_size": 32_000},
        7_241_732_096,
    ),
    "Mistral-7B-v0.3": (
        _MISTRAL
        | _sizes(4096, 14_336, 32, 32, 8)
        | {"rope_theta": 1_000_000.0, "sliding_window": None, "vocab_size": 32_768},
        7_248_023_552,
    ),
    "Mistral-Nemo-Base-2407": (
        _MISTRAL
        | _sizes(5120, 14_336, 40, 32, 8)
        | {
            "head_dim": 128,
            "max_position_embeddings": 128_000,
            "rope_theta": 1_000_000.0,
            "sliding_window": None,
            "vocab_size": 131_072,
        },
        12_247_782_400,
    ),
    "Qwen2.5-0.5B": (
        _QWEN2
        | _sizes(896, 4864, 24, 14, 2)
        | _context(32_768, 24)
        | {"tie_word_embeddings": True, "vocab_size": 151_936},
        494_032_768,
    ),
    "Qwen2.5-7B": (
        _QWEN2 | _sizes(3584, 18_944, 28, 28, 4) | _context(131_072, 28) | {"vocab_size": 152_064},
        7_615_616_512,
    ),
    "Qwen2.5-72B": (
        _QWEN2 | _sizes(8192, 29_568, 80, 64, 8) | _context(131_072, 80) | {"vocab_size": 152_064},
        72_706_203_648,
    ),
    "Qwen3-0.6B": (
        _QWEN3 | _sizes(1024, 3072, 28, 16, 8) | {"max_window_layers": 28, "tie_word_embeddings": True},
        596_049_920,
    ),
    "Qwen3-8B": (_QWEN3 | _sizes(4096, 12_288, 36, 32, 8) | {"max_window_layers": 36}, 8_190_735_360),
    "Qwen3-32B": (_QWEN3 | _sizes(5120, 25_600, 64, 64, 8) | {"max_window_layers": 64}, 32_762_123_264),
}
"""As OPT; those that share Llama's block."""
