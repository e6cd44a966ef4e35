"""The fused product on CPU: fields expand into registers and are multiplied there, never written to memory.

A custom call of the extension, written in C++ for each instruction set (kernels/native/, docs/kernels.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt32

from endor_jax.arrays import FLOAT_FORMATS
from endor_jax.format.layout import FieldLayout, TensorLayout
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.custom_call import attributes, call, mapped

MOST_ROWS = 32
"""Rows of x up to which the fused product is used: with more, one expansion serves so many products that a
dense one is faster (`endor bench linear`)."""
MOST_ROWS_OF_LARGE = 128
"""The same for a matrix of more than LARGE_BYTES in float32: memory for that is fresh from the system every
time, and its first touch takes as long as the product (docs/kernels.md)."""
LARGE_BYTES = 32 * 2**20


def fused(x: jax.Array | jax.ShapeDtypeStruct, layout: TensorLayout, output_dtype: DTypeLike) -> bool:
    """Whether this product is computed fused: a pure function of shapes, dtypes and layout."""
    dtypes = {jnp.dtype(x.dtype).name, jnp.dtype(output_dtype).name}
    return dtypes <= FLOAT_FORMATS.keys() and fused_rows(math.prod(x.shape[:-1]), layout)


def fused_rows(rows: int, layout: TensorLayout) -> bool:
    """Whether the product of so many rows of x with a matrix of this layout is computed fused."""
    if not isinstance(layout, FieldLayout):
        return False
    large = 4 * math.prod(layout.shape) > LARGE_BYTES
    return 1 <= rows <= (MOST_ROWS_OF_LARGE if large else MOST_ROWS)


def linear(
    x: Float[Array, "*batch inputs"],
    tensor: SparseTensor,
    output_dtype: DTypeLike,
    *,
    instruction_set: str | None = None,
) -> Float[Array, "*batch outputs"]:
    """x @ expand(tensor).T in `output_dtype`, summed in float32 and rounded once.

    x, output_dtype: bfloat16, float16 or float32. With AVX-512 a row's result does not depend on how many
    rows x has; with other instruction sets the order of its sum does. Subnormal products may count as zero,
    as everywhere in XLA on CPU. instruction_set: as in `expand`.
    Raises UnsupportedError where the extension was not built.
    """
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    described = attributes(layout, parts=len(tensor.parts), instruction_set=instruction_set)
    outputs = layout.shape[0]

    @jax.custom_batching.custom_vmap
    def product(
        x: Float[Array, "*batch inputs"], *words: UInt32[Array, " _"]
    ) -> Float[Array, "*batch outputs"]:
        result = jax.ShapeDtypeStruct((*x.shape[:-1], outputs), output_dtype)
        return call("endor_linear", result, x, *words, **described)

    @product.def_vmap
    def _(
        size: int, batched: Sequence[bool], x: Float[Array, " ..."], *words: UInt32[Array, " ..."]
    ) -> tuple[Float[Array, " ..."], bool]:
        del size
        if any(batched[1:]):
            return mapped(product, batched, x, *words), True
        return product(x, *words), True  # a batch of x is more rows of x

    return product(x, *(jnp.asarray(words) for words in tensor.parts))
