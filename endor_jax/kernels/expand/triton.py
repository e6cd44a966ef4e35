"""Expand on a GPU as one Pallas-Triton kernel per part: the whole part goes in, the dense rows come out.

A program expands one segment of a few rows (`kernels/config.py`), 16 bytes per thread and step
(`kernels/triton_fields.py`), and writes them with 128-bit stores, masked where a row ends. Sections have
static offsets into the part, which is passed whole: slices in front of a kernel would be copied. Several
parts write their rows into one array in turn. Escapes are scattered over the result by XLA, in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Shaped, UInt, UInt32

from endor_jax.arrays import dtype_from_name
from endor_jax.format.layout import DenseLayout, FieldLayout, matrix_shape
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.config import expand_block
from endor_jax.kernels.custom_call import mapped, varying_as
from endor_jax.kernels.expand import xla
from endor_jax.kernels.order import first_bits
from endor_jax.kernels.triton_fields import element_words, groups_of, halves_in_order, words_in_order


def expand(
    tensor: SparseTensor, earlier: jax.Array | None = None, *, interpret: bool = False
) -> Shaped[Array, " *shape"]:
    """The dense array. See `endor_jax.kernels.expand.api.expand`.

    interpret: run the kernel's operations one by one, on any device: what the tests do where there is no GPU.
    """
    layout = tensor.layout
    if isinstance(layout, DenseLayout):  # its own bytes: nothing to expand
        return xla.expand(tensor, earlier)
    parts = len(tensor.parts)

    @jax.custom_batching.custom_vmap
    def expanded(*arrays: UInt32[Array, " ..."]) -> UInt[Array, " elements"]:
        return _expand_parts(layout, arrays[:parts], arrays[parts:], interpret=interpret)

    @expanded.def_vmap
    def _(
        size: int, batched: Sequence[bool], *arrays: UInt32[Array, " ..."]
    ) -> tuple[UInt[Array, " ..."], bool]:
        del size
        if any(batched[:parts]):
            return mapped(expanded, batched, *arrays), True
        return expanded(*arrays[:parts], *(bits[0] for bits in arrays[parts:])), False

    bits = expanded(*(jnp.asarray(words) for words in tensor.parts), *first_bits(earlier))
    return lax.bitcast_convert_type(bits.reshape(layout.shape), dtype_from_name(layout.dtype))


def _expand_parts(
    layout: FieldLayout, parts: Sequence[jax.Array], earlier: Sequence[jax.Array], *, interpret: bool
) -> UInt[Array, " elements"]:
    """All rows, as bits in row-major order; `earlier` is only waited for."""
    rows, columns = matrix_shape(layout.shape)
    bits = None
    for part, words in enumerate(parts):
        first = part * layout.rows
        if first < rows:
            bits = _expand_part(
                layout,
                words,
                bits,
                earlier,
                first=first,
                rows=min(layout.rows, rows - first),
                interpret=interpret,
            )
            if layout.escape_capacity:
                bits = xla.scatter_escapes(bits, words, layout, first=first * columns)
    assert bits is not None  # a matrix has rows
    return bits


def _expand_part(
    layout: FieldLayout,
    words: UInt32[Array, " words"],
    before: UInt[Array, " elements"] | None,
    earlier: Sequence[jax.Array],
    *,
    first: int,
    rows: int,
    interpret: bool,
) -> UInt[Array, " elements"]:
    """`before` with this part's rows, from row `first` on, in place of what was there."""
    block = expand_block(layout)
    others = [*(bits.reshape(1) for bits in earlier), *([] if before is None else [before])]
    words, *others = (varying_as(array, words, *others) for array in (words, *others))
    size = matrix_shape(layout.shape)[0] * layout.columns

    def kernel(words: Any, *references: Any) -> None:
        _kernel(words, references[-1], layout=layout, first=first, rows=rows)

    result = jax.ShapeDtypeStruct(
        (size,), layout.number.unsigned, manual_axis_type=jax.typeof(words).manual_axis_type
    )
    return pl.pallas_call(
        kernel,
        out_shape=result,
        grid=(-(-rows // block.rows) * layout.segments,),
        input_output_aliases={} if before is None else {len(others): 0},
        compiler_params=pltriton.CompilerParams(num_warps=block.warps, num_stages=1),
        interpret=interpret,
        name="endor_expand",
    )(words, *others)


def _kernel(words: Any, out: Any, *, layout: FieldLayout, first: int, rows: int) -> None:
    """One program: a block of rows of one segment."""
    block, groups = expand_block(layout), groups_of(layout)
    program = pl.program_id(0)
    segment = program % layout.segments
    row = program // layout.segments * block.rows + lax.broadcasted_iota(jnp.int32, (block.rows, 1), 0)
    group = element_words(words, layout, jnp.minimum(row, rows - 1), segment)
    elements = halves_in_order(group) if layout.number.bits == 16 else words_in_order(group)
    width = groups.width
    elements = elements.reshape(block.rows, width)
    column = lax.broadcasted_iota(jnp.int32, (block.rows, width), 1)
    mask = None
    if layout.columns % width:
        mask = segment * layout.segment + column < layout.columns
    if rows % block.rows:
        mask = (row < rows) if mask is None else mask & (row < rows)
        mask = jnp.broadcast_to(mask, elements.shape)
    place = (first + row) * layout.columns + segment * layout.segment + column
    pltriton.store(out.at[place], elements, mask=mask)
