"""Number formats by name, and arrays seen as their bits.

Everything above decides on bit patterns, never on values: −0.0 equals 0.0 and NaN equals nothing, but each
has bits that must come back. Dtypes travel by name ("bfloat16"), because names are what manifests hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class FloatFormat:
    """An IEEE-like format: one sign bit, then exponent, then mantissa, from the top."""

    name: str
    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        """Width of one element in bits: 16 or 32."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def unsigned(self) -> np.dtype:
        """The unsigned integer dtype of the same width, in which elements are moved."""
        return np.dtype(f"uint{self.bits}")

    @property
    def exponent_maximum(self) -> int:
        """The all-ones exponent, which means infinity or NaN."""
        return (1 << self.exponent_bits) - 1


FLOAT_FORMATS = {
    "bfloat16": FloatFormat("bfloat16", exponent_bits=8, mantissa_bits=7),
    "float16": FloatFormat("float16", exponent_bits=5, mantissa_bits=10),
    "float32": FloatFormat("float32", exponent_bits=8, mantissa_bits=23),
}


def dtype_from_name(name: str) -> np.dtype:
    """The NumPy dtype called `name`, the ml_dtypes ones (bfloat16, float8_*, int4, ...) included.

    Raises TypeError if there is none.
    """
    extension = getattr(ml_dtypes, name, None)
    return np.dtype(extension) if isinstance(extension, type) else np.dtype(name)


def native(array: np.ndarray) -> np.ndarray:
    """The same values in this machine's byte order, which is what a dtype's name stands for."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def bits_of(array: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers: () or (...,) of uint8/16/32/64, whatever the element width."""
    return np.ascontiguousarray(array).view(np.dtype(f"uint{8 * array.dtype.itemsize}")).reshape(array.shape)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def array_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a dense array."""
    return math.prod(shape) * dtype_from_name(dtype).itemsize
