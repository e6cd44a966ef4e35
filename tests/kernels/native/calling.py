"""The kernels called through ctypes, one instruction set by name, and what a product may differ by."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np

from endor_jax import native
from endor_jax.arrays import bits_of, dtype_from_name
from endor_jax.format.layout import FieldLayout, matrix_shape
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.custom_call import attributes


def numbers_of(tensor: SparseTensor) -> Mapping[str, int]:
    """The members of `EndorMatrix` that are numbers, in order."""
    assert isinstance(tensor.layout, FieldLayout)
    described = attributes(tensor.layout, parts=len(tensor.parts), instruction_set=None)
    return {name: int(value) for name, value in described.items() if name != "instruction_set"}


def expand(tensor: SparseTensor, instruction_set: str, *, widen: bool = False) -> np.ndarray:
    """The expanded array, as float32 if `widen`."""
    out = np.empty(tensor.shape, np.float32 if widen else dtype_from_name(tensor.dtype))
    call("endor_expand", tensor, instruction_set, int(widen), native.pointer(out))
    return out


def multiply(tensor: SparseTensor, instruction_set: str, x: np.ndarray, *, dtype: str) -> np.ndarray:
    """x (n, columns) times the matrix, transposed: (n, rows) of `dtype`."""
    assert x.flags.c_contiguous
    out = np.empty((len(x), matrix_shape(tensor.shape)[0]), dtype_from_name(dtype))
    types = [native.NUMBERS[x.dtype.name], len(x), native.pointer(x), native.NUMBERS[dtype]]
    call("endor_multiply", tensor, instruction_set, *types, native.pointer(out))
    return out


def call(name: str, tensor: SparseTensor, instruction_set: str, *rest: object) -> None:
    """A function of the library on a matrix. It must not refuse."""
    parts = [np.ascontiguousarray(words) for words in tensor.parts]
    addresses = (ctypes.c_void_p * len(parts))(*[words.ctypes.data for words in parts])
    counts = (ctypes.c_int64 * len(parts))(*map(len, parts))
    words = ctypes.cast(addresses, ctypes.POINTER(ctypes.c_void_p))
    matrix = native.Matrix(*numbers_of(tensor).values(), words, counts)
    refused = getattr(native.library(), name)(matrix, instruction_set.encode(), *rest)
    assert refused is None, refused


def widened(array: np.ndarray) -> np.ndarray:
    """The array as float32: exact, and NaN keeps its payload."""
    bits = bits_of(array).astype(np.uint32)
    if array.dtype.name == "bfloat16":
        return (bits << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = array.astype(np.float32)
    if array.dtype == np.float16:
        nan = np.isnan(wide)
        wide.view(np.uint32)[nan] = ((bits & 0x8000) << 16 | 0x7F800000 | (bits & 0x3FF) << 13)[nan]
    return wide


def product_and_bound(weights: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (n, columns) times weights (rows, columns), transposed, in float64, and how far float32 may be off.

    In whatever order C products are summed, each passes at most C + 1 roundings: the error is at most
    γ Σ |x| |w|, where γ = (C + 1) u / (1 − (C + 1) u) and u = 2⁻²⁴ (Higham, Accuracy and Stability, 3.1).
    Subnormal factors, products and sums may count as zero: 2⁻¹²⁵ times each factor's partner.
    """
    w, inputs = weights.astype(np.float64), x.astype(np.float64)
    roundings = (w.shape[1] + 1) * 2.0**-24
    magnitudes = np.abs(inputs) @ np.abs(w).T
    small = 2.0**-125 * (
        2 * w.shape[1] + np.abs(inputs).sum(1, keepdims=True) + np.abs(w).sum(1, keepdims=True).T
    )
    return inputs @ w.T, magnitudes * (roundings / (1 - roundings)) + small
