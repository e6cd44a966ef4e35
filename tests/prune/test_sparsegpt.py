"""SparseGPT against loops over its Algorithm 1; its counts, its errors beside others', what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.quantise import largest_value
from endor_jax.prune.factor import inverse_factor
from endor_jax.prune.magnitude import apply_mask, magnitude_mask
from endor_jax.prune.sparsegpt import sparsegpt, sparsegpt_with_factor
from endor_jax.prune.structure import MATRIX, ROW, Structure, dropped, parse_structure
from endor_jax.prune.wanda import wanda
from tests.prune import transcriptions
from tests.prune.problems import COLUMNS, ROWS, TWO_OF_FOUR, assert_sound, error, problem, share

pytestmark = pytest.mark.usefixtures("compiled_quickly")
STRUCTURES = [ROW, MATRIX, TWO_OF_FOUR, parse_structure("2:3")]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.name)
@pytest.mark.parametrize("sparsity", [0.3, 0.77])
def test_equals_loops_over_algorithm_1(structure: Structure, sparsity: float) -> None:
    weight, gram = problem(int(sparsity * 100))
    block = 126 if structure.of == 3 else 128
    result = sparsegpt(weight, gram, sparsity=share(structure, sparsity), structure=structure)
    expected, mask = transcriptions.sparsegpt(
        weight, gram, share(structure, sparsity), structure, block=block
    )
    np.testing.assert_array_equal(np.asarray(result.mask), mask)
    np.testing.assert_allclose(np.asarray(result.weight), expected, rtol=1e-4, atol=1e-4)
    assert_sound(result)


@pytest.mark.parametrize(
    ("structure", "bits"), [(ROW, 8), (MATRIX, 4), (TWO_OF_FOUR, 4)], ids=["row-8", "matrix-4", "2:4-4"]
)
def test_joint_quantisation_equals_loops_over_section_3_5(structure: Structure, bits: int) -> None:
    weight, gram = problem(bits)
    result = sparsegpt(weight, gram, sparsity=share(structure), structure=structure, bits=bits)
    expected, mask = transcriptions.sparsegpt(weight, gram, share(structure), structure, bits=bits)
    np.testing.assert_array_equal(np.asarray(result.mask), mask)
    np.testing.assert_allclose(np.asarray(result.weight), expected, rtol=1e-4, atol=1e-4)
    assert_sound(result)
    assert result.values is not None
    assert result.scales is not None
    values, scales = np.asarray(result.values), np.asarray(result.scales)
    assert (values.dtype, scales.dtype, scales.shape) == (np.int8, np.float16, (ROWS, 2))
    assert np.abs(values.astype(int)).max() == largest_value(bits)
    each = np.repeat(scales.astype(np.float32), 128, axis=1)[:, :COLUMNS]
    np.testing.assert_array_equal(values * each, np.asarray(result.weight))


@pytest.mark.parametrize("bits", [None, 4])
def test_a_given_mask_is_kept_and_made_up_for_as_in_loops(bits: int | None) -> None:
    weight, gram = problem(9)
    mask = np.asarray(wanda(weight, np.diagonal(gram), sparsity=0.5))
    result = sparsegpt(weight, gram, mask=mask, bits=bits)
    expected, expected_mask = transcriptions.sparsegpt(weight, gram, None, MATRIX, bits=bits, mask=mask)
    np.testing.assert_array_equal(np.asarray(result.mask), expected_mask)
    np.testing.assert_allclose(np.asarray(result.weight), expected, rtol=1e-4, atol=1e-4)
    assert not np.asarray(result.mask)[~mask].any()
    if bits is None:
        assert error(weight, result.weight, gram) < error(weight, apply_mask(weight, mask), gram)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.333, 0.5, 0.9])
def test_exactly_the_zeros_due_after_every_block(sparsity: float) -> None:
    weight, gram = problem(1)
    of_matrix = np.asarray(sparsegpt(weight, gram, sparsity=sparsity, structure=MATRIX).weight)
    of_rows = np.asarray(sparsegpt(weight, gram, sparsity=sparsity, structure=ROW).weight)
    for end in (128, COLUMNS):
        assert np.count_nonzero(of_matrix[:, :end] == 0) == dropped(sparsity, ROWS * end)
        assert (np.count_nonzero(of_rows[:, :end] == 0, axis=1) == dropped(sparsity, end)).all()
    if sparsity == 0:
        np.testing.assert_array_equal(of_matrix, weight)


@pytest.mark.parametrize("structure", [TWO_OF_FOUR, parse_structure("2:3")], ids=lambda s: s.name)
def test_every_group_keeps_its_number(structure: Structure) -> None:
    weight, gram = problem(2)
    mask = np.asarray(sparsegpt(weight, gram, structure=structure).mask)
    for start in range(0, COLUMNS, structure.of):
        group = mask[:, start : start + structure.of]
        expected = structure.kept if group.shape[1] == structure.of else group.shape[1] - 1
        assert (np.count_nonzero(group, axis=1) == expected).all()


@pytest.mark.parametrize("structure", [ROW, MATRIX, TWO_OF_FOUR], ids=lambda structure: structure.name)
@pytest.mark.parametrize("seed", range(2))
def test_the_error_is_below_magnitudes_and_wandas(structure: Structure, seed: int) -> None:
    weight, gram = problem(seed)
    sparsity = share(structure)
    ours = error(weight, sparsegpt(weight, gram, sparsity=sparsity, structure=structure).weight, gram)
    masks = (
        magnitude_mask(weight, sparsity, structure=structure),
        np.asarray(wanda(weight, np.diagonal(gram), sparsity=sparsity, structure=structure)),
    )
    of_magnitude, of_wanda = (error(weight, apply_mask(weight, mask), gram) for mask in masks)
    assert ours < 0.9 * of_wanda
    assert of_wanda < of_magnitude


def test_uncorrelated_inputs_make_it_magnitude_per_block_without_an_update() -> None:
    weight, _ = problem(4)
    result = np.asarray(
        sparsegpt(weight, 3 * np.eye(COLUMNS, dtype=np.float32), sparsity=0.5, structure=ROW).weight
    )
    for block in (slice(0, 128), slice(128, COLUMNS)):
        mask = magnitude_mask(weight[:, block], 0.5)
        np.testing.assert_array_equal(result[:, block], apply_mask(weight[:, block], mask))


def test_rows_in_another_order_and_numbers_of_another_size() -> None:
    weight, gram = problem(5)
    result = np.asarray(sparsegpt(weight, gram, sparsity=0.5, structure=ROW).weight)
    turned = sparsegpt(weight[::-1] * 4, gram * 2**20, sparsity=0.5, structure=ROW)
    np.testing.assert_allclose(np.asarray(turned.weight), result[::-1] * 4, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("structure", "bits"), [(ROW, 8), (MATRIX, 4)], ids=str)
def test_clipping_costs_no_more_than_none(structure: Structure, bits: int) -> None:
    weight = np.random.default_rng(0).standard_t(3, (ROWS, COLUMNS)).astype(np.float32)
    weight[3] = 0
    gram = np.eye(COLUMNS, dtype=np.float32)
    result = sparsegpt(weight, gram, sparsity=0.0, structure=structure, bits=bits)
    assert np.abs(np.asarray(result.weight) - weight).max() <= np.abs(weight).max() / 2
    assert result.scales is not None
    assert not np.asarray(result.scales)[3].any()
    for block in (slice(0, 128), slice(128, COLUMNS)):
        whole = weight[:, block]
        top = np.abs(whole).max(axis=1, keepdims=True)
        plain = (top / largest_value(bits)).astype(np.float16).astype(np.float32)
        rounded = np.round(whole / np.where(plain > 0, plain, np.inf)) * plain
        ours = np.square(np.asarray(result.weight)[:, block] - whole).sum(axis=1)
        assert (ours <= np.square(rounded - whole).sum(axis=1) * 1.00001).all()


def test_inputs_that_were_never_on_and_weights_that_are_zero() -> None:
    weight, gram = problem(6)
    gram[:, 7] = gram[7, :] = 0
    weight[2] = -0.0
    result = sparsegpt(weight, gram, sparsity=0.5, structure=ROW)
    assert_sound(result)
    assert not np.asarray(result.mask)[2].any()
    # Nothing can be made up for by an input that is always zero.
    kept = np.asarray(result.mask)[:, 7]
    np.testing.assert_array_equal(np.asarray(result.weight)[kept, 7], weight[kept, 7])


def test_the_factor_times_itself_is_the_inverse() -> None:
    _, gram = problem(7)
    factor = np.asarray(inverse_factor(gram, damping=0.02), np.float64)
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor, transcriptions.inverse_factor(gram, 0.02), rtol=1e-3, atol=1e-6)
    damped = gram + 0.02 * np.diagonal(gram).mean() * np.eye(COLUMNS)
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(COLUMNS), atol=1e-3)


def test_one_compilation_whatever_the_sparsity(caplog: pytest.LogCaptureFixture) -> None:
    weight, gram = problem(8)
    factor = inverse_factor(gram)
    sparsegpt_with_factor(weight, factor, sparsity=0.2)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for sparsity in (0.3, 0.5, 0.7):
            sparsegpt_with_factor(weight, factor, sparsity=sparsity)
    assert not [message for message in caplog.messages if "Compiling" in message]


def test_bfloat16_weights_are_taken_and_float32_given() -> None:
    weight, gram = problem(0)
    narrow = jnp.asarray(weight).astype(jnp.bfloat16)
    result = sparsegpt(narrow, jnp.asarray(gram), sparsity=0.5)
    same = sparsegpt(narrow.astype(jnp.float32), gram, sparsity=0.5)
    assert result.weight.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(result.weight), np.asarray(same.weight))


def test_what_it_refuses() -> None:
    weight, gram = problem(0)
    mask = np.ones(weight.shape, bool)
    with pytest.raises(InvalidInputError, match=r"got sparsity None, expected 0 or more and below 1"):
        sparsegpt(weight, gram)
    with pytest.raises(InvalidInputError, match="got a sparsity and a mask, expected one of them"):
        sparsegpt(weight, gram, sparsity=0.5, mask=mask)
    with pytest.raises(InvalidInputError, match="got 3 bits, expected 8, 4 or None"):
        sparsegpt(weight, gram, sparsity=0.5, bits=3)
    with pytest.raises(
        UnsupportedError, match="got the structure 2:3 with 8-bit values, expected groups that 1"
    ):
        sparsegpt(weight, gram, structure=parse_structure("2:3"), bits=8)
    with pytest.raises(InvalidInputError, match=r"got a factor of shape \(138, 138\), expected \(7, 7\)"):
        sparsegpt(weight[:, :7], gram, sparsity=0.5)
    with pytest.raises(
        InvalidInputError, match="got weights too large to quantise, expected scales that float"
    ):
        sparsegpt(weight * 1e6, gram, sparsity=0.5, bits=4)
    with pytest.raises(InvalidInputError, match="got NaN or infinity among the weights"):
        sparsegpt(weight * np.float32(np.nan), gram, sparsity=0.5)


def test_products_that_have_no_factor() -> None:
    _, gram = problem(0, columns=8)
    with pytest.raises(InvalidInputError, match="got calibration sums that are all zero"):
        inverse_factor(gram * 0)
    with pytest.raises(InvalidInputError, match="got products that have no Cholesky factor, expected Σ x xᵀ"):
        inverse_factor(-gram)
    with pytest.raises(InvalidInputError, match=r"got damping 0\.0, expected above 0"):
        inverse_factor(gram, damping=0.0)
