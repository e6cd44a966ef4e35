"""How the records of a model are cut into parts: layers as a whole, vocabulary matrices in blocks."""

from __future__ import annotations

from collections.abc import Mapping

from endor_jax.arrays import FLOAT_FORMATS, array_bytes
from endor_jax.format.layout import RecordLayout, TensorSpec, matrix_shape, plan_layout
from endor_jax.store.save import layout_for


def record_layouts(specs: Mapping[str, Mapping[str, TensorSpec]]) -> dict[str, RecordLayout]:
    """A layout per record; vocabulary matrices are cut into blocks no larger than the largest layer part."""
    result = {record: layout_for(tensors) for record, tensors in specs.items()}
    layer_bytes = max(
        sum(_bound_bytes(spec) for spec in tensors.values()) // result[record].parts
        for record, tensors in specs.items()
        if record.startswith("layers.")
    )
    for record in ("embedding", "head"):
        if record in specs:
            size = sum(_bound_bytes(spec) for spec in specs[record].values())
            blocks = max(result[record].parts, -(-size // layer_bytes))
            result[record] = plan_layout(specs[record], parts=blocks)
    return result


def _bound_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor's fields if all were stored; its own bytes if it is dense."""
    if spec.codec is None:
        return array_bytes(spec.shape, spec.dtype)
    rows, columns = matrix_shape(spec.shape)
    bits = spec.codec.field_bits(FLOAT_FORMATS[spec.dtype])
    return rows * columns * bits // 8
