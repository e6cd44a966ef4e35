"""What stages tell each other: the bits that were given, however many rows there are."""

from __future__ import annotations

import numpy as np
import pytest

from endor_jax.arrays import bits_of, dtype_from_name
from endor_jax.generate import exchange
from endor_jax.generate.exchange import Exchange, exchanged_bytes, largest_piece, piece_rows
from endor_jax.streaming.devices import first_stages


def random_bits(rows: int, width: int, dtype: str, seed: int) -> np.ndarray:
    """Any bits: NaNs and negative zeros among them."""
    wanted = dtype_from_name(dtype)
    raw = np.random.default_rng(seed).integers(0, 256, rows * width * wanted.itemsize, np.uint8)
    raw[: 4 * wanted.itemsize] = 0xFF
    return raw.view(wanted).reshape(rows, width)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PIECE_BYTES", 16 * 24)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("stages", "devices", "dtype"), [(2, 1, "float32"), (3, 2, "bfloat16")])
def test_bits_arrive_at_the_next_stage(stages, devices, dtype):
    through = Exchange(first_stages(stages, devices))
    like = np.empty((0, 6), dtype_from_name(dtype))
    for rows in (1, 9, 41):
        # One stage has fewer rows than the others, the last gives nothing.
        given = {s: random_bits(max(1, rows - s), 6, dtype, seed=s) for s in range(stages - 1)}
        received = through.hand_on(given, rows, like=like)
        assert sorted(received) == list(range(1, stages))
        for stage, x in received.items():
            sent = bits_of(given[stage - 1])
            np.testing.assert_array_equal(bits_of(x)[: len(sent)], sent)
            assert not bits_of(x)[len(sent) :].any()


@pytest.mark.usefixtures("small_pieces")
def test_what_the_last_stage_says_is_heard_with_all_its_bits():
    through = Exchange(first_stages(2, 2))
    for rows in (1, 8, 23):
        said = random_bits(rows, 6, "float32", seed=rows)
        heard = through.tell_all(said, rows, like=np.empty((0, 6), np.float32))
        np.testing.assert_array_equal(bits_of(heard), bits_of(said))


def test_few_programs_are_compiled(small_pieces):
    through = Exchange(first_stages(2, 1))
    before = exchange._shift._cache_size()
    for rows in range(1, 60):
        through.hand_on({0: np.ones((rows, 6), np.float32)}, rows, like=np.empty((0, 6), np.float32))
    assert exchange._shift._cache_size() - before <= 2


def test_room_is_bounded_whatever_is_exchanged():
    assert largest_piece(16384) == 256
    assert largest_piece(1 << 30) == exchange.SMALLEST_ROWS
    assert [piece_rows(rows) for rows in (1, 8, 9, 200, 256)] == [8, 8, 16, 256, 256]
    device, host = exchanged_bytes(1 << 20, 16384, rows=32, row_bytes=4 * 128256)
    assert device == max(2 * 256 * 16384, 2 * 8 * 4 * 128256)
    assert host == 2 * (1 << 20) * 16384 + 2 * 32 * 4 * 128256 + device
