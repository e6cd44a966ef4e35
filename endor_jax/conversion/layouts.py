"""How the records of a model are cut into parts: layers as a whole, vocabulary matrices in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from endor_jax.arrays import FLOAT_FORMATS, array_bytes, round_up
from endor_jax.errors import OptionError
from endor_jax.format.layout import RecordLayout, TensorSpec, matrix_shape, plan_layout
from endor_jax.format.values import Codec
from endor_jax.store.save import SMALL_ELEMENTS, layout_for

VOCABULARY = ("embedding", "head")
"""Records of one matrix with a row per token."""
SMALL_BLOCK_ELEMENTS = 2**22
"""Blocks need not be smaller: dense in float32 this is 16 MiB."""
UNCOMPRESSED = Codec("raw", bitmap=False)
"""An array's own bytes as fields, which are cut by rows into parts; dense arrays go whole into every part."""

Specs = Mapping[str, Mapping[str, TensorSpec]]
"""By record and tensor."""


def record_layouts(specs: Specs, *, shards: int = 1) -> dict[str, RecordLayout]:
    """A layout per record; vocabulary matrices are cut into blocks no larger than the largest layer part.

    Nor than a shard of the largest matrix of a layer, once a block is dense: expanding must not take more for
    the head than for the layers. (Small models have matrices so small that blocks of them would be mere
    overhead.) shards: every record has a multiple of so many parts, and with more than one all its float
    matrices are fields. Raises OptionError for more shards than the smallest matrix has rows.
    """
    specs = {
        record: _cuttable(tensors) if record in VOCABULARY else tensors for record, tensors in specs.items()
    }
    result = tree_layouts(specs, shards=shards)
    layer_bytes = max(
        sum(_bound_bytes(spec) for spec in tensors.values()) // result[record].parts
        for record, tensors in specs.items()
        if record.startswith("layers.")
    )
    matrix_elements = max(
        prod(spec.shape)
        for record, tensors in specs.items()
        if record.startswith("layers.")
        for spec in tensors.values()
    )
    block_elements = max(matrix_elements // shards, SMALL_BLOCK_ELEMENTS)
    for record in VOCABULARY:
        if record in specs:
            size = sum(_bound_bytes(spec) for spec in specs[record].values())
            elements = sum(prod(spec.shape) for spec in specs[record].values())
            blocks = max(result[record].parts, -(-size // layer_bytes), -(-elements // block_elements))
            result[record] = plan_layout(specs[record], parts=round_up(blocks, shards))
    return result


def tree_layouts(specs: Specs, *, shards: int = 1) -> dict[str, RecordLayout]:
    """A layout per record of parameter trees: as few parts as the format allows, a multiple of `shards`.

    With more than one shard all float matrices are fields. Raises OptionError as `record_layouts` does.
    """
    if shards > 1:
        _check_rows(specs, shards)
        specs = {record: _cuttable(tensors) for record, tensors in specs.items()}
    result = {}
    for record, tensors in specs.items():
        fewest = layout_for(tensors).parts
        result[record] = plan_layout(tensors, parts=round_up(fewest, shards))
    return result


def _check_rows(specs: Specs, shards: int) -> None:
    """Raises OptionError if some device would have no row of a matrix: one of a size worth sharing."""
    most = min(
        (
            matrix_shape(spec.shape)[0]
            for tensors in specs.values()
            for spec in tensors.values()
            if _is_matrix(spec) and prod(spec.shape) >= SMALL_ELEMENTS
        ),
        default=1,
    )
    if shards > most:
        raise OptionError(
            "shards",
            got=str(shards),
            expected=f"at most {most:,}: the smallest matrix worth cutting has so many rows",
            fix="give the number of devices, or a small multiple of it",
        )


def _cuttable(tensors: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The same with every float matrix as fields."""
    return {
        name: replace(spec, codec=UNCOMPRESSED) if spec.codec is None and _is_matrix(spec) else spec
        for name, spec in tensors.items()
    }


def _is_matrix(spec: TensorSpec) -> bool:
    """Whether a tensor can be stored as fields."""
    return spec.dtype in FLOAT_FORMATS and len(spec.shape) >= 2 and prod(spec.shape) > 0


def _bound_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor's fields if all were stored; its own bytes if it is dense."""
    if spec.codec is None:
        return array_bytes(spec.shape, spec.dtype)
    rows, columns = matrix_shape(spec.shape)
    bits = spec.codec.field_bits(FLOAT_FORMATS[spec.dtype])
    return rows * columns * bits // 8
