"""How a Pallas-Triton kernel cuts a matrix into programs: pure functions of the layout, with reasons."""

from __future__ import annotations

from dataclasses import dataclass

from endor_jax.format.layout import FieldLayout
from endor_jax.kernels.triton_fields import groups_of

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
