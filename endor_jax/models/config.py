"""What fixes the shapes and the arithmetic of a model: a frozen config per family, and Hugging Face's read.

A key of config.json is handled, has one value that we implement, may be ignored for a stated reason, or is
refused by name: a key nobody looked at may change what the model computes (Penzai's rule).
Keys and defaults: transformers v5, `LlamaConfig` and `OPTConfig`, and the v4 spellings they still accept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.models import hf_keys, hf_rope
from endor_jax.models.rope import Rope


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A Llama: RMSNorm, grouped-query attention with RoPE, SwiGLU (Touvron et al. 2023, arXiv 2307.09288).

    `kv_heads` is 1 for multi-query and `heads` for multi-head attention; `head_dim` need not be hidden_size /
    heads; `tied_head`: the output head is the token embedding. Raises InvalidInputError on construction
    unless every size is at least 1, kv_heads divides heads and head_dim is even (RoPE turns pairs).
    """

    family: ClassVar[str] = "llama"
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    norm_epsilon: float
    rope: Rope
    attention_bias: bool
    mlp_bias: bool
    tied_head: bool

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.heads % self.kv_heads:
            got = f"{self.heads} heads and {self.kv_heads} kv_heads"
            raise _inconsistent("LlamaConfig", got, "kv_heads divides heads")
        if self.head_dim < 2 or self.head_dim % 2:
            got = f"head_dim {self.head_dim}"
            raise _inconsistent("LlamaConfig", got, "an even head_dim of at least 2: RoPE turns pairs")


@dataclass(frozen=True, kw_only=True)
class OptConfig:
    """A pre-norm OPT: LayerNorm, learned positions, biases, ReLU (Zhang et al. 2022, arXiv 2205.01068).

    `tied_head`: the output head is the token embedding. Raises InvalidInputError on construction unless every
    size is at least 1 and heads divides hidden_size.
    """

    family: ClassVar[str] = "opt"
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    max_positions: int
    tied_head: bool
    norm_epsilon: float = 1e-5
    """transformers has no key for it: torch's LayerNorm default."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.hidden_size % self.heads:
            got = f"hidden_size {self.hidden_size} and {self.heads} heads"
            raise _inconsistent("OptConfig", got, "heads divides hidden_size")

    @property
    def kv_heads(self) -> int:
        """Heads of the key-value cache: OPT shares none."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.heads


def from_hf(config: Mapping[str, Any]) -> LlamaConfig | OptConfig:
    """The config that a parsed Hugging Face config.json describes; missing keys have transformers' defaults.

    Raises UnsupportedError for a model type, a key or a value that this version does not implement, and
    InvalidInputError for a missing `model_type`, a value of the wrong kind or sizes that contradict.
    """
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        kind = InvalidInputError if model_type is None else UnsupportedError
        raise kind(
            "config.json: key 'model_type'",
            got="no value" if model_type is None else repr(model_type),
            expected=f"one of {', '.join(sorted(_FAMILIES))}",
            fix="choose a checkpoint of a supported family",
        )
    keys, build = _FAMILIES[model_type]
    for key, value in config.items():
        if key in keys.only:
            if value not in keys.only[key]:
                raise hf_keys.unsupported(key, value, " or ".join(map(repr, keys.only[key])))
        elif key not in keys.fields and key not in keys.derived and key not in keys.ignored:
            raise hf_keys.unsupported(key, value, "no such key: this version does not know it")
    fields = {
        field.name: field.read(key, config.get(key, field.default)) for key, field in keys.fields.items()
    }
    return build(config, fields)


def _llama(config: Mapping[str, Any], fields: dict[str, Any]) -> LlamaConfig:
    heads, hidden_size = fields["heads"], fields["hidden_size"]
    # transformers derives these two when they are missing or null.
    kv_heads, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
    if head_dim is None and hidden_size % heads:
        got = f"hidden_size {hidden_size}, {heads} heads and no head_dim"
        raise _inconsistent("LlamaConfig", got, "heads divides hidden_size")
    return LlamaConfig(
        kv_heads=heads if kv_heads is None else hf_keys.size("num_key_value_heads", kv_heads),
        head_dim=hidden_size // heads if head_dim is None else hf_keys.size("head_dim", head_dim),
        rope=hf_rope.rope(config),
        **fields,
    )


def _opt(config: Mapping[str, Any], fields: dict[str, Any]) -> OptConfig:
    width = config.get("word_embed_proj_dim")
    if width not in (None, fields["hidden_size"]):
        expected = f"{fields['hidden_size']}, the hidden_size: there are no projections around the embedding"
        raise hf_keys.unsupported("word_embed_proj_dim", width, expected)
    return OptConfig(**fields)


_FAMILIES: dict[str, tuple[hf_keys.Keys, Callable[..., LlamaConfig | OptConfig]]] = {
    "llama": (hf_keys.LLAMA, _llama),
    "opt": (hf_keys.OPT, _opt),
}


def _check_sizes(config: LlamaConfig | OptConfig) -> None:
    for name in (
        "vocabulary_size",
        "hidden_size",
        "intermediate_size",
        "layers",
        "heads",
        "kv_heads",
        "max_positions",
    ):
        if getattr(config, name) < 1:
            raise _inconsistent(
                type(config).__name__, f"{name} {getattr(config, name)}", "every size at least 1"
            )


def _inconsistent(where: str, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(where, got=got, expected=expected, fix="correct the model's config.json")
