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
