"""Hypothesis strategies for all tests: arrays by bit pattern, their shapes, dtypes and codecs."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from endor_jax.arrays import FLOAT_FORMATS, dtype_from_name
from endor_jax.format.values import Codec, packed_codecs

dtypes = st.sampled_from(sorted(FLOAT_FORMATS))

# 1, around a bitmap word, around a segment, several segments; the rest at random.
COLUMNS = (1, 2, 31, 32, 33, 64, 95, 1023, 1024, 1025, 1056, 2048, 2079)


@st.composite
def shapes(draw: st.DrawFn, *, max_elements: int = 8192) -> tuple[int, ...]:
    """Rank 2 to 4, never empty, with tails of words and of segments."""
    columns = draw(st.sampled_from([c for c in COLUMNS if c <= max_elements]) | st.integers(1, 80))
    shape = [min(columns, max_elements)]
    for _ in range(draw(st.integers(1, 3))):
        shape.insert(0, draw(st.integers(1, max(1, min(7, max_elements // math.prod(shape))))))
    return tuple(shape)


@st.composite
def arrays(draw: st.DrawFn, *, dtype: str | None = None, max_elements: int = 8192) -> np.ndarray:
    """Any bit patterns of a float format: uniform, crowded as pruned weights are, or the special ones.

    Zeros at any density from none to all, and rows without anything.
    """
    number = FLOAT_FORMATS[dtype or draw(dtypes)]
    shape = draw(shapes(max_elements=max_elements))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.lists(st.sampled_from(("uniform", "crowded", "special")), min_size=1, max_size=3))
    choices = np.stack([_bits(random, shape, number.name, kind) for kind in kinds])
    picked = random.integers(0, len(kinds), shape)
    bits = np.take_along_axis(choices, picked[None], axis=0)[0]
    bits[random.random(shape) < draw(st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)))] = 0
    if draw(st.booleans()):
        bits[..., random.random(shape[:-1]) < 0.5, :] = 0
    return bits.view(dtype_from_name(number.name))


def _bits(random: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> np.ndarray:
    number = FLOAT_FORMATS[dtype]
    uniform = random.integers(0, 1 << number.bits, shape, dtype=np.uint64).astype(number.unsigned)
    mantissa = uniform & number.unsigned.type((1 << number.mantissa_bits) - 1)
    sign = uniform & number.unsigned.type(1 << (number.bits - 1))
    if kind == "uniform":
        return uniform
    if kind == "crowded":
        lowest = random.integers(0, number.exponent_maximum - 2)
        exponent = lowest + np.minimum(random.geometric(0.5, shape) - 1, number.exponent_maximum - lowest)
    else:  # zeros of both signs and subnormals, infinities and NaN with any payload
        exponent = np.where(random.random(shape) < 0.5, 0, number.exponent_maximum)
        mantissa = np.where(random.random(shape) < 0.3, number.unsigned.type(0), mantissa)
    return sign | (exponent.astype(number.unsigned) << number.unsigned.type(number.mantissa_bits)) | mantissa


# Strategies call nothing of the package that is checked by beartype: it draws random numbers of its own for
# that, which hypothesis forbids inside a strategy. So what they need is made when this module is imported.
CODECS: dict[str, tuple[Codec, ...]] = {
    name: (
        Codec("raw"),
        Codec("raw", bitmap=False),
        *packed_codecs(number, bitmap=True),
        *packed_codecs(number, bitmap=False),
    )
    for name, number in FLOAT_FORMATS.items()
}
"""Every codec without loss that is legal for a float format."""
INTEGER_CODECS = tuple(Codec(kind, bitmap=bitmap) for kind in ("int8", "int4") for bitmap in (True, False))
"""Those that quantise, legal for every format."""


def codecs(dtype: str) -> st.SearchStrategy[Codec]:
    """One of the codecs without loss that are legal for a float format."""
    return st.sampled_from(CODECS[dtype])


@st.composite
def encodable(draw: st.DrawFn, *, max_elements: int = 8192) -> tuple[np.ndarray, Codec]:
    """An array with a codec that it can be encoded with."""
    array = draw(arrays(max_elements=max_elements))
    return array, draw(codecs(array.dtype.name))


Pieces = tuple[np.ndarray, np.ndarray, tuple[int, ...], str]
"""What a `Quantised` is made of (it cannot be made in a strategy: see above)."""


@st.composite
def integers(draw: st.DrawFn, *, max_elements: int = 8192) -> tuple[Pieces, Codec]:
    """The pieces of a `Quantised` with a codec that can hold it: any integers and scales, empty groups."""
    shape, dtype = draw(shapes(max_elements=max_elements)), draw(dtypes)
    codec = draw(st.sampled_from(INTEGER_CODECS))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns = math.prod(shape[:-1]), shape[-1]
    groups, most = -(-columns // 128), 127 if codec.kind == "int8" else 7
    values = random.integers(-most, most, (rows, columns), np.int8, endpoint=True)
    values[random.random(values.shape) < draw(st.sampled_from((0.0, 0.5, 0.9, 1.0)))] = 0
    empty = np.repeat(random.random((rows, groups)) < draw(st.sampled_from((0.0, 0.5))), 128, axis=1)
    values[empty[:, :columns]] = 0
    # Any positive finite float16; in float16 below what would overflow.
    top = 0x7BFF if dtype != "float16" else 0x5C00 if codec.kind == "int8" else 0x6C00
    scales = random.integers(1, top, (rows, groups), np.uint16, endpoint=True).view(np.float16)
    return (values, scales, shape, dtype), codec
