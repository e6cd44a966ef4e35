"""The value codecs: how the bits of a stored element become a field of b bits, and back.

A codec is a width b and a function from field to element (docs/format.md, "Codecs"):

* `raw`: the element's own bits.
* `packed:k`: sign, k-bit exponent code, mantissa. The code counts from a base exponent that each segment
  chooses for itself; every one of the 2^k codes is valid. Pruning removes small magnitudes, so what is left
  crowds into few exponents. An element outside the window is an escape (`format/encode.py` lists them).

* `int8`, `int4`: a signed integer that is multiplied with the scale of its group of columns. Lossy
  (`format/quantise.py` makes the integers and scales).

A `dense-` prefix means "without bitmap": every element has a field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from endor_jax.arrays import FloatFormat
from endor_jax.errors import OptionError

EXPONENTS = 256
"""Histogram width: exponents of every supported format fit in a byte."""


Kind = Literal["raw", "packed", "int8", "int4"]
INTEGER_BITS = {"int8": 8, "int4": 4}
"""Width of a field, by kind of the codecs that quantise."""


@dataclass(frozen=True)
class Codec:
    """How the elements of one tensor are stored. `exponent_bits` is k, 0 for all but `packed`."""

    kind: Kind
    exponent_bits: int = 0
    bitmap: bool = True

    @property
    def name(self) -> str:
        """The name a user types and a manifest holds: "raw", "packed:2", "dense-int8"."""
        tail = f":{self.exponent_bits}" if self.kind == "packed" else ""
        return f"{'' if self.bitmap else 'dense-'}{self.kind}{tail}"

    @property
    def quantised(self) -> bool:
        """Whether fields are integers with a scale: the codecs that lose something."""
        return self.kind in INTEGER_BITS

    def field_bits(self, number: FloatFormat) -> int:
        """b, the width of one field for elements of this format."""
        if self.kind in INTEGER_BITS:
            return INTEGER_BITS[self.kind]
        if self.kind == "raw":
            return number.bits
        return 1 + self.exponent_bits + number.mantissa_bits


def parse_codec(name: str) -> Codec:
    """The codec called `name`, as `Codec.name` spells it. Raises OptionError for any other text."""
    match = re.fullmatch(r"(dense-)?(raw|packed|int8|int4)(?::([1-7]))?", name)
    if match and (match[2] == "packed") != (match[3] is not None):
        match = None
    if not match:
        raise OptionError(
            "value codec",
            got=repr(name),
            expected="raw, packed:K with K from 1 to 7, int8 or int4, or one of them with the prefix dense-",
            fix="choose one of these or let 'auto' choose",
        )
    return Codec(cast("Kind", match[2]), int(match[3] or 0), bitmap=match[1] is None)


def packed_codecs(number: FloatFormat, *, bitmap: bool) -> tuple[Codec, ...]:
    """All packed codecs that are narrower than `raw` for this format, fewest exponent bits first."""
    return tuple(Codec("packed", k, bitmap) for k in range(1, min(7, number.exponent_bits - 1) + 1))


def exponents_of(bits: np.ndarray, number: FloatFormat) -> np.ndarray:
    """The exponent of each element: same shape as `bits`, uint8."""
    return ((bits >> number.mantissa_bits) & number.exponent_maximum).astype(np.uint8)


def exponent_histogram(exponents: np.ndarray, number: FloatFormat) -> np.ndarray:
    """How often each packable exponent occurs: (segments, S) uint8 -> (segments, 256) int64.

    Exponent 0 (zeros and subnormals) and the all-ones exponent (infinities and NaN) count as none: such
    elements are zeros or escapes whatever the window is.
    """
    segments = exponents.shape[0]
    keys = np.arange(segments, dtype=np.intp)[:, None] * EXPONENTS + exponents
    counts = np.bincount(keys.ravel(), minlength=segments * EXPONENTS).reshape(segments, EXPONENTS)
    counts[:, 0] = 0
    counts[:, number.exponent_maximum] = 0
    return counts


def best_windows(histogram: np.ndarray, exponent_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """For each segment the base whose window of 2^k exponents covers most elements, and how many it covers.

    (segments, 256) -> bases (segments,) uint8, covered (segments,) int64. Ties go to the smallest base, an
    empty segment to 0, so that every encoder writes the same bytes.
    """
    width = 1 << exponent_bits
    sums = np.cumsum(histogram, axis=1)
    # covered[b] = sum of histogram[b : b + width]; only bases whose whole window exists are candidates.
    covered = sums[:, width - 1 :].copy()
    covered[:, 1:] -= sums[:, : EXPONENTS - width]
    bases = np.argmax(covered, axis=1)
    return bases.astype(np.uint8), np.take_along_axis(covered, bases[:, None], axis=1)[:, 0]


def pack_fields(
    bits: np.ndarray, exponents: np.ndarray, bases: np.ndarray, codec: Codec, number: FloatFormat
) -> tuple[np.ndarray, np.ndarray]:
    """Fields of whole segments under a packed codec: which elements fit their window, and their fields.

    bits, exponents: (segments, S); bases: (segments,). Returns fits (segments, S) bool and fields
    (segments, S) in the unsigned dtype of the format; a field where `fits` is false is meaningless.
    """
    mantissa, width = number.mantissa_bits, codec.field_bits(number)
    code = exponents - bases[:, None]  # wraps below the base, to a code that does not fit
    fits = code < (1 << codec.exponent_bits)
    fits &= exponents != 0
    fits &= exponents != number.exponent_maximum
    magnitude = bits & bits.dtype.type((1 << (number.bits - 1)) - 1)
    magnitude -= bases.astype(bits.dtype)[:, None] << bits.dtype.type(mantissa)
    sign = (bits >> bits.dtype.type(number.bits - 1)) << bits.dtype.type(width - 1)
    return fits, magnitude | sign


def unpack_fields(fields: np.ndarray, bases: np.ndarray, codec: Codec, number: FloatFormat) -> np.ndarray:
    """Elements from fields, both one-dimensional uint32; `bases` has one entry per field (ignored by raw).

    Returns the elements' bits in the unsigned dtype of the format.
    """
    if codec.kind == "packed":
        width = codec.field_bits(number)
        sign = (fields >> np.uint32(width - 1)) << np.uint32(number.bits - 1)
        magnitude = fields & np.uint32((1 << (width - 1)) - 1)
        fields = sign | (magnitude + (bases.astype(np.uint32) << np.uint32(number.mantissa_bits)))
    return fields.astype(number.unsigned)
