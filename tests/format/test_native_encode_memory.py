"""The compiled encoders without Python, under sanitizers; every array ends where a forbidden page begins."""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from endor_jax import native
from endor_jax.arrays import FLOAT_FORMATS, FloatFormat, bits_of
from endor_jax.format.encode_matrix import encode_matrix
from endor_jax.format.layout import matrix_shape
from endor_jax.format.values import Codec
from tests.kernels.native.building import NATIVE, SANITIZED, SETUP, Driver
from tests.shapes import BY_NAME, NamedShape, weights
from tests.strategies import CODECS

SHAPES = ("one_element", "one_column", "word_tail", "two_segments", "segment_of_one_column", "segment_tail")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    try:
        compiler = SETUP["compiler"]()
    except SETUP["CompileError"] as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("encode_driver")
    sources = [*sorted(NATIVE.glob("encode*.cc")), Path(__file__).with_name("encode_driver.cc")]
    objects = SETUP["compile_objects"](
        compiler,
        sources,
        machine=platform.machine(),
        folder=folder,
        more=[*SANITIZED, "-iquote", str(NATIVE)],
    )
    program = folder / "driver"
    SETUP["run"]([*compiler, *map(str, objects), *SANITIZED, "-o", str(program)])
    return Driver((str(program),), {path.stem: path for path in objects})


def matrices(number: FloatFormat) -> Iterator[np.ndarray]:
    """Weights with special values, and any bits: few exponents, all of them, many escapes."""
    random = np.random.default_rng(0)
    for named in (*(BY_NAME[name] for name in SHAPES), NamedShape("all_but_one_of_a_word", (3, 63), 0.5)):
        bits = bits_of(weights(named, number.name))
        yield bits.reshape(matrix_shape(bits.shape))
        anything = random.integers(0, 1 << number.bits, matrix_shape(bits.shape), dtype=np.uint64)
        yield anything.astype(number.unsigned)


def case(bits: np.ndarray, codec: Codec, number: FloatFormat) -> bytes:
    """As `main` of encode_driver.cc reads it."""
    made = encode_matrix(bits, codec, number)
    numbers = (native.NUMBERS[number.name], codec.field_bits(number), codec.kind == "packed", codec.bitmap)
    counts = int(made.counts.sum()), made.escape_index.shape[0], made.nonzero
    pieces = (bits, made.counts, made.bases, made.bitmap, made.stream, made.escape_index, made.escape_bits)
    header = struct.pack("<9q", *numbers, *bits.shape, *counts)
    return header + b"".join(piece.tobytes() for piece in pieces if piece is not None)


def cases() -> list[bytes]:
    return [
        case(bits, codec, number)
        for number in FLOAT_FORMATS.values()
        for bits in matrices(number)
        for codec in CODECS[number.name]
    ]


def test_nothing_outside_is_read_or_written(driver: Driver, tmp_path: Path) -> None:
    all_cases = cases()
    path = tmp_path / "cases"
    path.write_bytes(struct.pack("<q", len(all_cases)) + b"".join(all_cases))
    assert driver(path).startswith(f"{len(all_cases)} cases on ")


def test_the_driver_notices_a_wrong_piece(driver: Driver, tmp_path: Path) -> None:
    number = FLOAT_FORMATS["bfloat16"]
    data = bytearray(case(next(matrices(number)), Codec("raw"), number))
    data[-1] ^= 1
    path = tmp_path / "cases"
    path.write_bytes(struct.pack("<q", 1) + data)
    with pytest.raises(AssertionError, match=r"encode_driver: case 0, \w+: other pieces"):
        driver(path)
