"""The field stream and the bitmap against integers of any length, which Python has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.format import bitmap, fields

WIDTHS = tuple(range(1, 33))


def random_fields(count: int, width: int, seed: int, dtype: type = np.uint32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << width, count, dtype=np.uint64).astype(dtype)


@given(st.sampled_from(WIDTHS), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_the_stream_is_one_long_integer(width: int, count: int, seed: int) -> None:
    values = random_fields(count, width, seed)
    stream = fields.pack(values, width)
    assert stream.dtype == np.uint32
    assert stream.shape == (fields.stream_words(count, width),)
    expected = sum(int(value) << (i * width) for i, value in enumerate(values))
    assert int.from_bytes(stream.tobytes(), "little") == expected


@pytest.mark.parametrize("width", WIDTHS)
def test_many_batches(width: int) -> None:
    """More fields than are packed at a time."""
    count = 32 * fields.GROUPS_PER_BATCH + 77
    values = random_fields(count, width, width)
    stream = fields.pack(values, width)
    np.testing.assert_array_equal(fields.read(stream, np.arange(count) * width, width), values)


@pytest.mark.parametrize(
    ("width", "dtype"), [(8, np.uint8), (16, np.uint16), (32, np.uint32), (10, np.uint16)]
)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 31, 33])
def test_fields_of_any_unsigned_dtype(width: int, dtype: type, count: int) -> None:
    values = random_fields(count, width, count, dtype)
    np.testing.assert_array_equal(fields.pack(values, width), fields.pack(values.astype(np.uint32), width))


@given(st.sampled_from(WIDTHS), st.data())
def test_reading_at_any_bit(width: int, data: st.DataObject) -> None:
    words = random_fields(9, 32, data.draw(st.integers(0, 99)))
    whole = int.from_bytes(words.tobytes(), "little")
    positions = data.draw(st.lists(st.integers(0, 32 * 9 - width), max_size=20))
    got = fields.read(words, np.array(positions, np.int64), width)
    assert got.tolist() == [whole >> position & ((1 << width) - 1) for position in positions]


@given(st.integers(1, 5), st.integers(1, 130), st.integers(0, 2**32 - 1))
def test_bitmap_rows_are_integers(rows: int, columns: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.5
    words = bitmap.pack(mask)
    assert words.shape == (rows, bitmap.words_per_row(columns))
    for row, held in zip(mask, words, strict=True):
        assert int.from_bytes(held.tobytes(), "little") == sum(1 << j for j in np.flatnonzero(row).tolist())
    np.testing.assert_array_equal(bitmap.unpack(words, columns), mask)


@pytest.mark.parametrize(("columns", "words"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (1025, 33)])
def test_words_per_row(columns: int, words: int) -> None:
    assert bitmap.words_per_row(columns) == words


def test_bitmap_ignores_what_lies_past_the_last_column() -> None:
    assert bitmap.unpack(np.full((2, 2), 0xFFFFFFFF, np.uint32), 33).shape == (2, 33)
