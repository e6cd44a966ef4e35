"""How the records of a model are cut into parts: layers as a whole, vocabulary matrices in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from endor_jax.arrays import FLOAT_FORMATS, array_bytes
from endor_jax.format.layout import RecordLayout, TensorSpec, matrix_shape, plan_layout
from endor_jax.format.values import Codec
from endor_jax.store.save import layout_for

VOCABULARY = ("embedding", "head")
"""Records of one matrix with a row per token."""
SMALL_BLOCK_ELEMENTS = 2**22
"""Blocks need not be smaller: dense in float32 this is 16 MiB."""


def record_layouts(specs: Mapping[str, Mapping[str, TensorSpec]]) -> dict[str, RecordLayout]:
    """A layout per record; vocabulary matrices are cut into blocks no larger than the largest layer part.

    Nor than the largest matrix of a layer, once a block is dense: expanding must not take more for the head
    than for the layers. (Small models have matrices so small that blocks of them would be mere overhead.)
    """
    specs = {
        record: _cuttable(tensors) if record in VOCABULARY else tensors for record, tensors in specs.items()
    }
    result = {record: layout_for(tensors) for record, tensors in specs.items()}
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
    block_elements = max(matrix_elements, SMALL_BLOCK_ELEMENTS)
    for record in VOCABULARY:
        if record in specs:
            size = sum(_bound_bytes(spec) for spec in specs[record].values())
            elements = sum(prod(spec.shape) for spec in specs[record].values())
            blocks = max(result[record].parts, -(-size // layer_bytes), -(-elements // block_elements))
            result[record] = plan_layout(specs[record], parts=blocks)
    return result


def _cuttable(tensors: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The same with every matrix as fields: those are cut by rows, dense tensors go whole into every part."""
    raw = Codec("raw", bitmap=False)
    return {name: spec if spec.codec else replace(spec, codec=raw) for name, spec in tensors.items()}


def _bound_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor's fields if all were stored; its own bytes if it is dense."""
    if spec.codec is None:
        return array_bytes(spec.shape, spec.dtype)
    rows, columns = matrix_shape(spec.shape)
    bits = spec.codec.field_bits(FLOAT_FORMATS[spec.dtype])
    return rows * columns * bits // 8
