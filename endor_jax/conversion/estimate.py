"""What a checkpoint will take, before there is one: a manifest whose part lengths are estimates.

Sections are exact, because they follow from shapes and codecs. Streams and escapes are expected values from
the fraction of zeros and from the escape rates measured in docs/format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from endor_jax import models
from endor_jax.arrays import FLOAT_FORMATS, round_up
from endor_jax.conversion.layouts import record_layouts
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.encode import escape_words
from endor_jax.format.layout import FieldLayout, RecordLayout, TensorSpec, padding_words
from endor_jax.format.values import Codec
from endor_jax.sources.mapping import locate
from endor_jax.sources.source import Source, TensorInfo
from endor_jax.store.manifest import Manifest, Part, Signature, StoredRecord, size_classes
from endor_jax.store.part import PAGE_BYTES
from endor_jax.store.save import SMALL_ELEMENTS

WORTH_A_BITMAP = 0.12
"""Below this sparsity a bitmap (1 bit per element) costs more than the fields it saves."""
ESCAPE_RATES = {("packed", 3, False): 0.014, ("packed", 2, True): 0.0055}
"""Escapes per stored element, by kind, exponent bits and bitmap: stories15M, docs/format.md."""

MOST_LAYERS = 10_000
"""The largest models have a few hundred."""

Share = Callable[[str, str], float]
"""(record, tensor) -> a share of its elements, 0 to 1."""


def expected_codec(sparsity: float) -> Codec:
    """The codec that `auto` takes for trained weights of this sparsity, as a rule."""
    return Codec("packed", 3, bitmap=False) if sparsity < WORTH_A_BITMAP else Codec("packed", 2)


def estimate_config(config: Mapping[str, Any], *, dtype: str, sparsity: float, shards: int = 1) -> Manifest:
    """The manifest that converting a model of this config.json would give, its layers pruned to `sparsity`.

    Raises what `models.from_hf` raises, OptionError for a dtype, a sparsity or shards that `convert` refuses.
    """
    # Refuses what it would refuse.
    ConvertSettings(prune="magnitude", sparsity=sparsity, dtype=dtype, shards=shards)
    infos = {
        record: {name: TensorInfo(shape, dtype) for name, shape in named.items()}
        for record, named in models.part_shapes(models.decoder(parsed_config(config))).items()
    }
    return _estimate_infos(infos, sparsity, config, shards=shards)


def estimate_source(source: Source, *, dtype: str | None, sparsity: float, shards: int = 1) -> Manifest:
    """The manifest that converting this source would give, in its own dtypes or in `dtype`.

    Raises as `locate` and `models.from_hf` do, OptionError for a dtype, a sparsity or shards that `convert`
    refuses.
    """
    # Refuses what it would refuse.
    ConvertSettings(prune="magnitude", sparsity=sparsity, dtype=dtype, shards=shards)
    parsed_config(source.config)
    infos: dict[str, dict[str, TensorInfo]] = {}
    for place, name in locate(source).items():
        infos.setdefault(place.record, {})[place.tensor] = stored_info(source, name, dtype)
    return _estimate_infos(infos, sparsity, source.config, shards=shards)


def parsed_config(config: Mapping[str, Any]) -> models.LlamaConfig | models.OptConfig:
    """The model of a config.json, refused before anything is listed layer by layer if it has absurdly many.

    Raises what `models.from_hf` raises, InvalidInputError for more than MOST_LAYERS.
    """
    parsed = models.from_hf(config)
    if parsed.layers > MOST_LAYERS:
        raise InvalidInputError(
            "config.json",
            got=f"{parsed.layers:,} layers",
            expected=f"at most {MOST_LAYERS:,}",
            fix="the file is damaged: fetch it again",
        )
    return parsed


def stored_info(source: Source, name: str, dtype: str | None) -> TensorInfo:
    """Shape and dtype that a tensor of the source will have in the checkpoint.

    Raises UnsupportedError for a dtype that no model computes with here.
    """
    info = source.tensors[name]
    if info.dtype in FLOAT_FORMATS or (dtype and info.dtype == "float64"):
        return replace(info, dtype=dtype) if dtype else info
    raise UnsupportedError(
        f"tensor {name!r} of {source.path}",
        got=f"dtype {info.dtype}",
        expected=" or ".join(FLOAT_FORMATS),
        fix="give --dtype float32" if info.dtype == "float64" else "convert it to one of these first",
    )


def _estimate_infos(
    infos: Mapping[str, Mapping[str, TensorInfo]], sparsity: float, config: Mapping[str, Any], *, shards: int
) -> Manifest:
    def zeros(record: str, _: str) -> float:
        return sparsity if record.startswith("layers.") else 0.0

    def spec(info: TensorInfo, zeros: float) -> TensorSpec:
        matrix = len(info.shape) >= 2 and prod(info.shape) >= SMALL_ELEMENTS and info.dtype in FLOAT_FORMATS
        return TensorSpec(info.shape, info.dtype, expected_codec(zeros) if matrix else None)

    specs = {
        record: {name: spec(info, zeros(record, name)) for name, info in named.items()}
        for record, named in infos.items()
    }
    return estimate(record_layouts(specs, shards=shards), zeros, config)


def estimate(
    layouts: Mapping[str, RecordLayout],
    sparsity: Share,
    config: Mapping[str, Any] | None = None,
    *,
    escapes: Share | None = None,
) -> Manifest:
    """The manifest of records with these layouts and fractions of zeros.

    escapes: shares of the elements that have a field or would have one; None takes those of trained weights.
    """
    signatures = list(dict.fromkeys(layouts.values()))
    lengths = {name: 4 * _part_words(name, layout, sparsity, escapes) for name, layout in layouts.items()}
    records = []
    for name, layout in layouts.items():
        classes = size_classes(
            [round_up(lengths[other], PAGE_BYTES) for other, its in layouts.items() if its == layout]
        )
        buffer = min(size for size in classes if size >= lengths[name])
        part = Part("", lengths[name], buffer, 0, ())
        records.append(StoredRecord(name, signatures.index(layout), (part,) * layout.parts, {}))
    model = dict(config) if config is not None else None
    return Manifest(tuple(Signature(layout) for layout in signatures), tuple(records), model)


def _part_words(record: str, layout: RecordLayout, sparsity: Share, escapes: Share | None) -> int:
    """Expected words of one part."""
    words = layout.streams_start + padding_words(layout)
    for name, tensor in layout.tensors:
        if not isinstance(tensor, FieldLayout):
            continue
        codec = tensor.codec
        elements = tensor.rows * tensor.columns
        stored = round(elements * (1 - sparsity(record, name))) if codec.bitmap else elements
        known = ESCAPE_RATES.get((codec.kind, codec.exponent_bits, codec.bitmap), 0.0)
        listed = round(stored * (known if escapes is None else escapes(record, name)))
        words += -(-(stored - listed * codec.bitmap) * tensor.field_bits // 32)
        words += escape_words(listed, tensor.number.bits // 8)
    return words
