"""Rows moved from parts to parts: the bytes that encoding the decoded array again would give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.arrays import bits_of
from endor_jax.errors import InvalidInputError
from endor_jax.format import fields
from endor_jax.format.cut import own_bytes
from endor_jax.format.encode import Encodable, EncodedRecord, encode_record, with_escapes
from endor_jax.format.layout import RecordLayout, TensorSpec, plan_layout
from endor_jax.format.quantise import Quantised
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec, parse_codec
from tests import strategies
from tests.strategies import Pieces

parts = st.integers(1, 9)


def encoded(source: Encodable, codec: Codec, count: int) -> tuple[RecordLayout, EncodedRecord]:
    dtype = source.dtype.name if isinstance(source, np.ndarray) else source.dtype
    layout = plan_layout({"w": TensorSpec(source.shape, dtype, codec)}, parts=count)
    return layout, encode_record(layout, {"w": source})


def assert_moved(source: Encodable, codec: Codec, before: int, after: int) -> None:
    """A tensor cut from `before` parts into `after` is what encoding it there gives, counts and all."""
    layout, record = encoded(source, codec, before)
    tensor = SparseTensor(record.parts, with_escapes(layout, record.escapes)["w"])
    _, moved = encoded(tensor, codec, after)
    _, expected = encoded(source, codec, after)
    for got, part in zip(moved.parts, expected.parts, strict=True):
        np.testing.assert_array_equal(got, part)
    assert (moved.stats, moved.escapes) == (expected.stats, expected.escapes)


@given(strategies.encodable(max_elements=4000), parts, parts)
def test_what_is_lossless(case: tuple[np.ndarray, Codec], before: int, after: int) -> None:
    assert_moved(*case, before, after)


@given(strategies.integers(max_elements=4000), parts, parts)
def test_integers_and_scales(case: tuple[Pieces, Codec], before: int, after: int) -> None:
    pieces, codec = case
    assert_moved(Quantised(*pieces), codec, before, after)


@given(strategies.arrays(max_elements=4000), parts)
def test_own_bytes(array: np.ndarray, count: int) -> None:
    layout, record = encoded(array, Codec("raw", bitmap=False), count)
    found = own_bytes(SparseTensor(record.parts, layout["w"]))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(bits_of(found), bits_of(array))


@given(st.lists(st.integers(0, 200), max_size=6), st.integers(0, 2**32 - 1))
def test_joined_streams_are_cut_apart_again(counts: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    bits = [random.integers(0, 2, count, np.uint8) for count in counts]
    joined = fields.join([words_of(piece) for piece in bits], counts)
    np.testing.assert_array_equal(joined, words_of(np.concatenate([np.zeros(0, np.uint8), *bits])))
    start = 0
    for piece in bits:
        np.testing.assert_array_equal(fields.cut(joined, start, len(piece)), words_of(piece))
        start += len(piece)


def words_of(bits: np.ndarray) -> np.ndarray:
    """Single bits as words, by NumPy."""
    padded = np.pad(bits, (0, -len(bits) % 32))
    return np.packbits(padded, bitorder="little").view(np.uint32)


@pytest.mark.parametrize(
    ("shape", "dtype", "codec"),
    [((6, 40), "bfloat16", "raw"), ((8, 40), "bfloat16", "packed:2"), ((6, 40), "float16", "packed:2")],
)
def test_what_is_stored_otherwise_is_refused(shape, dtype, codec):
    layout, record = encoded(np.ones((6, 40), "bfloat16"), parse_codec("packed:2"), 2)
    tensor = SparseTensor(record.parts, layout["w"])
    wanted = plan_layout({"w": TensorSpec(shape, dtype, parse_codec(codec))})
    message = r"tensor 'w': got SparseTensor\(bfloat16\[6, 40\], packed:2, .* expected \w+\[\d, 40\], "
    with pytest.raises(InvalidInputError, match=message + codec):
        encode_record(wanted, {"w": tensor})
