"""What every operation asks of the words it is given, before any implementation sees them."""

from __future__ import annotations

from endor_jax.errors import InvalidInputError
from endor_jax.format.layout import STREAM_WORDS, DenseLayout, TensorLayout
from endor_jax.format.tensor import SparseTensor


def check_parts(where: str, tensor: SparseTensor) -> None:
    """Raises InvalidInputError unless all parts are uint32 vectors that hold what the layout says."""
    least = least_words(tensor.layout)
    for words in tensor.parts:
        if words.dtype != "uint32" or len(words.shape) != 1:
            raise InvalidInputError(
                where,
                got=f"a part of dtype {words.dtype} and shape {words.shape}",
                expected="uint32 vectors",
                fix="pass what encode or record[name] gave; use jax.vmap for a batch",
            )
        if words.shape[0] < least:
            raise InvalidInputError(
                where,
                got=f"a part of {words.shape[0]:,} words, shorter than its layout says",
                expected=f"at least {least:,}",
                fix="pass what encode or record[name] gave",
            )


def least_words(layout: TensorLayout) -> int:
    """Words that a part with this tensor has at least: its sections, and the padding that lets a decoder read
    one segment ahead (docs/format.md, "Part")."""
    if isinstance(layout, DenseLayout):
        return layout.data.stop
    sections = max(section.stop for section in layout.sections)
    return sections + STREAM_WORDS + -(-layout.segment * layout.field_bits // 32)
