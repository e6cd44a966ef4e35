"""Every bit pattern of every float format comes back, under every codec; equal arrays give equal bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.arrays import FLOAT_FORMATS, bits_of, dtype_from_name
from endor_jax.format.decode import decode, decode_rows, read_escapes
from endor_jax.format.encode import encode_array
from endor_jax.format.layout import FieldLayout, matrix_shape
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec
from tests import strategies


def field_layout(tensor: SparseTensor) -> FieldLayout:
    assert isinstance(tensor.layout, FieldLayout)
    return tensor.layout


@given(strategies.encodable())
def test_decode_gives_back_every_bit(case: tuple[np.ndarray, Codec]) -> None:
    array, codec = case
    decoded = decode(encode_array(array, codec.name))
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    np.testing.assert_array_equal(bits_of(decoded), bits_of(array))


@given(strategies.encodable())
def test_encoding_is_deterministic_and_leaves_its_input_alone(case: tuple[np.ndarray, Codec]) -> None:
    array, codec = case
    before = array.tobytes()
    first = encode_array(array, codec.name)
    second = encode_array(np.asfortranarray(array), codec.name)
    assert array.tobytes() == before
    assert first.layout == second.layout
    np.testing.assert_array_equal(first.parts[0], second.parts[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_65536_patterns(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    np.random.default_rng(0).shuffle(bits)
    array = bits.reshape(16, 4096).view(dtype_from_name(dtype))
    for codec in strategies.CODECS[dtype]:
        np.testing.assert_array_equal(bits_of(decode(encode_array(array, codec.name))), bits_of(array))


@given(strategies.encodable(max_elements=2000), st.data())
def test_rows_are_decoded_in_any_order_and_repeatedly(
    case: tuple[np.ndarray, Codec], data: st.DataObject
) -> None:
    array, codec = case
    rows, columns = matrix_shape(array.shape)
    wanted = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=12)), np.intp)
    tensor = encode_array(array, codec.name)
    got = decode_rows(np.asarray(tensor.parts[0]), field_layout(tensor), wanted)
    np.testing.assert_array_equal(bits_of(got), bits_of(array).reshape(rows, columns)[wanted])


@given(strategies.encodable(max_elements=2000))
def test_what_escapes(case: tuple[np.ndarray, Codec]) -> None:
    """raw: nothing. packed: never a zero; dense-packed: every zero; both: subnormals, −0.0, ∞, NaN."""
    array, codec = case
    number = FLOAT_FORMATS[array.dtype.name]
    tensor = encode_array(array, codec.name)
    index, values = read_escapes(np.asarray(tensor.parts[0]), field_layout(tensor))
    bits = bits_of(array).reshape(-1)
    np.testing.assert_array_equal(values, bits[index])
    assert (np.diff(index) > 0).all()
    assert field_layout(tensor).escape_capacity == len(index)
    if codec.kind == "raw":
        assert len(index) == 0
        return
    exponent = (bits >> number.mantissa_bits) & number.exponent_maximum
    special = (exponent == 0) | (exponent == number.exponent_maximum)
    escaped = np.zeros(bits.shape, bool)
    escaped[index] = True
    assert escaped[special & (bits != 0)].all()
    assert (escaped[bits == 0] == (not codec.bitmap)).all()


@given(strategies.arrays(dtype="bfloat16", max_elements=4000))
def test_seven_exponent_bits_hold_half_of_the_range(array: np.ndarray) -> None:
    """packed:7 of bf16 covers 128 consecutive exponents: normal numbers near one never escape."""
    bits = bits_of(array)
    near = (bits & np.uint16(0x807F)) | np.uint16(100 << 7) | ((bits & np.uint16(0x0F00)) >> np.uint16(1))
    tensor = encode_array(near.view(array.dtype), "packed:7")
    assert field_layout(tensor).escape_capacity == 0
