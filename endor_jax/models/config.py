"""What fixes the shapes and the arithmetic of a model: a frozen config per family, and Hugging Face's read.

A key of config.json is handled, has one value that we implement, may be ignored for a stated reason, or is
refused by name: a key nobody looked at may change what the model computes (Penzai's rule).
Keys and defaults: the config classes of transformers v5, and the v4 spellings they still accept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.models import hf_keys, hf_rope, hf_window
from endor_jax.models.rope import Rope


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A Llama: RMSNorm, grouped-query attention with RoPE, SwiGLU (Touvron et al. 2023, arXiv 2307.09288).

    So are Mistral, Qwen2 and Qwen3. `window`: a query sees so many positions, its own included; None for all
    up to its own. `qkv_bias`, `output_bias`, `mlp_bias`: which matrices have biases. `head_norms`: an RMSNorm
    of every query and key before RoPE.

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
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tied_head: bool
    head_norms: bool = False
    window: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.heads % self.kv_heads:
            got = f"{self.heads} heads and {self.kv_heads} kv_heads"
            raise _inconsistent("LlamaConfig", got, "kv_heads divides heads")
        if self.head_dim < 2 or self.head_dim % 2:
            got = f"head_dim {self.head_dim}"
            raise _inconsistent("LlamaConfig", got, "an even head_dim of at least 2: RoPE turns pairs")
        if self.window is not None and self.window < 1:
            raise _inconsistent("LlamaConfig", f"window {self.window}", "at least 1, or None")

    @property
    def embedding_size(self) -> int:
        """Width of the embedding rows, and of what the output head multiplies."""
        return self.hidden_size


@dataclass(frozen=True, kw_only=True)
class OptConfig:
    """An OPT: LayerNorm, learned positions, MLPs without gates (Zhang et al. 2022, arXiv 2205.01068).

    `tied_head`: the output head is the token embedding. `projected_size`: width of the embedding rows where a
    matrix makes hidden_size of them, and another one the reverse in front of the head; None without these.
    `pre_norm`: norms stand in front of attention and MLP, not behind the sums. `final_norm`: there is one
    behind the last block. `bias`: of all matrices of the blocks. `affine_norms`: norms have parameters.
    Defaults are what most of the family has. Raises InvalidInputError on construction unless every size is at
    least 1 and heads divides hidden_size.
    """

    family: ClassVar[str] = "opt"
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    max_positions: int
    tied_head: bool
    projected_size: int | None = None
    pre_norm: bool = True
    final_norm: bool = True
    bias: bool = True
    affine_norms: bool = True
    activation: Literal["relu", "gelu"] = "relu"
    """gelu is the exact one, by the error function."""
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

    @property
    def embedding_size(self) -> int:
        """Width of the embedding rows, and of what the output head multiplies."""
        return self.hidden_size if self.projected_size is None else self.projected_size


def from_hf(config: Mapping[str, Any]) -> LlamaConfig | OptConfig:
    """The config that a parsed Hugging Face config.json describes; missing keys have transformers' defaults.

    Raises UnsupportedError for a model type, a key or a value that this version does not implement, and
    InvalidInputError for a missing `model_type`, a value of the wrong kind or sizes that contradict.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        kind = InvalidInputError if model_type is None else UnsupportedError
        raise kind(
            "config.json: key 'model_type'",
            got="no value" if model_type is None else repr(model_type),
            expected=f"one of {', '.join(sorted(_FAMILIES))}",
            fix="this version reads no other families; choose a checkpoint of one of these",
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
    biased = hf_keys.flag("attention_bias", config.get("attention_bias", False))
    return _llama_like(config, fields, qkv_bias=biased, output_bias=biased)


def _mistral(config: Mapping[str, Any], fields: dict[str, Any]) -> LlamaConfig:
    fields |= {"mlp_bias": False, "window": hf_window.of_mistral(config)}
    return _llama_like(config, fields, qkv_bias=False, output_bias=False)


def _qwen2(config: Mapping[str, Any], fields: dict[str, Any]) -> LlamaConfig:
    fields |= {"mlp_bias": False, "window": hf_window.of_qwen(config, fields["layers"])}
    return _llama_like(config, fields, qkv_bias=True, output_bias=False)


def _qwen3(config: Mapping[str, Any], fields: dict[str, Any]) -> LlamaConfig:
    biased = hf_keys.flag("attention_bias", config.get("attention_bias", False))
    fields |= {"mlp_bias": False, "head_norms": True, "window": hf_window.of_qwen(config, fields["layers"])}
    return _llama_like(config, fields, qkv_bias=biased, output_bias=biased)


def _llama_like(
    config: Mapping[str, Any], fields: dict[str, Any], *, qkv_bias: bool, output_bias: bool
) -> LlamaConfig:
    """With what transformers derives when it is missing or null."""
    heads, hidden_size = fields["heads"], fields["hidden_size"]
    if fields["head_dim"] is None and hidden_size % heads:
        got = f"hidden_size {hidden_size}, {heads} heads and no head_dim"
        raise _inconsistent("LlamaConfig", got, "heads divides hidden_size")
    derived = {
        "kv_heads": fields["kv_heads"] or heads,
        "head_dim": fields["head_dim"] or hidden_size // heads,
        "rope": hf_rope.rope(config),
    }
    return LlamaConfig(**fields | derived, qkv_bias=qkv_bias, output_bias=output_bias)


def _opt(config: Mapping[str, Any], fields: dict[str, Any]) -> OptConfig:
    width = hf_keys.size_or_null("word_embed_proj_dim", config.get("word_embed_proj_dim"))
    removed = hf_keys.flag("_remove_final_layer_norm", config.get("_remove_final_layer_norm", False))
    activation = config.get("activation_function", "relu")
    if activation not in ("relu", "gelu"):
        raise hf_keys.unsupported("activation_function", activation, "'relu' or 'gelu'")
    return OptConfig(
        projected_size=None if width == fields["hidden_size"] else width,
        final_norm=fields["pre_norm"] and not removed,
        activation=activation,
        **fields,
    )


_FAMILIES: dict[str, tuple[hf_keys.Keys, Callable[..., LlamaConfig | OptConfig]]] = {
    "llama": (hf_keys.LLAMA, _llama),
    "mistral": (hf_keys.MISTRAL, _mistral),
    "opt": (hf_keys.OPT, _opt),
    "qwen2": (hf_keys.QWEN2, _qwen2),
    "qwen3": (hf_keys.QWEN3, _qwen3),
}
"""By `model_type`: its keys, and what makes a config of them."""


def _check_sizes(config: LlamaConfig | OptConfig) -> None:
    for name in (
        "vocabulary_size",
        "hidden_size",
        "intermediate_size",
        "layers",
        "heads",
        "kv_heads",
        "max_positions",
        "embedding_size",
    ):
        if getattr(config, name) < 1:
            raise _inconsistent(
                type(config).__name__, f"{name} {getattr(config, name)}", "every size at least 1"
            )


def _inconsistent(where: str, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(where, got=got, expected=expected, fix="correct the model's config.json")
