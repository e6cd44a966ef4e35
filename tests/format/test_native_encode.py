"""The compiled encoders against the NumPy oracle: every piece, byte for byte, whatever the bits are."""

from __future__ import annotations

import ctypes
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax import native
from endor_jax.arrays import FLOAT_FORMATS, FloatFormat, bits_of
from endor_jax.errors import UnsupportedError
from endor_jax.format import encode
from endor_jax.format.encode_native import encode_matrix_natively
from endor_jax.format.encoded_matrix import EncodedMatrix
from endor_jax.format.layout import TensorSpec, matrix_shape, plan_layout
from endor_jax.format.values import Codec, parse_codec
from tests.shapes import BY_NAME, SHAPES, NamedShape, weights
from tests.strategies import CODECS, dtypes, encodable

pytestmark = pytest.mark.skipif(not native.available(), reason="installed without a C++ compiler")

ENCODERS = [name for name in ("avx512", "scalar") if native.available() and name in native.instruction_sets()]
encoders = pytest.mark.parametrize("encoder", ENCODERS)
BFLOAT16 = FLOAT_FORMATS["bfloat16"]


def assert_as_the_oracle(bits: np.ndarray, codec: Codec, number: FloatFormat, encoder: str) -> None:
    expected = encode.encode_matrix(bits, codec, number)
    made = encode_matrix_natively(bits, codec, number, instruction_set=encoder)
    assert_same_pieces(made, expected)


def assert_same_pieces(made: EncodedMatrix, expected: EncodedMatrix) -> None:
    for field in fields(EncodedMatrix):
        one, other = getattr(made, field.name), getattr(expected, field.name)
        assert type(one) is type(other), field.name
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=field.name, strict=True)


def matrix_of(array: np.ndarray) -> np.ndarray:
    return bits_of(array).reshape(matrix_shape(array.shape))


@encoders
@given(drawn=encodable(max_elements=16384))
def test_any_bits_are_encoded_as_by_the_oracle(encoder: str, drawn: tuple[np.ndarray, Codec]) -> None:
    array, codec = drawn
    assert_as_the_oracle(matrix_of(array), codec, FLOAT_FORMATS[array.dtype.name], encoder)


@encoders
@pytest.mark.parametrize("dtype", sorted(FLOAT_FORMATS))
@pytest.mark.parametrize("named", SHAPES, ids=str)
def test_every_codec_of_every_named_shape(named: NamedShape, dtype: str, encoder: str) -> None:
    for codec in CODECS[dtype]:
        for specials in (False, True):
            matrix = matrix_of(weights(named, dtype, specials=specials))
            assert_as_the_oracle(matrix, codec, FLOAT_FORMATS[dtype], encoder)


@st.composite
def exponents(draw: st.DrawFn) -> tuple[np.ndarray, Codec, FloatFormat]:
    """Rows whose elements have few exponents, near or far, often equally many of each: ties among bases."""
    dtype = draw(dtypes)
    number = FLOAT_FORMATS[dtype]
    columns = draw(st.sampled_from((8, 33, 64, 128, 1024, 1100)))
    exponent = st.integers(0, number.exponent_maximum)
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        some = draw(st.lists(exponent, min_size=1, max_size=24))
        repeats = draw(st.lists(st.integers(1, 3), min_size=len(some), max_size=len(some)))
        rows.append(np.resize(np.repeat(some, repeats), columns))
    bits = np.stack(rows).astype(number.unsigned) << number.unsigned.type(number.mantissa_bits)
    bits |= np.arange(bits.size, dtype=number.unsigned).reshape(bits.shape) & number.unsigned.type(3)
    return bits, draw(st.sampled_from(CODECS[dtype])), number


@encoders
@given(drawn=exponents())
def test_the_base_is_the_smallest_of_the_best(
    encoder: str, drawn: tuple[np.ndarray, Codec, FloatFormat]
) -> None:
    assert_as_the_oracle(*drawn, encoder)


@encoders
@pytest.mark.parametrize("dtype", sorted(FLOAT_FORMATS))
def test_every_exponent_equally_often(dtype: str, encoder: str) -> None:
    number = FLOAT_FORMATS[dtype]
    order = np.random.default_rng(0).permutation(1024) % (number.exponent_maximum + 1)
    for signs in (0, 1 << (number.bits - 1)):
        bits = (order.astype(number.unsigned) << number.unsigned.type(number.mantissa_bits))[None]
        for codec in CODECS[dtype]:
            assert_as_the_oracle(bits | number.unsigned.type(signs), codec, number, encoder)


