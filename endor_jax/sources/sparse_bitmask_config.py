"""What config.json says about compression by compressed-tensors: read, taken out, and put in.

A checkpoint may be sparse without being quantised. Then the key holds no more than how the zeros are stored:
"sparse-bitmask", or "dense" for a file full of zeros. Everything else it can hold changes what the weights
mean, and is refused by its name.
Source: compressed-tensors 0.14.0, `ModelCompressor.parse_quantization_config` and `.update_config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief

KEYS = ("quantization_config", "compression_config")
"""Where it is in config.json; the second until release 0.8."""
SPARSE_BITMASK = "sparse-bitmask"
_METHOD = "compressed-tensors"
_VERSION = "0.14.0"
_STORED_AS = (SPARSE_BITMASK, "dense")
_DESCRIBES = frozenset({"quant_method", "version", "sparsity_config", "run_compressed"})
_OF_QUANTISATION = frozenset({"quantization_status", "ignore", "global_compression_ratio", "format"})
"""Keys that say nothing as long as there is no group that is quantised."""
_SPARSITY_KEYS = frozenset(
    {
        *("format", "targets", "ignore", "global_sparsity", "sparsity_structure"),
        "registry_requires_subclass",
    }
)


def storage_of(config: Mapping[str, Any]) -> str | None:
    """How the zeros are stored: "sparse-bitmask" or "dense"; None where config.json has no such key.

    Raises UnsupportedError, naming it, for whatever changes the weights: quantisation, transforms, other
    methods and formats; InvalidInputError for a value of another type.
    """
    found = [key for key in KEYS if config.get(key) is not None]
    if not found:
        return None
    if len(found) > 1:
        raise _invalid("config.json", f"both {' and '.join(found)}", "one of them")
    key = found[0]
    value = _object(key, config[key])
    method = value.get("quant_method", _METHOD)
    if method != _METHOD:
        raise _unsupported(key, f"quant_method {brief(method)}")
    sparsity = _object(f"{key}: sparsity_config", value.get("sparsity_config") or {})
    stored_as = sparsity.get("format", "dense")
    if value.get("config_groups"):
        raise _unsupported(key, f"weights quantised as {brief(value.get('format', 'unknown'))}")
    if stored_as not in _STORED_AS:
        raise _unsupported(f"{key}: sparsity_config", f"format {brief(stored_as)}")
    if value.get("format") not in (None, *_STORED_AS):
        raise _unsupported(key, f"format {brief(value['format'])}")
    for name, entry in value.items():
        # An empty value of a key that we do not know asks for nothing.
        if name not in _DESCRIBES | _OF_QUANTISATION and entry not in (None, {}, []):
            raise _unsupported(key, f"{brief(name)}: {brief(entry)}")
    for name in sparsity:
        if name not in _SPARSITY_KEYS:
            raise _unsupported(f"{key}: sparsity_config", brief(name))
    return stored_as


def without_storage(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without what `storage_of` looks at: that of the dense model."""
    return {key: value for key, value in config.items() if key not in KEYS}


def with_storage(config: Mapping[str, Any], *, ignore: Sequence[str], sparsity: float) -> dict[str, Any]:
    """config.json of the model stored as sparse-bitmask, as the library writes it.

    ignore: names of the linear modules that are stored dense. sparsity: fraction of zeros in the model.
    """
    stored = {
        "format": SPARSE_BITMASK,
        "global_sparsity": sparsity,
        "ignore": list(ignore),
        "registry_requires_subclass": False,
        "sparsity_structure": "unstructured",
        "targets": ["Linear"],
    }
    compression = {
        "quant_method": _METHOD,
        "sparsity_config": stored,
        "transform_config": {},
        "version": _VERSION,
    }
    return without_storage(config) | {KEYS[0]: compression}


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"config.json: key '{where}'", brief(value), "an object")
    return value


def _invalid(where: str, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(where, got=got, expected=expected, fix="fetch config.json again")


def _unsupported(key: str, got: str) -> UnsupportedError:
    return UnsupportedError(
        f"config.json: key '{key}'",
        got=got,
        expected="weights that are not quantised, stored as sparse-bitmask or dense",
        fix="fetch the checkpoint that this one was made from",
    )
