"""The keys of Hugging Face's config.json, a set of tables per family: read, of one value only, or ignorable.

Source: the config classes of transformers v5.23 (`LlamaConfig`, `MistralConfig`, `OPTConfig`, `Qwen2Config`,
`Qwen3Config`, `PreTrainedConfig`) with their defaults, and the keys that v4 and the published checkpoints of
the families write. A key in none of the tables is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from endor_jax.errors import InvalidInputError, UnsupportedError

ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
"""What `hf_rope` reads."""
WINDOW_KEYS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
"""What `hf_window` reads."""


@dataclass(frozen=True)
class Field:
    """A key that becomes the config field `name`; `default` is what transformers assumes without it."""

    name: str
    read: Callable[[str, Any], Any]
    default: Any


@dataclass(frozen=True)
class Keys:
    """Every accepted key of one family.

    fields: keys that are one config field each. derived: keys that fields are computed from. only: keys of
    which one value is implemented (a few spellings of it). ignored: keys that change no logits.
    """

    fields: Mapping[str, Field]
    derived: frozenset[str]
    only: Mapping[str, tuple[Any, ...]]
    ignored: frozenset[str]


def size(key: str, value: Any) -> int:
    """`value` if it is an integer of at least 1, else InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(key, repr(value), "an integer of at least 1")
    return value


def size_or_null(key: str, value: Any) -> int | None:
    """`value` if it is an integer of at least 1 or null, else InvalidInputError."""
    return None if value is None else size(key, value)


def count(key: str, value: Any) -> int:
    """`value` if it is an integer of at least 0, else InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise invalid(key, repr(value), "an integer of at least 0")
    return value


def positive(key: str, value: Any) -> float:
    """`value` if it is a finite number above 0, else InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise invalid(key, repr(value), "a positive number")
    return float(value)


def flag(key: str, value: Any) -> bool:
    """`value` if it is true or false, else InvalidInputError."""
    if not isinstance(value, bool):
        raise invalid(key, repr(value), "true or false")
    return value


def table(key: str, value: Any) -> Mapping[str, Any]:
    """`value` if it is a table, an empty one for null, else InvalidInputError."""
    if not isinstance(value, Mapping | None):
        raise invalid(key, repr(value), "a table or null")
    return value or {}


def invalid(key: str, got: str, expected: str) -> InvalidInputError:
    """The error for a key whose value cannot be."""
    where = f"config.json: key '{key}'"
    return InvalidInputError(where, got=got, expected=expected, fix="correct the model's config.json")


def unsupported(key: str, value: Any, expected: str) -> UnsupportedError:
    """The error for a key or a value of it that this version does not implement."""
    return UnsupportedError(
        f"config.json: key '{key}'",
        got=repr(value),
        expected=expected,
        fix="choose another checkpoint; delete the key only if it changes nothing the model computes",
    )


_IGNORED = frozenset(
    {
        # Who wrote the file and for which class; the table was chosen by model_type.
        *("model_type", "architectures", "_name_or_path", "transformers_version", "auto_map"),
        *("transformers.js_config", "is_llama_config", "_commit_hash", "unsloth_fixed", "unsloth_version"),
        # The first Llama conversions wrote it beside max_position_embeddings; nothing reads it.
        "max_sequence_length",
        # The dtype is that of each stored tensor.
        *("torch_dtype", "dtype", "use_bfloat16"),
        # Token ids and prompts are the tokenizer's and the sampler's business.
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix"),
        # Initialisation and training only.
        *("initializer_range", "init_std", "attention_dropout", "dropout", "activation_dropout", "layerdrop"),
        *("gradient_checkpointing",),
        # How transformers runs the model, not what it computes: these change at most the order of a sum.
        *("use_cache", "pretraining_tp", "chunk_size_feed_forward", "torchscript", "_attn_implementation"),
        *("_attn_implementation_autoset", "attn_implementation", "is_decoder"),
        # What transformers returns besides the logits.
        *("output_attentions", "output_hidden_states", "return_dict", "tie_last_hidden_states"),
        # Classification heads, which a causal language model has not.
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
        # Sampling defaults that v4 wrote into every config; ours come from the caller.
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
        *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
        *("num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
        *("suppress_tokens", "begin_suppress_tokens", "tokenizer_class"),
    }
)
_ONLY: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
}