@encoders
@pytest.mark.parametrize("dtype", sorted(FLOAT_FORMATS))
@pytest.mark.parametrize("pattern", ["zero", "negative zero", "subnormal", "infinity", "nan", "largest"])
def test_a_matrix_of_one_special_value_is_encoded(pattern: str, dtype: str, encoder: str) -> None:
    number = FLOAT_FORMATS[dtype]
    sign, infinity = 1 << (number.bits - 1), number.exponent_maximum << number.mantissa_bits
    value = {
        "zero": 0,
        "negative zero": sign,
        "subnormal": sign | 1,
        "infinity": infinity,
        "nan": sign | infinity | 1,
        "largest": infinity - 1,
    }[pattern]
    for columns in (1, 40, 1030):
        matrix = np.full((2, columns), value, number.unsigned)
        for codec in CODECS[dtype]:
            assert_as_the_oracle(matrix, codec, number, encoder)


@encoders
def test_elements_may_lie_at_any_address(encoder: str) -> None:
    matrix = matrix_of(weights(BY_NAME["segment_tail"], "bfloat16"))
    memory = np.zeros(matrix.nbytes + 1, np.uint8)
    odd = np.frombuffer(memory.data, np.uint16, count=matrix.size, offset=1).reshape(matrix.shape)
    odd[:] = matrix
    for codec in CODECS["bfloat16"]:
        assert_as_the_oracle(odd, codec, BFLOAT16, encoder)


@encoders
@pytest.mark.parametrize("codec", ["raw", "packed:2", "dense-packed:2"])
def test_nothing_is_held_besides_the_pieces(codec: str, encoder: str) -> None:
    matrix = np.tile(matrix_of(weights(BY_NAME["segment_tail"], "bfloat16")), (100, 1))
    encode_matrix_natively(
        matrix[:1], parse_codec(codec), BFLOAT16, instruction_set=encoder
    )  # what stays loaded
    tracemalloc.start()
    try:
        made = encode_matrix_natively(matrix, parse_codec(codec), BFLOAT16, instruction_set=encoder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    pieces = (made.bitmap, made.counts, made.bases, made.stream, made.escape_index, made.escape_bits)
    assert peak <= sum(piece.nbytes for piece in pieces if piece is not None) + 10_000


class Meddler:
    """The library, but somebody writes to the elements between the two halves of encoding."""

    def __init__(self, library: ctypes.CDLL, bits: np.ndarray, after: np.ndarray):
        self._library, self._bits, self._after = library, bits, after
        self.endor_write_fields = library.endor_write_fields

    def endor_count_fields(self, *arguments: object) -> object:
        result = self._library.endor_count_fields(*arguments)
        self._bits[:] = self._after
        return result


@encoders
@pytest.mark.parametrize("codec", ["raw", "packed:2", "packed:7", "dense-packed:2"])
@pytest.mark.parametrize("denser", [False, True])
def test_elements_that_change_meanwhile_are_told_and_do_no_harm(
    codec: str, denser: bool, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    normal = matrix_of(weights(BY_NAME["segment_tail"], "bfloat16"))
    wild = np.random.default_rng(0).integers(0, 1 << 16, normal.shape, dtype=np.uint16)
    bits, after = (normal.copy(), wild) if denser else (wild.copy(), normal)
    library, guard = native.library(), 64
    guarded: list[np.ndarray] = []
    empty = np.empty

    def with_guard(shape: tuple[int, ...] | int, dtype: type) -> np.ndarray:
        """np.empty, with bytes behind that nobody may write to."""
        wanted = empty(shape, dtype)
        memory = np.full(wanted.nbytes + guard, 0xA5, np.uint8)
        guarded.append(memory)
        return memory[: wanted.nbytes].view(dtype).reshape(wanted.shape)

    monkeypatch.setattr(native, "library", lambda: Meddler(library, bits, after))
    monkeypatch.setattr(np, "empty", with_guard)
    with pytest.raises(RuntimeError, match="the elements are not those that were counted"):
        encode_matrix_natively(bits, parse_codec(codec), BFLOAT16, instruction_set=encoder)
    monkeypatch.undo()
    assert all((memory[-guard:] == 0xA5).all() for memory in guarded)


@pytest.mark.parametrize("name", ["sse2", "avx"])
def test_an_encoder_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"encoding: got '{name}': no encoder of that name runs on"):
        encode_matrix_natively(np.zeros((1, 8), np.uint16), Codec("raw"), BFLOAT16, instruction_set=name)


def test_records_are_encoded_natively_where_the_extension_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: weights(BY_NAME["rank_3"], name) for name in sorted(FLOAT_FORMATS)}
    specs = {name: TensorSpec(array.shape, name, parse_codec("packed:2")) for name, array in arrays.items()}
    layout = plan_layout(specs, parts=3)
    with monkeypatch.context() as without:
        without.setattr(native, "available", lambda: False)
        without.setattr(encode, "encode_matrix_natively", None)
        expected = encode.encode_record(layout, arrays)
    monkeypatch.setattr(encode, "encode_matrix", None)
    made = encode.encode_record(layout, arrays)
    assert (made.stats, made.escapes) == (expected.stats, expected.escapes)
    for one, other in zip(made.parts, expected.parts, strict=True):
        np.testing.assert_array_equal(one, other)
