"""The key tables: which tensor of a Hugging Face checkpoint is which tensor of ours, per family, as data.

Ours is made of records (what is streamed as one piece): "embedding", "stem" (what else happens before the
first layer), "layers.{i}", "final" and "head" (absent when tied). Inside a record, tensors have the paths
of the modules in `endor_jax.models`. A table row is a pair of patterns in which {i} is a layer number.

Source: `state_dict` of transformers' LlamaForCausalLM and OPTForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LAYER = "layers.{i}"


@dataclass(frozen=True)
class Row:
    """A tensor there and here. `needs` is the config key that must be true for it to exist, if any."""

    hf: str
    record: str
    tensor: str
    needs: str | None = None


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


def _rows(hf: str, record: str, tensor: str, *, bias_needs: str | None) -> tuple[Row, Row]:
    """Weight and bias of a linear layer; the bias is there if the config key is true."""
    return (
        Row(f"{hf}.weight", record, f"{tensor}.weight"),
        Row(f"{hf}.bias", record, f"{tensor}.bias", needs=bias_needs),
    )


def _norm(hf: str, record: str, tensor: str) -> tuple[Row, Row]:
    """Scale and bias of a layer norm, which torch calls weight and bias."""
    return (Row(f"{hf}.weight", record, f"{tensor}.scale"), Row(f"{hf}.bias", record, f"{tensor}.bias"))


HEAD = Row("lm_head.weight", "head", "weight")

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        prefix="model.",
        rows=(
            Row("embed_tokens.weight", "embedding", "weight"),
            Row("layers.{i}.input_layernorm.weight", LAYER, "attention_norm.scale"),
            *_rows("layers.{i}.self_attn.q_proj", LAYER, "attention.query", bias_needs="attention_bias"),
            *_rows("layers.{i}.self_attn.k_proj", LAYER, "attention.key", bias_needs="attention_bias"),
            *_rows("layers.{i}.self_attn.v_proj", LAYER, "attention.value", bias_needs="attention_bias"),
            *_rows("layers.{i}.self_attn.o_proj", LAYER, "attention.output", bias_needs="attention_bias"),
            Row("layers.{i}.post_attention_layernorm.weight", LAYER, "mlp_norm.scale"),
            *_rows("layers.{i}.mlp.gate_proj", LAYER, "mlp.gate", bias_needs="mlp_bias"),
            *_rows("layers.{i}.mlp.up_proj", LAYER, "mlp.up", bias_needs="mlp_bias"),
            *_rows("layers.{i}.mlp.down_proj", LAYER, "mlp.down", bias_needs="mlp_bias"),
            Row("norm.weight", "final", "norm.scale"),
            HEAD,
        ),
        ignorable={
            "rotary_emb.inv_freq": "rotation frequencies follow from rope_theta",
            "layers.{i}.self_attn.rotary_emb.inv_freq": "rotation frequencies follow from rope_theta",
        },
        ties_by_default=False,
    ),
    "opt": Family(
        prefix="model.decoder.",
        rows=(
            Row("embed_tokens.weight", "embedding", "weight"),
            Row("embed_positions.weight", "stem", "positions"),
            *_norm("layers.{i}.self_attn_layer_norm", LAYER, "attention_norm"),
            *_rows("layers.{i}.self_attn.q_proj", LAYER, "attention.query", bias_needs=None),
            *_rows("layers.{i}.self_attn.k_proj", LAYER, "attention.key", bias_needs=None),
            *_rows("layers.{i}.self_attn.v_proj", LAYER, "attention.value", bias_needs=None),
            *_rows("layers.{i}.self_attn.out_proj", LAYER, "attention.output", bias_needs=None),
            *_norm("layers.{i}.final_layer_norm", LAYER, "mlp_norm"),
            *_rows("layers.{i}.fc1", LAYER, "mlp.up", bias_needs=None),
            *_rows("layers.{i}.fc2", LAYER, "mlp.down", bias_needs=None),
            *_norm("final_layer_norm", "final", "norm"),
            HEAD,
        ),
        ignorable={},
        ties_by_default=True,
    ),
}
"""By `model_type` of config.json."""
