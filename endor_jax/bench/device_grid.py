"""Which cells a benchmark on a device measures: all there are, or those that show most in minutes.

The order matters: on a machine that is lent for minutes the last ones may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from endor_jax.bench.device_matrices import ALL_SHAPES, measured_sparsity
from endor_jax.bench.matrices import Shape, shape_name

EXPAND_CODECS = ("raw", "packed:2", "packed:3", "int8", "int4", "dense-packed:3")
EXPAND_SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LINEAR_CODECS = ("raw", "packed:2")
LINEAR_SPARSITIES = (0.5, 0.6, 0.7, 0.8)
ROWS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class ExpandCell:
    """One shape under one codec at one sparsity, the fraction of zeros."""

    shape: Shape
    codec: str
    sparsity: float

    def __str__(self) -> str:
        return f"expand {shape_name(self.shape)} {self.codec} {self.sparsity:.0%}"


def expand_cells(
    shapes: Sequence[Shape] = ALL_SHAPES,
    codecs: Sequence[str] = EXPAND_CODECS,
    sparsities: Sequence[float] = EXPAND_SPARSITIES,
) -> tuple[ExpandCell, ...]:
    """Every shape with every codec at every sparsity. Codecs without a bitmap have no zeros."""
    cells = [
        ExpandCell(shape, codec, measured_sparsity(codec, sparsity))
        for shape in shapes
        for sparsity in sparsities
        for codec in codecs
    ]
    return tuple(dict.fromkeys(cells))


def default_expand_cells() -> tuple[ExpandCell, ...]:
    """What shows most in minutes: all codecs at 50 % on the layers of Llama-2-70B, one of them at all
    sparsities, and two shapes of each of the other models at 50 %."""
    large, down, square = (28672, 8192), (8192, 28672), (8192, 8192)
    others = ((11008, 4096), (4096, 4096), (36864, 9216), (9216, 9216))
    cells = (
        *expand_cells((large, down, square), sparsities=(0.5,)),
        *expand_cells((large,)),
        *expand_cells(others, sparsities=(0.5,)),
    )
    return tuple(dict.fromkeys(cells))


@dataclass(frozen=True)
class LinearCell:
    """One shape under one codec at one sparsity, with so many rows of x."""

    shape: Shape
    codec: str
    sparsity: float
    rows: int

    def __str__(self) -> str:
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        return f"linear {shape_name(self.shape)} {self.codec} {self.sparsity:.0%}, {rows}"


def linear_cells(
    shapes: Sequence[Shape],
    codecs: Sequence[str] = LINEAR_CODECS,
    sparsities: Sequence[float] = LINEAR_SPARSITIES,
    rows: Sequence[int] = ROWS,
) -> tuple[LinearCell, ...]:
    """Every shape at every sparsity with every codec and number of rows."""
    return tuple(
        LinearCell(shape, codec, sparsity, number)
        for shape in shapes
        for sparsity in sparsities
        for codec in codecs
        for number in rows
    )


def default_linear_cells() -> tuple[LinearCell, ...]:
    """What shows most in minutes: one shape of Llama-2-70B at all sparsities with 1 and 8 rows, one of each
    other kind at 50 %, then the other numbers of rows."""
    large = (28672, 8192)
    others = ((8192, 28672), (8192, 8192), (4096, 4096), (36864, 9216))
    cells = (
        *linear_cells((large,), rows=(1, 8)),
        *linear_cells(others, ("packed:2",), (0.5,), (1, 8)),
        *linear_cells((large,)),
    )
    return tuple(dict.fromkeys(cells))
