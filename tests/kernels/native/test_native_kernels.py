"""The compiled kernels on any array, by every instruction set here: the oracle's bits, float64's products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax import native
from endor_jax.arrays import bits_of, dtype_from_name
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array
from endor_jax.format.quantise import Quantised, dequantise
from endor_jax.format.values import Codec
from tests import strategies
from tests.kernels.native import calling

pytestmark = pytest.mark.skipif(
    not native.available(), reason=f"the extension was not built: no {native.path()}"
)

every_instruction_set = pytest.mark.parametrize(
    "instruction_set", native.instruction_sets() if native.available() else ()
)


@every_instruction_set
@given(strategies.encodable())
@settings(max_examples=50)
def test_expand_gives_the_oracle_s_bits(instruction_set: str, case: tuple[np.ndarray, Codec]) -> None:
    array, codec = case
    tensor = encode_array(array, codec.name)
    expanded = calling.expand(tensor, instruction_set)
    np.testing.assert_array_equal(bits_of(expanded), bits_of(decode(tensor)))


@every_instruction_set
@given(strategies.encodable())
@settings(max_examples=50)
def test_widened_on_the_way_every_element_is_the_same(
    instruction_set: str, case: tuple[np.ndarray, Codec]
) -> None:
    """Bit for bit, but a signalling NaN of float16 may become a quiet one of the same payload."""
    array, codec = case
    expanded = calling.expand(encode_array(array, codec.name), instruction_set, widen=True)
    got, expected = bits_of(expanded), bits_of(calling.widened(array))
    if array.dtype == np.float16:
        quiet = np.where(np.isnan(array), np.uint32(0x400000), np.uint32(0))
        got, expected = got | quiet, expected | quiet
    np.testing.assert_array_equal(got, expected)


@every_instruction_set
@given(strategies.encodable(), st.integers(1, 35), strategies.dtypes, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_products_are_as_near_to_float64_as_any_order_of_sums(
    instruction_set: str, case: tuple[np.ndarray, Codec], count: int, dtype: str, seed: int
) -> None:
    array, codec = case
    weights = array.reshape(-1, array.shape[-1])
    x = np.random.default_rng(seed).standard_normal((count, weights.shape[1])).astype(dtype_from_name(dtype))
    x[x == 0] = 1  # 0 · ∞ is another matter
    got = calling.multiply(encode_array(array, codec.name), instruction_set, x, dtype="float32")
    finite = np.where(np.isfinite(weights.astype(np.float32)), weights, weights.dtype.type(0))
    _, bound = calling.product_and_bound(finite, x)
    with np.errstate(invalid="ignore"):
        expected = x.astype(np.float64) @ weights.astype(np.float64).T
        off = np.abs(got - expected)
    fits = (
        bound < 2.0**100
    )  # so that no sum of finite products overflows: they are at most 2^24 times as large
    known = fits & np.isfinite(expected)
    assert (off[known] <= bound[known]).all()
    others = fits & ~known
    np.testing.assert_array_equal(got[others], expected[others].astype(np.float32))


@every_instruction_set
@given(strategies.encodable(max_elements=500), st.sampled_from(["bfloat16", "float16"]))
@settings(max_examples=30)
def test_a_narrower_result_is_the_float32_one_rounded_once(
    instruction_set: str, case: tuple[np.ndarray, Codec], dtype: str
) -> None:
    array, codec = case
    tensor = encode_array(array, codec.name)
    x = np.random.default_rng(0).standard_normal((3, array.shape[-1])).astype(np.float32)
    whole = calling.multiply(tensor, instruction_set, x, dtype="float32")
    narrow = calling.multiply(tensor, instruction_set, x, dtype=dtype)
    with np.errstate(over="ignore"):
        expected = whole.astype(narrow.dtype)
    numbers = ~np.isnan(whole)
    np.testing.assert_array_equal(np.isnan(narrow), ~numbers)
    np.testing.assert_array_equal(bits_of(narrow)[numbers], bits_of(expected)[numbers])


@every_instruction_set
@given(strategies.integers())
@settings(max_examples=50)
def test_integers_become_the_oracle_s_elements(
    instruction_set: str, case: tuple[strategies.Pieces, Codec]
) -> None:
    quantised = Quantised(*case[0])
    tensor, elements = encode_array(quantised, case[1].name), dequantise(quantised)
    expanded = calling.expand(tensor, instruction_set)
    np.testing.assert_array_equal(bits_of(expanded), bits_of(elements))
    wide = calling.expand(tensor, instruction_set, widen=True)
    np.testing.assert_array_equal(bits_of(wide), bits_of(calling.widened(elements)))


@every_instruction_set
@given(strategies.integers(), st.integers(1, 20), strategies.dtypes, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_products_of_integers_are_those_of_their_elements(
    instruction_set: str, case: tuple[strategies.Pieces, Codec], count: int, dtype: str, seed: int
) -> None:
    """The very bits of the product with the same elements under `raw`: whatever codec a matrix has."""
    quantised = Quantised(*case[0])
    elements = dequantise(quantised)
    x = np.random.default_rng(seed).standard_normal((count, elements.shape[-1]))
    x = x.astype(dtype_from_name(dtype))
    got = calling.multiply(encode_array(quantised, case[1].name), instruction_set, x, dtype="float32")
    codec = "raw" if case[1].bitmap else "dense-raw"
    expected = calling.multiply(encode_array(elements, codec), instruction_set, x, dtype="float32")
    np.testing.assert_array_equal(bits_of(got), bits_of(expected))


@every_instruction_set
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("codec", ["int8", "int4", "dense-int8", "dense-int4"])
def test_every_integer_times_every_scale(instruction_set: str, codec: str, dtype: str) -> None:
    """Expanded and, with unit vectors for x, multiplied: rounding is right in every way it is done."""
    most = 127 if "8" in codec else 7
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    if dtype == "float16":
        scales = scales[scales.astype(np.float32) * most < 65520]
    values = np.arange(-most, most + 1, 1 + (most == 127), dtype=np.int8)
    pieces = np.broadcast_to(values, (len(scales), len(values)))
    quantised = Quantised(pieces, scales[:, None], pieces.shape, dtype)
    tensor, elements = encode_array(quantised, codec), dequantise(quantised)
    np.testing.assert_array_equal(bits_of(calling.expand(tensor, instruction_set)), bits_of(elements))
    for column in (0, 5, len(values) - 1):
        x = np.zeros((1, len(values)), dtype_from_name("bfloat16"))
        x[0, column] = 1
        got = calling.multiply(tensor, instruction_set, x, dtype="float32")
        np.testing.assert_array_equal(got[0], elements[:, column].astype(np.float32))
