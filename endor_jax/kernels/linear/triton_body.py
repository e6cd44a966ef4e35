"""What a body of Triton's fused product is: how it wants x, and what one program of it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float, Int

from endor_jax.format.layout import FieldLayout
from endor_jax.kernels.config import LinearBlock


@dataclass(frozen=True)
class Task:
    """The product of x with one part, as its programs share it.

    words, x, out: references to the part, to x as `ProductBody.arrange` gives it, and to all sums. rows: of
    x.
    """

    words: Any
    x: Any
    out: Any
    layout: FieldLayout
    block: LinearBlock
    rows: int


@dataclass(frozen=True)
class ProductBody:
    """padded_rows(rows): how many rows of sums there are for so many rows of x.

    arrange(x, layout): x, padded to whole segments, in the order that programs read it in.
    sums_of(partial, layout, rows): what the programs wrote, by what they summed over.
    multiply(task, first, which): writes the sums over some segments of some rows of the matrix, from row
    `first` on; `which` numbers these segments.
    add_escapes(task, first, which): the same for the escapes of task.block.escape_rows rows.
    """

    tensor_cores: bool
    padded_rows: Callable[[int], int]
    arrange: Callable[[Float[Array, "rows columns"], FieldLayout], Float[Array, " numbers"]]
    sums_of: Callable[[Float[Array, " numbers"], FieldLayout, int], Float[Array, "sums rows outputs"]]
    multiply: Callable[[Task, Int[Array, ""], Int[Array, ""]], None]
    add_escapes: Callable[[Task, Int[Array, ""], int], None]
