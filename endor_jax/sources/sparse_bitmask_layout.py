"""The `sparse-bitmask` layout of compressed-tensors: one matrix as four tensors, and back.

A module M with a weight of R × C is stored as
    M.shape        int64 (2,): R, C
    M.compressed   (n,) in the dtype of the weight: what is kept, row by row
    M.bitmask      uint8 (R, ceil(C / 8)): bit j % 8 of byte j // 8 says whether column j is kept
    M.row_offsets  int64 (R,): how many values are kept before the row
Bits past the last column are 0. Releases up to 0.8 put ".weight" before these suffixes.

Source: compressed-tensors 0.14.0 (the last release that had it), `sparse_compressors/sparse_bitmask.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from endor_jax.arrays import bits_of
from endor_jax.errors import InvalidInputError
from endor_jax.sources.brief import brief
from endor_jax.sources.source import TensorInfo

SUFFIXES = ("shape", "compressed", "bitmask", "row_offsets")
"""The tensors of one matrix, in the order in which the library makes them."""


def compressed_infos(shape: tuple[int, ...], dtype: str, *, nonzero: int) -> dict[str, TensorInfo]:
    """By suffix, what `compress` makes of a matrix that has `nonzero` elements with other bits than +0.0."""
    rows, columns = shape
    return {
        "shape": TensorInfo((2,), "int64"),
        "compressed": TensorInfo((nonzero,), dtype),
        "bitmask": TensorInfo((rows, -(-columns // 8)), "uint8"),
        "row_offsets": TensorInfo((rows,), "int64"),
    }


def compress(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """(rows, columns) -> its four tensors by suffix.

    What has the bits of +0.0 is left out. The library leaves out −0.0 too, which then comes back as +0.0;
    here every bit comes back. Import makes them +0.0, so that there are none unless they were asked for.
    """
    kept = bits_of(matrix) != 0
    counts = kept.sum(axis=1, dtype=np.int64)
    return {
        "shape": np.array(matrix.shape, np.int64),
        "compressed": matrix[kept],
        "bitmask": np.packbits(kept, axis=1, bitorder="little"),
        "row_offsets": np.cumsum(counts) - counts,
    }


def check_infos(where: str, shape: tuple[int, int], infos: Mapping[str, TensorInfo]) -> None:
    """Raises InvalidInputError unless the tensors of one matrix have the shapes and dtypes they must have.

    Nothing of the size of the matrix is allocated before this: the bitmask on disk bounds it.
    """
    rows, columns = shape
    values = infos["compressed"]
    if len(values.shape) != 1 or values.shape[0] > rows * columns:
        raise _damaged(f"{where}.compressed", f"shape {values.shape}", f"at most {rows * columns:,} values")
    expected = compressed_infos(shape, values.dtype, nonzero=values.shape[0])
    for suffix in SUFFIXES:
        if infos[suffix] != expected[suffix]:
            got, wanted = infos[suffix], expected[suffix]
            raise _damaged(
                f"{where}.{suffix}", f"{got.dtype} {got.shape}", f"{wanted.dtype} {wanted.shape} for {shape}"
            )


def expand(where: str, shape: tuple[int, int], tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The dense matrix of tensors that `check_infos` passed, by suffix ("shape" is not looked at).

    Raises InvalidInputError if bits are set past the last column, or bitmask, offsets and number of values
    do not agree.
    """
    rows, columns = shape
    bitmask, values = tensors["bitmask"], tensors["compressed"]
    counts = np.bitwise_count(bitmask).sum(axis=1, dtype=np.int64)
    if columns % 8 and np.any(bitmask[:, -1] >> np.uint8(columns % 8)):
        raise _damaged(f"{where}.bitmask", "bits past the last column", f"none past column {columns:,}")
    if counts.sum() != values.shape[0]:
        raise _damaged(
            f"{where}.compressed", f"{values.shape[0]:,} values", f"{counts.sum():,}, as its bitmask"
        )
    wrong = np.flatnonzero(tensors["row_offsets"] != np.cumsum(counts) - counts)
    if wrong.size:
        raise _damaged(
            f"{where}.row_offsets",
            f"{brief(int(tensors['row_offsets'][wrong[0]]))} for row {wrong[0]:,}",
            f"{counts[: wrong[0]].sum():,}, the values that the bitmask has before it",
        )
    dense = np.zeros((rows, columns), values.dtype)
    dense[np.unpackbits(bitmask, axis=1, count=columns, bitorder="little").view(bool)] = values
    return dense


def _damaged(where: str, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(where, got=got, expected=expected, fix="the file is damaged: fetch it again")
