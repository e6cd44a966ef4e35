"""Cases for driver.cc: matrices with parts, inputs, and what has to come out, as one file of bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from endor_jax import native
from endor_jax.arrays import FLOAT_FORMATS, dtype_from_name
from endor_jax.format.encode import Encodable, encode_record, with_escapes
from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.quantise import dequantise, quantise
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import INTEGER_BITS, Codec
from tests import shapes, strategies
from tests.kernels.native.calling import numbers_of, product_and_bound, widened
from tests.shapes import NamedShape

INPUTS = (1, 2, 3, 8, 17)
"""How many input rows: every loop of the kernels, and one that takes two passes."""
# Every codec meets some of the shapes, and all of them over all codecs: tails of words and segments, rows of
# one column, nothing or everything stored, long rows. Several parts, the last ones without rows.
SHAPES_PER_CODEC = 3
PARTS = (1, 1, 2, 5)


@dataclass(frozen=True)
class Case:
    """array (rows, columns), encoded; x (n, columns)."""

    array: np.ndarray
    tensor: SparseTensor
    x: np.ndarray


def cases(*, large: bool) -> Iterator[Case]:
    """Every codec of every dtype. large: one more, so large that it is written past the caches."""
    random = np.random.default_rng(0)
    named, parts, inputs = itertools.cycle(shapes.SHAPES), itertools.cycle(PARTS), itertools.cycle(INPUTS)
    for dtype, codecs in strategies.CODECS.items():
        for number, codec in enumerate((*codecs, *strategies.INTEGER_CODECS)):
            for shape in itertools.islice(named, SHAPES_PER_CODEC):
                array = finite(shapes.weights(shape, dtype, seed=number))
                source: Encodable = array
                if codec.quantised:
                    source = quantise(array, INTEGER_BITS[codec.kind])
                    array = dequantise(source)
                x = inputs_of(random, next(inputs), array.shape[1])
                yield Case(array, encoded(source, codec, parts=next(parts), random=random), x)
            next(parts)  # so that a codec does not meet the same number of parts each time
    if large:
        array = finite(shapes.weights(NamedShape("large", (1030, 2048), 0.5), "bfloat16"))
        x = inputs_of(random, 1, 2048)
        yield Case(array, encoded(array, Codec("packed", 2), parts=1, random=random), x)


def finite(array: np.ndarray) -> np.ndarray:
    """As a matrix, with 1 for what is infinite, NaN or so large that a sum overflows, or no scale reaches it:
    those products are no numbers that can be compared."""
    array = array.reshape(-1, array.shape[-1])
    return np.where(np.abs(array.astype(np.float32)) < 2.0**16, array, array.dtype.type(1))


def inputs_of(random: np.random.Generator, count: int, columns: int) -> np.ndarray:
    """Normal inputs (count, columns) of a random dtype."""
    dtype = random.choice(sorted(FLOAT_FORMATS))
    return random.standard_normal((count, columns)).astype(dtype_from_name(dtype))


def encoded(source: Encodable, codec: Codec, *, parts: int, random: np.random.Generator) -> SparseTensor:
    """One tensor of a record, in `parts` parts; often with room for more escapes than it has, and in a buffer
    that is longer than the part and has rubbish behind it."""
    spec = TensorSpec(source.shape, str(source.dtype), codec)
    before = source if isinstance(source, np.ndarray) else dequantise(source)
    layout = plan_layout({"before": replace(spec, codec=Codec("raw")), "w": spec}, parts=parts)
    record = encode_record(layout, {"before": before, "w": source})
    tensor = Record(record.parts, with_escapes(layout, record.escapes))["w"]
    assert isinstance(tensor.layout, FieldLayout)
    capacity = tensor.layout.escape_capacity + int(random.choice([0, 1, 1000]))

    def longer(words: np.ndarray) -> np.ndarray:
        rubbish = random.integers(0, 2**32, random.choice([0, 7, 300]), np.uint32)
        return np.concatenate([words, rubbish])

    parts_in_buffers = tuple(longer(np.asarray(words)) for words in tensor.parts)
    return SparseTensor(parts_in_buffers, replace(tensor.layout, escape_capacity=capacity))


def write(path: Path, written: list[Case]) -> None:
    """The file that driver.cc reads: integers are int64, little-endian as everything."""
    with path.open("wb") as file:
        numbers(file, len(written))
        for case in written:
            expected, bound = product_and_bound(case.array, case.x)
            numbers(file, *numbers_of(case.tensor).values(), native.NUMBERS[case.x.dtype.name], len(case.x))
            for words in case.tensor.parts:
                numbers(file, len(words))
                file.write(np.asarray(words).tobytes())
            for array in (case.x, case.array, widened(case.array), expected, bound):
                file.write(np.ascontiguousarray(array).tobytes())


def numbers(file, *values: int) -> None:
    file.write(np.array(values, "<i8").tobytes())
