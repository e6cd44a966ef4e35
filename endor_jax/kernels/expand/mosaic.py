"""Expand on a Hopper GPU as one Pallas Mosaic kernel per part. Not offered: it has never run on a device.

What `kernels/expand/triton.py` does, for the Pallas backend that stays. A program is a warpgroup; each of its
four warps expands what a program of Triton's does: 32 words of the bitmap, of one segment of a row or of as
many short rows. Thread l of a warp has word l, and from there on groups l, l + 32, l + 64, ... of columns
(`kernels/groups.py`). Words and running sums reach the groups by shuffles, through no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Shaped, UInt, UInt32

from endor_jax.format.bitmap import words_per_row
from endor_jax.format.layout import DenseLayout, FieldLayout
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.config import expand_block
from endor_jax.kernels.expand import xla
from endor_jax.kernels.expand.by_part import PartRows, expand_by_part
from endor_jax.kernels.groups import SEGMENT_WORDS, Location, Part, group_elements, groups_of
from endor_jax.kernels.warpgroup import WARP, WARPS, Warpgroup, warpgroup


def expand(tensor: SparseTensor, earlier: jax.Array | None = None) -> Shaped[Array, " *shape"]:
    """The dense array. See `endor_jax.kernels.expand.api.expand`.

    On jax 0.11 a tensor of several parts inside shard_map needs check_vma=False: Pallas says so.
    """
    if isinstance(tensor.layout, DenseLayout):  # its own bytes: nothing to expand
        return xla.expand(tensor, earlier)
    return expand_by_part(tensor, earlier, _expand_part)


def _expand_part(
    words: UInt32[Array, " words"],
    before: UInt[Array, " elements"] | None,
    *,
    waited: Sequence[UInt32[Array, 1]],
    part: PartRows,
    result: jax.ShapeDtypeStruct,
) -> UInt[Array, " elements"]:
    """An `ExpandPart`."""
    row_bytes, length = part.layout.columns * part.layout.number.bits // 8, words.shape[0]

    def endor_expand(words: Any, *references: Any) -> None:
        warps = warpgroup(words, references[-1], row_bytes=row_bytes)
        program = lax.axis_index("program").astype(jnp.uint32)
        expand_program(warps, part, program=program, length=length)

    kernel: Any = partial(  # its type says that it might return a decorator
        pl.kernel,
        endor_expand,
        mesh=plgpu.Mesh(grid=(programs(part),), grid_names=("program",)),
        compiler_params=plgpu.CompilerParams(),
        name="endor_expand",
    )
    if before is None:
        return kernel(out_type=result)(words, *waited)
    return pl.run_state(lambda out: kernel()(words, *waited, out))(before)


def programs(part: PartRows) -> int:
    """How many a part takes."""
    return -(-part.count // _rows_at_once(part.layout)) * part.layout.segments


def expand_program(warps: Warpgroup, part: PartRows, *, program: UInt32[Array, " ..."], length: int) -> None:
    """One program: one segment of as many rows as four warps expand. length: of the part, in words."""
    layout, groups = part.layout, groups_of(part.layout)
    number = warps.numbers(SEGMENT_WORDS * groups.per_word // WARP)
    in_warp = number // (WARP * WARPS) * WARP + number % WARP
    row = _first_row(program, layout) + number // WARP % WARPS * expand_block(layout).rows
    row = row + in_warp // groups.count
    at = Location(jnp.minimum(row, part.count - 1), program % layout.segments, in_warp % groups.count)
    position = warps.load(layout.offsets.start + at.row * layout.segments + at.segment)
    present = None
    if layout.bitmap is None:
        rank = at.group * jnp.uint32(groups.columns)
    else:
        present, rank = _present_and_rank(warps, part, program, in_warp)
    elements = group_elements(
        Part(warps.load, length),
        layout,
        at,
        position=position + rank * jnp.uint32(layout.field_bits),
        present=present,
    )
    column = at.segment * layout.segment + at.group * groups.columns
    left = None
    if layout.columns % groups.width or part.count % _rows_at_once(layout):
        left = layout.columns - jnp.minimum(column, layout.columns)
        left = jnp.where(row < part.count, left, 0)
    warps.store(elements, (part.first + row) * layout.columns + column, left)


def _rows_at_once(layout: FieldLayout) -> int:
    return WARPS * expand_block(layout).rows


def _first_row(program: UInt32[Array, " ..."], layout: FieldLayout) -> UInt32[Array, " ..."]:
    return program // layout.segments * _rows_at_once(layout)


def _present_and_rank(
    warps: Warpgroup, part: PartRows, program: UInt32[Array, " ..."], in_warp: UInt32[Array, " ..."]
) -> tuple[UInt32[Array, " ..."], UInt32[Array, " ..."]]:
    """The bitmap of each group in the low bits, anything above; and how many fields its segment has before
    it: a running sum over the words of the segment, one per thread, then the bits below within the word.

    in_warp: the number of each group, among those of its warp.
    """
    layout, groups = part.layout, groups_of(part.layout)
    assert layout.bitmap is not None
    thread = warps.numbers(1)
    lane = thread % WARP
    word = lane % groups.words
    row = _first_row(program, layout) + thread // WARP * expand_block(layout).rows + lane // groups.words
    in_row, first = words_per_row(layout.columns), program % layout.segments * SEGMENT_WORDS
    place = layout.bitmap.start + jnp.minimum(row, part.count - 1) * in_row + first + word
    if in_row % groups.words:
        exists = first + word < in_row
        own = jnp.where(exists, warps.load(jnp.where(exists, place, layout.bitmap.start)), 0)
    else:
        own = warps.load(place)
    counts = warps.count_bits(own)
    sums, distance = counts, 1
    while distance < groups.words:
        below = warps.from_lane(sums, (lane - distance) % WARP)
        sums = sums + jnp.where(word < distance, 0, below)
        distance *= 2
    holder = in_warp // groups.per_word
    own, before = warps.from_lane(own, holder), warps.from_lane(sums - counts, holder)
    shift = in_warp % groups.per_word * groups.columns
    below = warps.count_bits(own & ((jnp.uint32(1) << shift) - 1))
    return own >> shift, before + below
