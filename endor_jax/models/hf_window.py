"""The sliding window that a Hugging Face config.json asks for, in each family's spelling.

One compiled step serves all layers, so all of them have the same window, or none has. Every published dense
checkpoint of the families is so. Source: transformers v5.23, `MistralConfig`, `Qwen2Config`, `Qwen3Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from endor_jax.models import hf_keys

_FULL, _SLIDING = "full_attention", "sliding_attention"


def of_mistral(config: Mapping[str, Any]) -> int | None:
    """`sliding_window`, for every layer; null for full attention, 4096 if there is no such key.

    Raises InvalidInputError for any other value.
    """
    return hf_keys.size_or_null("sliding_window", config.get("sliding_window", 4096))


def of_qwen(config: Mapping[str, Any], layers: int) -> int | None:
    """`sliding_window` if `use_sliding_window` is true and every layer is said to have it.

    Which have it is in `layer_types` (transformers v5), or else they are those from number
    `max_window_layers` on (v4). Raises UnsupportedError if some layers have it and some have not,
    InvalidInputError for values of the wrong kind or that contradict.
    """
    used = hf_keys.flag("use_sliding_window", config.get("use_sliding_window", False))
    window = hf_keys.size_or_null("sliding_window", config.get("sliding_window", 4096))
    full = hf_keys.count("max_window_layers", config.get("max_window_layers", 28)) if used else 0
    window = window if used else None
    types = config.get("layer_types")
    if types is not None:
        key, kinds = "layer_types", _kinds(types, layers)
    else:
        key, kinds = "max_window_layers", set()
        kinds |= {_FULL} if window is None or full > 0 else set()
        kinds |= {_SLIDING} if window is not None and full < layers else set()
    if kinds == {_FULL}:
        return None
    if window is None:
        raise hf_keys.invalid(key, f"'{_SLIDING}' without a window", "use_sliding_window and sliding_window")
    if len(kinds) > 1:
        raise hf_keys.unsupported(key, config.get(key, full), f"the same for all of the {layers} layers")
    return window


def _kinds(types: Any, layers: int) -> set[str]:
    """The distinct kinds of layers that a `layer_types` lists."""
    if not isinstance(types, list) or len(types) != layers:
        got = f"{len(types)} of them" if isinstance(types, list) else repr(types)
        raise hf_keys.invalid("layer_types", got, f"a list with one for each of the {layers} layers")
    for kind in types:
        if kind not in (_FULL, _SLIDING):
            raise hf_keys.unsupported("layer_types", kind, f"'{_FULL}' or '{_SLIDING}'")
    return set(types)
