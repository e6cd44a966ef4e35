"""The quantiser: what it minimises, by loops over its candidates, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError
from endor_jax.format.quantise import RATIOS, Quantised, dequantise, quantise
from tests.strategies import dtypes, shapes

bits_of_integers = st.sampled_from((8, 4))


def weights(seed: int, shape: tuple[int, ...], dtype: str, sparsity: float = 0.4) -> np.ndarray:
    """Weights with outliers, which clipping is for, and zeros."""
    random = np.random.default_rng(seed)
    array = random.standard_t(4, size=shape) * 10.0 ** random.integers(-3, 3)
    array[random.random(shape) < sparsity] = 0
    return array.astype(dtype)


def quantise_by_loops(array: np.ndarray, bits: int, importance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row and group: of all candidates the scale with the smallest error, of several the largest."""
    most = {8: 127, 4: 7}[bits]
    matrix = array.reshape(-1, array.shape[-1])
    rows, columns = matrix.shape
    values = np.zeros((rows, columns), np.int8)
    scales = np.zeros((rows, -(-columns // 128)), np.float16)
    for r in range(rows):
        for g in range(scales.shape[1]):
            here = slice(128 * g, min(128 * (g + 1), columns))
            w = matrix[r, here].astype(np.float32)
            best = np.inf
            for ratio in RATIOS[bits]:
                scale = max(np.abs(w).max() * np.float32(ratio / most), np.float32(2**-24)).astype(np.float16)
                q = np.clip(np.rint(w / np.float32(scale)), -most, most)
                element = (q.astype(np.float32) * np.float32(scale)).astype(array.dtype).astype(np.float64)
                error = float((importance[here] * (w.astype(np.float64) - element) ** 2).sum())
                if error < best * (1 - 1e-5):
                    best, values[r, here], scales[r, g] = error, q, scale
            if not values[r, here].any():
                scales[r, g] = 0
    return values, scales


@given(st.integers(0, 2**32 - 1), shapes(max_elements=600), dtypes, bits_of_integers, st.booleans())
def test_equals_loops(seed: int, shape: tuple[int, ...], dtype: str, bits: int, weighted: bool) -> None:
    array = weights(seed, shape, dtype)
    importance = np.ones(shape[-1], np.float32)
    if weighted:
        importance = np.random.default_rng(seed).exponential(size=shape[-1]).astype(np.float32)
    got = quantise(array, bits, importance=importance if weighted else None)
    values, scales = quantise_by_loops(array, bits, importance)
    # float32 sums may order two candidates the other way if their errors are within rounding.
    same = got.scales == scales
    assert same.mean() > 0.9 or same.size < 8
    spread = np.repeat(same, 128, axis=1)[:, : shape[-1]]
    np.testing.assert_array_equal(got.values[spread], values[spread])
    errors = [
        (importance * (array.astype(np.float64) - dequantise(q).astype(np.float64)) ** 2).sum()
        for q in (got, Quantised(values, scales, array.shape, dtype))
    ]
    np.testing.assert_allclose(*errors, rtol=1e-4, atol=1e-30)


@given(st.integers(0, 2**32 - 1), shapes(max_elements=3000), dtypes, bits_of_integers)
def test_zeros_stay_zeros_and_nothing_leaves_the_range(
    seed: int, shape: tuple[int, ...], dtype: str, bits: int
) -> None:
    array = weights(seed, shape, dtype)
    array[..., ::3] = -0.0
    quantised = quantise(array, bits)
    elements = dequantise(quantised)
    assert (elements[array == 0] == 0).all()
    assert not np.signbit(elements[elements == 0]).any()
    assert np.abs(quantised.values.astype(np.int16)).max() <= (1 << (bits - 1)) - 1
    wrong_sign = (elements != 0) & (np.sign(elements) != np.sign(array))
    assert not wrong_sign.any()


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.015), (4, 0.2)])
def test_the_error_is_small_and_the_search_does_not_raise_it(
    bits: int, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = weights(1, (64, 1000), "float32", sparsity=0.5)

    def error() -> float:
        off = dequantise(quantise(array, bits)).astype(np.float64) - array
        return float(np.linalg.norm(off) / np.linalg.norm(array))

    searched = error()
    monkeypatch.setitem(RATIOS, bits, (1.0,))
    assert searched <= error()
    assert searched < bound


def test_importance_moves_the_error_to_columns_that_matter_less() -> None:
    array = weights(2, (32, 256), "float32", sparsity=0)
    importance = np.where(np.arange(256) % 2 == 0, np.float32(100), np.float32(0.01))
    plain, weighted = (
        (dequantise(quantise(array, 4, importance=i)) - array) ** 2 for i in (None, importance)
    )
    assert weighted[:, ::2].sum() < plain[:, ::2].sum()
    assert weighted[:, 1::2].sum() > plain[:, 1::2].sum()


def test_columns_without_importance_cost_nothing() -> None:
    array = weights(3, (4, 128), "float16", sparsity=0)
    quantised = quantise(array, 8, importance=np.zeros(128, np.float32))
    assert np.isfinite(dequantise(quantised).astype(np.float32)).all()


def test_float16_near_its_end_does_not_overflow() -> None:
    """127 times the scale that is nearest to 65504 / 127 would be infinite."""
    for bits in (8, 4):
        elements = dequantise(quantise(np.array([[65504, -65504, 1000]], np.float16), bits))
        assert np.isfinite(elements).all()
        assert elements[0, 0] > 62000


def test_magnitudes_below_the_smallest_scale_become_zero_or_it() -> None:
    array = np.array([[3e-8, 2.9e-8, 6e-8]], np.float32)
    assert dequantise(quantise(array, 8)).tolist() == [[2.0**-24, 0, 2.0**-24]]
    nothing = quantise(array[:, 1:2], 8)
    assert (nothing.values.tolist(), nothing.scales.tolist()) == ([[0]], [[0]])


def test_it_is_deterministic_and_leaves_its_input_alone() -> None:
    array = weights(4, (9, 700), "bfloat16")
    before = array.tobytes()
    first, second = quantise(array, 4), quantise(np.asfortranarray(array), 4)
    assert array.tobytes() == before
    assert first.values.tobytes() == second.values.tobytes()
    assert first.scales.tobytes() == second.scales.tobytes()


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "inf"), (9e6, r"9e\+06")]
)
def test_what_no_scale_reaches_is_refused(value: float, said: str) -> None:
    array = np.zeros((3, 200), np.float32)
    array[2, 150] = value
    message = (
        rf"tensor 'w': got an element of magnitude {said}, expected finite ones of at most 8,319,008, "
        r"127 times the largest scale; store it under a codec without loss"
    )
    with pytest.raises(InvalidInputError, match=message):
        quantise(array, 8, where="tensor 'w'")
