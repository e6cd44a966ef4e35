"""Expand on a GPU as one Pallas-Triton kernel per part: the whole part goes in, the dense rows come out.

A program expands one segment of a few rows (`kernels/config.py`), 16 bytes per thread and step
(`kernels/triton_fields.py`), and writes them with 128-bit stores, masked where a row ends. Sections have
static offsets into the part, which is passed whole: slices in front of a kernel would be copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Shaped, UInt, UInt32

from endor_jax.format.layout import DenseLayout
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.config import expand_block
from endor_jax.kernels.expand import xla
from endor_jax.kernels.expand.by_part import PartRows, expand_by_part
from endor_jax.kernels.groups import groups_of
from endor_jax.kernels.triton_fields import element_words, halves_in_order, words_in_order


def expand(
    tensor: SparseTensor, earlier: jax.Array | None = None, *, interpret: bool = False
) -> Shaped[Array, " *shape"]:
    """The dense array. See `endor_jax.kernels.expand.api.expand`.

    interpret: run the kernel's operations one by one, on any device: what the tests do where there is no GPU.
    """
    if isinstance(tensor.layout, DenseLayout):  # its own bytes: nothing to expand
        return xla.expand(tensor, earlier)
    return expand_by_part(tensor, earlier, partial(_expand_part, interpret=interpret))


def _expand_part(
    words: UInt32[Array, " words"],
    before: UInt[Array, " elements"] | None,
    *,
    waited: Sequence[UInt32[Array, 1]],
    part: PartRows,
    result: jax.ShapeDtypeStruct,
    interpret: bool,
) -> UInt[Array, " elements"]:
    """An `ExpandPart`."""
    block = expand_block(part.layout)
    others = [*waited, *([] if before is None else [before])]

    def kernel(words: Any, *references: Any) -> None:
        _kernel(words, references[-1], part)

    return pl.pallas_call(
        kernel,
        out_shape=result,
        grid=(-(-part.count // block.rows) * part.layout.segments,),
        input_output_aliases={} if before is None else {len(others): 0},
        compiler_params=pltriton.CompilerParams(num_warps=block.warps, num_stages=1),
        interpret=interpret,
        name="endor_expand",
    )(words, *others)


def _kernel(words: Any, out: Any, part: PartRows) -> None:
    """One program: a block of rows of one segment."""
    layout, rows = part.layout, part.count
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
    place = (part.first + row) * layout.columns + segment * layout.segment + column
    pltriton.store(out.at[place], elements, mask=mask)