_LLAMA_FIELDS = {
    "vocab_size": Field("vocabulary_size", size, 32_000),
    "hidden_size": Field("hidden_size", size, 4096),
    "intermediate_size": Field("intermediate_size", size, 11_008),
    "num_hidden_layers": Field("layers", size, 32),
    "num_attention_heads": Field("heads", size, 32),
    # Null for as many as heads, and for hidden_size / heads.
    "num_key_value_heads": Field("kv_heads", size_or_null, None),
    "head_dim": Field("head_dim", size_or_null, None),
    "max_position_embeddings": Field("max_positions", size, 2048),
    "rms_norm_eps": Field("norm_epsilon", positive, 1e-6),
    "tie_word_embeddings": Field("tied_head", flag, False),
}
_LLAMA_ONLY = _ONLY | {
    "hidden_act": ("silu", "swish"),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, None),
}
_QWEN_FIELDS = _LLAMA_FIELDS | {
    "vocab_size": Field("vocabulary_size", size, 151_936),
    "intermediate_size": Field("intermediate_size", size, 22_016),
    "num_key_value_heads": Field("kv_heads", size_or_null, 32),
    "max_position_embeddings": Field("max_positions", size, 32_768),
}

LLAMA = Keys(
    fields=_LLAMA_FIELDS | {"mlp_bias": Field("mlp_bias", flag, False)},
    derived=frozenset({"attention_bias", *ROPE_KEYS}),
    only=_LLAMA_ONLY,
    ignored=_IGNORED,
)
MISTRAL = Keys(
    fields=_LLAMA_FIELDS
    | {
        "intermediate_size": Field("intermediate_size", size, 14_336),
        "num_key_value_heads": Field("kv_heads", size_or_null, 8),
        "max_position_embeddings": Field("max_positions", size, 131_072),
    },
    derived=frozenset({"sliding_window", *ROPE_KEYS}),
    only=_LLAMA_ONLY | {"attention_bias": (False,)},
    ignored=_IGNORED,
)
QWEN2 = Keys(
    fields=_QWEN_FIELDS,
    derived=ROPE_KEYS | WINDOW_KEYS,
    # Positions of images, which the vision models of the family have.
    only=_LLAMA_ONLY | {"use_mrope": (False,)},
    ignored=_IGNORED,
)
QWEN3 = Keys(
    # Its head_dim is never derived.
    fields=_QWEN_FIELDS | {"head_dim": Field("head_dim", size, 128)},
    derived=frozenset({"attention_bias"}) | ROPE_KEYS | WINDOW_KEYS,
    only=_LLAMA_ONLY,
    ignored=_IGNORED,
)
OPT = Keys(
    fields={
        "vocab_size": Field("vocabulary_size", size, 50_272),
        "hidden_size": Field("hidden_size", size, 768),
        "ffn_dim": Field("intermediate_size", size, 3072),
        "num_hidden_layers": Field("layers", size, 12),
        "num_attention_heads": Field("heads", size, 12),
        "max_position_embeddings": Field("max_positions", size, 2048),
        "do_layer_norm_before": Field("pre_norm", flag, True),
        "enable_bias": Field("bias", flag, True),
        "layer_norm_elementwise_affine": Field("affine_norms", flag, True),
        "tie_word_embeddings": Field("tied_head", flag, True),
    },
    derived=frozenset({"word_embed_proj_dim", "_remove_final_layer_norm", "activation_function"}),
    # Two that the Galactica checkpoints have: transformers reads neither, and computes as if they were so.
    only=_ONLY | {"learned_embeddings": (True,), "scale_embeddings": (False,)},
    # opt-13b and opt-30b have it from the code they were trained with; nothing reads it.
    ignored=_IGNORED | {"output_projection"},
)
