"""GGUF metadata of a Llama -> the config.json and generation_config.json Hugging Face would have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief, brief_text

_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_ROPE = "llama.rope."
_ROPE_KEYS = frozenset(
    {
        *("dimension_count", "freq_base", "scale_linear", "scaling.type", "scaling.factor"),
        *("scaling.attn_factor", "scaling.finetuned", "scaling.original_context_length"),
    }
)
"""Keys below `llama.rope.` that are read, or that llama.cpp itself does not use with the kinds read here."""
_END_KEYS = ("eos", "eot", "eom")  # end of sequence, of turn, of message: generation stops at each


def llama_config(metadata: Mapping[str, Any], names: Collection[str], *, where: str) -> dict[str, Any]:
    """The config.json of a GGUF file whose architecture is "llama"; vocab_size is left to the caller.

    `names` are the file's tensors: they say whether the head is tied and where there are biases. Raises
    InvalidInputError if a key is missing and UnsupportedError for variants this library has no model for.
    """
    _refuse_variants(metadata, where=where)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
    }
    for key, name in _SIZES.items():
        config[name] = _number(metadata, key, int, where=where)
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = _number(
        metadata, "attention.head_count_kv", int, where=where, default=heads
    )
    head_dim = max(config["hidden_size"] // heads, 1)
    config["head_dim"] = _number(metadata, "attention.key_length", int, where=where, default=head_dim)
    for key in ("attention.value_length", "rope.dimension_count"):
        value = _number(metadata, key, int, where=where, default=config["head_dim"])
        if value != config["head_dim"]:
            raise _unsupported(
                where, got=f"llama.{key} {value}", expected=f"{config['head_dim']}, the head size"
            )
    config["rms_norm_eps"] = _number(metadata, "attention.layer_norm_rms_epsilon", float, where=where)
    config["rope_theta"] = _number(metadata, "rope.freq_base", float, where=where, default=10000.0)
    config["rope_scaling"] = _rope_scaling(metadata, where=where)
    config["attention_bias"] = "blk.0.attn_q.bias" in names
    config["mlp_bias"] = "blk.0.ffn_up.bias" in names
    config["tie_word_embeddings"] = "output.weight" not in names
    config["torch_dtype"] = "float32"
    for name in ("bos", "eos"):
        config[f"{name}_token_id"] = token_id(metadata, name, where=where)
    return config


def generation_config(metadata: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """bos_token_id, and eos_token_id as a list of every token that ends a text or a turn.

    Raises InvalidInputError for one that is no id.
    """
    ends = [token_id(metadata, key, where=where) for key in _END_KEYS]
    result: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(end for end in ends if end is not None))}
    if (start := token_id(metadata, "bos", where=where)) is not None:
        result["bos_token_id"] = start
    return result


def token_id(metadata: Mapping[str, Any], role: str, *, where: str) -> int | None:
    """`tokenizer.ggml.{role}_token_id`, an id of the vocabulary if the file has one; None if not stated.

    Raises InvalidInputError for anything else.
    """
    value = metadata.get(f"tokenizer.ggml.{role}_token_id")
    tokens = metadata.get("tokenizer.ggml.tokens")
    limit = len(tokens) if isinstance(tokens, list) else 2**31
    if value is not None and not (type(value) is int and 0 <= value < limit):
        raise InvalidInputError(
            f"tokenizer of {where}",
            got=f"{role} token {brief(value)}",
            expected=f"an id below {limit}",
            fix="convert it again with a current llama.cpp",
        )
    return value


def _refuse_variants(metadata: Mapping[str, Any], *, where: str) -> None:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise _unsupported(where, got=f"architecture {brief(architecture)}", expected="'llama'")
    if metadata.get("llama.expert_count", 0):
        raise _unsupported(
            where,
            got=f"{brief(metadata['llama.expert_count'])} experts",
            expected="a dense Llama, without experts",
        )


def _number(
    metadata: Mapping[str, Any], key: str, kind: type[int] | type[float], *, where: str, default: Any = None
) -> Any:
    """`llama.{key}`, above 0; some models state it per layer, and then all layers must agree."""
    stated = metadata.get(f"llama.{key}", default)
    values: list[Any] = stated if isinstance(stated, list) and stated else [stated]
    if any(other != values[0] for other in values):
        raise _unsupported(where, got=f"llama.{key} {brief(values)}", expected="the same in every layer")
    value = values[0]
    # GGUF rounds to float32 (0.00001 -> 9.99999975e-06); the shortest decimal gives the original back.
    with np.errstate(over="ignore"):
        number = float(str(np.float32(value))) if kind is float and type(value) is float else value
    if type(value) is not kind or not 0 < number < float("inf"):
        raise InvalidInputError(
            where,
            got=f"no llama.{key}" if value is None else f"llama.{key} {brief(value)}",
            expected=f"that key with a positive {kind.__name__}",
            fix="convert it again with a current llama.cpp",
        )
    return number


def _rope_scaling(metadata: Mapping[str, Any], *, where: str) -> dict[str, Any] | None:
    """As llama.cpp reads it: a factor is linear scaling if no kind is stated, nothing if the kind is none."""
    for key, value in metadata.items():
        if key.startswith(_ROPE) and key.removeprefix(_ROPE) not in _ROPE_KEYS:
            raise _unsupported(
                where, got=f"{brief_text(key)} {brief(value)}", expected="no such key: it may scale positions"
            )
    if (scale := metadata.get(f"{_ROPE}scaling.attn_factor", 1.0)) != 1.0:
        raise _unsupported(where, got=f"{_ROPE}scaling.attn_factor {brief(scale)}", expected="1.0")
    kind = metadata.get(f"{_ROPE}scaling.type", "linear")
    if kind == "none":
        return None
    if kind != "linear":
        raise _unsupported(where, got=f"rope scaling {brief(kind)}", expected="'none' or 'linear'")
    key = "rope.scaling.factor" if f"{_ROPE}scaling.factor" in metadata else "rope.scale_linear"
    factor = _number(metadata, key, float, where=where, default=1.0)
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _unsupported(where: str, *, got: str, expected: str) -> UnsupportedError:
    return UnsupportedError(
        where,
        got=got,
        expected=expected,
        fix="convert from the Hugging Face safetensors of this model instead",
    )
