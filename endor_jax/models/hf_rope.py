"""The rotary positions that a Hugging Face config.json asks for, in the spellings of transformers v4 and v5.

v4: `rope_theta` beside a table `rope_scaling` with `type` or `rope_type`. v5: everything in one table
`rope_parameters`. Source: transformers v5.23, modeling_rope_utils.RotaryEmbeddingConfigMixin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from endor_jax.errors import InvalidInputError
from endor_jax.models import hf_keys
from endor_jax.models.rope import LinearScaling, Llama3Scaling, Rope

_OF_KIND: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Keys that a table has by its kind: all of them, and none of the others."""
_OF_ALL = frozenset({"rope_theta", "rope_type", "type", "partial_rotary_factor"})


def rope(config: Mapping[str, Any]) -> Rope:
    """The rotary positions of a config.json; without any key, theta 10,000 and no scaling.

    As in transformers, a table that is null or empty counts as missing, `rope_scaling` comes before
    `rope_parameters`, and a `rope_theta` inside the table before the one beside it. Null for any other key is
    refused: transformers fails to compute with it. Raises UnsupportedError for a kind or a key that this
    version does not implement, InvalidInputError for a missing key and for a value of the wrong kind or size.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    table = hf_keys.table(name, config.get(name))
    kind = _kind(name, table)
    for key, value in table.items():
        if key not in _OF_ALL and key not in _OF_KIND[kind]:
            raise hf_keys.unsupported(f"{name}.{key}", value, f"no such key beside the kind '{kind}'")
    if table.get("partial_rotary_factor") not in (None, 1):
        key, value = f"{name}.partial_rotary_factor", table["partial_rotary_factor"]
        raise hf_keys.unsupported(key, value, "1: every pair of a head turns")
    theta = hf_keys.positive("rope_theta", table.get("rope_theta", config.get("rope_theta", 10_000.0)))
    values = {key: _value(name, key, table) for key in _OF_KIND[kind]}
    match kind:
        case "linear":
            return Rope(theta=theta, scaling=LinearScaling(values["factor"]))
        case "llama3":
            return Rope(theta=theta, scaling=_llama3(name, values))
        case _:
            return Rope(theta=theta)


def _kind(name: str, table: Mapping[str, Any]) -> str:
    """The table's `rope_type`, or `type` as it was called first; 'default' without either."""
    key = "rope_type" if "rope_type" in table else "type"
    kind = table.get(key, "default")
    if not isinstance(kind, str) or kind not in _OF_KIND:
        raise hf_keys.unsupported(f"{name}.{key}", kind, f"one of {', '.join(map(repr, _OF_KIND))}")
    if table.get("type", kind) != kind:
        raise InvalidInputError(
            f"config.json: key '{name}.type'",
            got=f"{table['type']!r} beside rope_type {kind!r}",
            expected="the same kind under both names",
            fix="correct the model's config.json",
        )
    return kind


def _value(name: str, key: str, table: Mapping[str, Any]) -> float | int:
    where = f"{name}.{key}"
    if key not in table:
        raise hf_keys.invalid(where, "no such key", f"it, for the kind '{_kind(name, table)}'")
    if key == "original_max_position_embeddings":
        return hf_keys.size(where, table[key])
    value = hf_keys.positive(where, table[key])
    if key == "factor" and value < 1:
        raise hf_keys.invalid(where, repr(value), "a number of at least 1")
    return value


def _llama3(name: str, values: Mapping[str, Any]) -> Llama3Scaling:
    low, high = values["low_freq_factor"], values["high_freq_factor"]
    if high <= low:
        raise hf_keys.invalid(f"{name}.high_freq_factor", f"{high!r}", f"more than low_freq_factor, {low!r}")
    return Llama3Scaling(
        factor=values["factor"],
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_max_positions=values["original_max_position_embeddings"],
    )
