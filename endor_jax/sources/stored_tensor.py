"""A tensor as its elements lie in files: byte ranges and strides, and the read that puts them in order.

Checkpoints of torch and Flax hold views (transposed, expanded, parts of a shared storage) and matrices with
their axes the other way round. Each is read into the array it becomes, some megabytes at a time: neither the
storage nor a second copy of the tensor is ever in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from endor_jax.arrays import dtype_from_name
from endor_jax.sources.byte_range import read_range
from endor_jax.sources.safetensors_header import Location
from endor_jax.sources.source import TensorInfo

BLOCK_BYTES = 4 << 20
"""Read at a time of a tensor whose elements are not in order."""
MAXIMUM_DIMENSIONS = 64  # NumPy's limit


@dataclass(frozen=True)
class StoredTensor:
    """Element (i, j, ...) is number `start` + i strides[0] + j strides[1] + ... of the elements in `ranges`.

    Invariants: the ranges, one after the other, hold whole elements only as seen together; no element lies
    outside of them; strides, one per dimension, are not negative.
    """

    info: TensorInfo
    ranges: tuple[Location, ...]
    strides: tuple[int, ...]
    start: int = 0


def in_order(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of an array in C order."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def countable(shape: Sequence[int], item_bytes: int) -> bool:
    """Whether an array can have this shape: of (2**62, 0), all but the zeros must be countable too."""
    return len(shape) <= MAXIMUM_DIMENSIONS and prod(size or 1 for size in shape) * item_bytes < 2**63


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to behind the last one that a view which is not empty has."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def read_stored(tensor: StoredTensor, *, what: str) -> np.ndarray:
    """The tensor in C order, in memory of its own. `what` names it in errors, which are `read_range`'s."""
    shape, dtype = tensor.info.shape, dtype_from_name(tensor.info.dtype)
    if 0 in shape:
        return np.empty(shape, dtype)
    if len(tensor.ranges) == 1 and extent(shape, tensor.strides) == prod(shape) and _ordered(tensor):
        return _elements(tensor, tensor.start, prod(shape), what=what).reshape(shape)
    result = np.empty(shape, dtype)
    _fill(result, tensor, tensor.strides, tensor.start, what=what)
    return result


def _ordered(tensor: StoredTensor) -> bool:
    """Whether the elements lie in C order; strides of sizes that are 1 mean nothing."""
    expected = in_order(tensor.info.shape)
    return all(
        size == 1 or stride == wanted
        for size, stride, wanted in zip(tensor.info.shape, tensor.strides, expected, strict=True)
    )


def _fill(part: np.ndarray, tensor: StoredTensor, strides: tuple[int, ...], begin: int, *, what: str) -> None:
    """Reads `part` of the result, whose first element is number `begin`, cut along its longest stride."""
    block = max(1, BLOCK_BYTES // part.dtype.itemsize)
    needed = extent(part.shape, strides)
    if needed <= block:
        data = _elements(tensor, begin, needed, what=what)
        item_bytes = part.dtype.itemsize
        part[...] = as_strided(data, part.shape, [stride * item_bytes for stride in strides])
        return
    stride, axis = max(
        (stride, axis) for axis, stride in enumerate(strides) if part.shape[axis] > 1 and stride > 0
    )
    size = part.shape[axis]
    step = max(1, (block - (needed - (size - 1) * stride)) // stride + 1)
    for first in range(0, size, step):
        window = part[(slice(None),) * axis + (slice(first, first + step),)]
        _fill(window, tensor, strides, begin + first * stride, what=what)


def _elements(tensor: StoredTensor, begin: int, count: int, *, what: str) -> np.ndarray:
    """Elements `begin` to `begin + count` of the ranges: (count,), owned by the caller."""
    dtype = dtype_from_name(tensor.info.dtype)
    first, last = begin * dtype.itemsize, (begin + count) * dtype.itemsize
    if len(tensor.ranges) == 1:
        place = tensor.ranges[0]
        return read_range(place.file, offset=place.offset + first, length=last - first, what=what).view(dtype)
    data, passed = np.empty(last - first, np.uint8), 0
    for place in tensor.ranges:
        low, high = max(first, passed), min(last, passed + place.length)
        if low < high:
            data[low - first : high - first] = read_range(
                place.file, offset=place.offset + low - passed, length=high - low, what=what
            )
        passed += place.length
    return data.view(dtype)
