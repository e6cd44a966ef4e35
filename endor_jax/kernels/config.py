"""How a Pallas-Triton kernel cuts a matrix into programs: pure functions of the layout, with reasons."""

from __future__ import annotations

from dataclasses import dataclass

from endor_jax.format.layout import FieldLayout
from endor_jax.kernels.groups import groups_of

WARP = 32
"""Threads of a warp, of every CUDA device."""


@dataclass(frozen=True)
class Block:
    """What one program does: `rows` rows of one segment, with so many warps."""

    rows: int
    warps: int


def expand_block(layout: FieldLayout) -> Block:
    """One warp, which counts the bits of one segment of 32 words, or of as many short rows.

    Machine instructions per element, bfloat16 `packed:2`, sm_90a (docs/kernels.md): 11.1 with one segment
    and one warp, 14.1 with 4 and 4 (which row a thread has is then computed by each of them), 12.1 with two
    segments for one warp, and 64 registers instead of 46.
    """
    return Block(rows=max(1, WARP // groups_of(layout).words), warps=1)


@dataclass(frozen=True)
class LinearBlock:
    """What one program of a product does: `rows` rows of the matrix and up to `segments` segments of each;
    of these `at_once` rows and `words` words of the bitmap at a time. escape_rows: those of a program for
    escapes."""

    rows: int
    at_once: int
    segments: int
    words: int
    warps: int
    escape_rows: int


TILE_ROWS, TILE_WORDS, TILE_WARPS = 64, 4, 4
"""A tile for tensor cores, 64 rows by 128 columns: the least that wgmma takes, with four warps.

Machine instructions of the whole kernel per element of a tile, bfloat16 `packed:2`, 8 rows of x, sm_90a, and
registers: 64 x 128 by four warps 12.9 and 80; 128 x 128 by eight 12.7 and 107; 64 x 256 by four 14.6 and 176;
32 x 1024 by four 15.3 and 238 (`mma`, not wgmma; `int4` spills); 64 x 256 by eight 16.6 and 98; 16 x 256 by
four 23.9 and 102. Of the loop alone, the first takes 10.6.
"""
PROGRAMS = 768
"""Programs that a large device runs at once: six, of four warps with 80 registers, for each of an H200's 132
multiprocessors."""
ESCAPE_ROWS, VECTOR_ESCAPE_ROWS = 16, 4
"""Rows of a program for escapes: on tensor cores the least that Triton gives them, else what one warp has
registers for. With 64 a chunk of escapes and its columns of x took 168 registers, and so all programs."""
SUMS_SHARE = 8
"""The sums that programs write take less than this fraction of the dense matrix; where they cannot, a
product is not fused (`linear/triton.py`)."""


def most_sums(layout: FieldLayout, *, rows: int) -> int:
    """How many times the products with so many rows, in float32, are less than that fraction, escapes left
    aside, which have sums of their own."""
    fraction = layout.columns * layout.number.bits // 8 // SUMS_SHARE
    return (fraction - 1) // (4 * rows) - (layout.escape_capacity > 0)


def linear_block(layout: FieldLayout, *, tensor_cores: bool, rows: int) -> LinearBlock:
    """For so many rows of sums. The vector body: one warp, which reads its columns of x once for several rows
    of the matrix, and one segment, since its sums are few. Tensor cores: as many segments in turn as leave
    programs enough for the device, or more, if their sums would become large.
    """
    words = groups_of(layout).words
    if not tensor_cores:
        at_once = expand_block(layout).rows
        return LinearBlock(4 * at_once, at_once, 1, words, warps=1, escape_rows=VECTOR_ESCAPE_ROWS)
    blocks = -(-layout.rows // TILE_ROWS)
    sums = max(1, min(layout.segments, -(-PROGRAMS // blocks), most_sums(layout, rows=rows)))
    segments = -(-layout.segments // sums)
    words = min(words, TILE_WORDS)
    return LinearBlock(TILE_ROWS, TILE_ROWS, segments, words, TILE_WARPS, ESCAPE_ROWS)
