"""One tensor on its way into a checkpoint: cast, pruned, −0.0 counted and changed."""

from __future__ import annotations

import numpy as np
import pytest

from endor_jax.arrays import bits_of, dtype_from_name
from endor_jax.conversion.prepare import cast, prepare, prunable
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import InvalidInputError
from endor_jax.prune.structure import dropped
from endor_jax.sources import Place, TensorInfo

MATRIX = Place("layers.0", "mlp.up.weight")


class OneTensor:
    """A source that has one tensor."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.tensors = {"it": TensorInfo(array.shape, array.dtype.name)}
        self.path = self.config = None

    def read(self, name: str) -> np.ndarray:
        return self.array.copy()

    def files(self):
        return {}

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def prepared(array: np.ndarray, place: Place = MATRIX, **settings):
    return prepare(OneTensor(array), "it", place, settings=ConvertSettings(**settings))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_negative_zeros_are_counted_and_changed(dtype):
    array = np.array([[-0.0, 1.0, -2.0, 0.0], [-0.0, -0.0, 3.0, -1e-3]], dtype_from_name(dtype))
    result = prepared(array)
    assert result.negative_zeros == 3
    assert not np.signbit(result.array[result.array == 0]).any()
    np.testing.assert_array_equal(result.array.astype(np.float32), array.astype(np.float32))


def test_negative_zeros_are_kept_on_demand():
    array = np.array([[-0.0, 1.0]], np.float32)
    result = prepared(array, keep_negative_zero=True)
    assert result.negative_zeros == 0
    np.testing.assert_array_equal(bits_of(result.array), bits_of(array))


def test_every_other_bit_pattern_stays():
    bits = np.array([[0x7FC1, 0xFF81, 0x7F80, 0xFF80, 0x0001, 0x8001, 0x8000, 0x0000]], np.uint16)
    result = prepared(bits.view(dtype_from_name("bfloat16")))
    expected = np.where(bits == 0x8000, 0, bits)
    np.testing.assert_array_equal(bits_of(result.array), expected)
    assert result.negative_zeros == 1


def test_a_cast_can_make_negative_zeros_and_they_count():
    # Too small for float16: rounds to zero and keeps the sign.
    result = prepared(np.array([[-1e-12, 1.0]], np.float32), dtype="float16")
    assert result.negative_zeros == 1
    assert bits_of(result.array)[0, 0] == 0


def test_casts_round_to_nearest_even():
    array = np.array([[1.00390625, 1.01171875]], np.float32)  # halfway between two bfloat16
    result = cast(array, "it", "bfloat16")
    np.testing.assert_array_equal(result.astype(np.float32), [[1.0, 1.015625]])


def test_overflow_names_the_tensor():
    array = np.array([[1e6, 1.0, -1e6]], np.float32)
    with pytest.raises(InvalidInputError, match=r"tensor 'it': got 2 values too large for float16.*bfloat16"):
        prepared(array, dtype="float16")


def test_infinities_of_the_source_may_stay():
    array = np.array([[np.inf, -np.inf, np.nan, 1.0]], np.float32)
    np.testing.assert_array_equal(prepared(array, dtype="float16").array, array.astype(np.float16))


def test_integers_are_not_cast():
    array = np.array([[1, 2]], np.int32)
    assert prepared(array, dtype="bfloat16").array.dtype == np.int32


@pytest.mark.parametrize(("columns", "sparsity"), [(64, 0.5), (65, 0.5), (7, 0.3), (100, 0.0), (10, 0.99)])
def test_pruning_leaves_the_same_count_in_every_row(columns, sparsity):
    array = np.random.default_rng(0).normal(size=(20, columns)).astype(np.float32)
    result = prepared(array, prune="magnitude", sparsity=sparsity).array
    kept = np.count_nonzero(result, axis=1)
    assert (kept == columns - dropped(sparsity, columns)).all()
    # What stays has every bit, and nothing that went was larger than what stayed.
    for before, after in zip(array, result, strict=True):
        mask = after != 0
        np.testing.assert_array_equal(before[mask], after[mask])
        assert np.abs(before[~mask]).max(initial=0) <= np.abs(before[mask]).min(initial=np.inf)


@pytest.mark.parametrize(
    ("place", "shape", "expected"),
    [
        (MATRIX, (4, 4), True),
        (Place("layers.0", "mlp.up.bias"), (4,), False),
        (Place("embedding", "weight"), (4, 4), False),
        (Place("head", "weight"), (4, 4), False),
        (Place("stem", "positions"), (4, 4), False),
    ],
)
def test_only_matrices_of_layers_are_pruned(place, shape, expected):
    assert prunable(place, shape) is expected


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"prune": "magnitude", "sparsity": 0.3}])
def test_blocks_of_rows_change_nothing(monkeypatch, settings):
    array = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    array[7, :5] = array[49, 39] = -0.0
    whole = prepared(array, **settings)
    monkeypatch.setattr("endor_jax.conversion.prepare.BLOCK_ELEMENTS", 120)
    blocks = prepared(array, **settings)
    np.testing.assert_array_equal(bits_of(blocks.array), bits_of(whole.array))
    assert (blocks.negative_zeros, blocks.digest) == (whole.negative_zeros, whole.digest)
    array[3, 0] = array[45, 2] = 1e30
    with pytest.raises(InvalidInputError, match="got 2 values too large for float16"):
        prepared(array, dtype="float16")


def test_what_a_source_keeps_for_itself_is_not_changed():
    array = np.full((4, 4), -0.0, np.float32)
    array.flags.writeable = False
    source = OneTensor(array)
    source.read = lambda name: array
    result = prepare(source, "it", MATRIX, settings=ConvertSettings())
    assert result.negative_zeros == 16
    assert np.signbit(array).all()
