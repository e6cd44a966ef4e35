"""The key tables: which tensor of a Hugging Face checkpoint is which tensor of ours, per family, as data.

Ours is made of records (what is streamed as one piece): "embedding", "stem" (what else happens before the
first layer), "layers.{i}", "final" and "head" (absent when tied). Inside a record, tensors have the paths
of the modules in `endor_jax.models`. A table row is a pair of patterns in which {i} is a layer number.

Source: `state_dict` of transformers' LlamaForCausalLM, OPTForCausalLM and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LAYER = "layers.{i}"

Condition = Callable[[Mapping[str, Any]], bool]
"""Of a config.json that `models.from_hf` takes: whether its model has a tensor."""


@dataclass(frozen=True)
class Row:
    """A tensor there and here. `needs` is what its config must be like for it to exist, if anything."""

    hf: str
    record: str
    tensor: str
    needs: Condition | None = None


@dataclass(frozen=True)
class Family:
    """The table of one `model_type`.

    `prefix` begins every name but the head's; base models are saved without it, and both are read.
    `ignorable` maps patterns of names that carry no weights to the reason.
    """

    prefix: str
    rows: tuple[Row, ...]
    ignorable: Mapping[str, str]
    ties_by_default: bool


def _is_true(key: str, *, default: bool) -> Condition:
    return lambda config: bool(config.get(key, default))


def _linear(hf: str, record: str, tensor: str, *, bias: Condition | None) -> tuple[Row, ...]:
    """Weight and bias of a linear layer; the bias if the condition holds, or never."""
    weight = Row(f"{hf}.weight", record, f"{tensor}.weight")
    return (weight,) if bias is None else (weight, Row(f"{hf}.bias", record, f"{tensor}.bias", needs=bias))


HEAD = Row("lm_head.weight", "head", "weight")


def _llama(
    *,
    qkv_bias: Condition | None = None,
    output_bias: Condition | None = None,
    mlp_bias: Condition | None = None,
    head_norms: bool = False,
) -> Family:
    """The table of Llama and its neighbours."""
    attention, norms = "layers.{i}.self_attn", ()
    if head_norms:
        norms = (
            Row(f"{attention}.q_norm.weight", LAYER, "attention.query_norm.scale"),
            Row(f"{attention}.k_norm.weight", LAYER, "attention.key_norm.scale"),
        )
    return Family(
        prefix="model.",
        rows=(
            Row("embed_tokens.weight", "embedding", "weight"),
            Row("layers.{i}.input_layernorm.weight", LAYER, "attention_norm.scale"),
            *_linear(f"{attention}.q_proj", LAYER, "attention.query", bias=qkv_bias),
            *_linear(f"{attention}.k_proj", LAYER, "attention.key", bias=qkv_bias),
            *_linear(f"{attention}.v_proj", LAYER, "attention.value", bias=qkv_bias),
            *norms,
            *_linear(f"{attention}.o_proj", LAYER, "attention.output", bias=output_bias),
            Row("layers.{i}.post_attention_layernorm.weight", LAYER, "mlp_norm.scale"),
            *_linear("layers.{i}.mlp.gate_proj", LAYER, "mlp.gate", bias=mlp_bias),
            *_linear("layers.{i}.mlp.up_proj", LAYER, "mlp.up", bias=mlp_bias),
            *_linear("layers.{i}.mlp.down_proj", LAYER, "mlp.down", bias=mlp_bias),
            Row("norm.weight", "final", "norm.scale"),
            HEAD,
        ),
        ignorable={
            "rotary_emb.inv_freq": "rotation frequencies follow from rope_theta",
            "layers.{i}.self_attn.rotary_emb.inv_freq": "rotation frequencies follow from rope_theta",
        },
        ties_by_default=False,
    )


_ATTENTION_BIAS = _is_true("attention_bias", default=False)
_OPT_BIAS = _is_true("enable_bias", default=True)
_OPT_AFFINE = _is_true("layer_norm_elementwise_affine", default=True)


def _opt_final_norm(config: Mapping[str, Any]) -> bool:
    """Behind the last layer: only where norms stand in front, and where it has parameters."""
    removed = config.get("_remove_final_layer_norm", False)
    return bool(config.get("do_layer_norm_before", True) and not removed and _OPT_AFFINE(config))


def _opt_projected(config: Mapping[str, Any]) -> bool:
    """Whether embedding rows are not as wide as what passes through the layers."""
    return config.get("word_embed_proj_dim") not in (None, config.get("hidden_size", 768))


def _layer_norm(hf: str, record: str, tensor: str, *, needs: Condition) -> tuple[Row, Row]:
    """Scale and bias of a layer norm, which torch calls weight and bias."""
    return (
        Row(f"{hf}.weight", record, f"{tensor}.scale", needs=needs),
        Row(f"{hf}.bias", record, f"{tensor}.bias", needs=needs),
    )


_OPT = Family(
    prefix="model.decoder.",
    rows=(
        Row("embed_tokens.weight", "embedding", "weight"),
        Row("embed_positions.weight", "stem", "positions"),
        Row("project_in.weight", "stem", "project_in.weight", needs=_opt_projected),
        *_layer_norm("layers.{i}.self_attn_layer_norm", LAYER, "attention_norm", needs=_OPT_AFFINE),
        *_linear("layers.{i}.self_attn.q_proj", LAYER, "attention.query", bias=_OPT_BIAS),
        *_linear("layers.{i}.self_attn.k_proj", LAYER, "attention.key", bias=_OPT_BIAS),
        *_linear("layers.{i}.self_attn.v_proj", LAYER, "attention.value", bias=_OPT_BIAS),
        *_linear("layers.{i}.self_attn.out_proj", LAYER, "attention.output", bias=_OPT_BIAS),
        *_layer_norm("layers.{i}.final_layer_norm", LAYER, "mlp_norm", needs=_OPT_AFFINE),
        *_linear("layers.{i}.fc1", LAYER, "mlp.up", bias=_OPT_BIAS),
        *_linear("layers.{i}.fc2", LAYER, "mlp.down", bias=_OPT_BIAS),
        *_layer_norm("final_layer_norm", "final", "norm", needs=_opt_final_norm),
        Row("project_out.weight", "final", "project_out.weight", needs=_opt_projected),
        HEAD,
    ),
    ignorable={},
    ties_by_default=True,
)

FAMILIES: Mapping[str, Family] = {
    "llama": _llama(
        qkv_bias=_ATTENTION_BIAS,
        output_bias=_ATTENTION_BIAS,
        mlp_bias=_is_true("mlp_bias", default=False),
    ),
    "mistral": _llama(),
    "opt": _OPT,
    # Its biases follow from no key.
    "qwen2": _llama(qkv_bias=lambda config: True),
    "qwen3": _llama(qkv_bias=_ATTENTION_BIAS, output_bias=_ATTENTION_BIAS, head_norms=True),
}
"""By `model_type` of config.json."""
