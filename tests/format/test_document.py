"""The worked examples of docs/format.md are decoded out of the document, and encoded to the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from endor_jax.arrays import bits_of
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array
from endor_jax.format.layout import GROUP, SEGMENT, TensorSpec, plan_layout
from endor_jax.format.quantise import Quantised
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec
from endor_jax.kernels.expand import expand
from endor_jax.store.manifest import FORMAT_VERSION
from tests.format import hextext, transcription

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


@pytest.fixture
def array() -> np.ndarray:
    """The matrix of the example, from its table: (row, column), value, bits."""
    bits = np.zeros((2, 40), np.uint16)
    rows = re.findall(r"^\| \((\d+), (\d+)\) \| [^|]* \| `([0-9a-f]{4})` \|", DOCUMENT, re.MULTILINE)
    assert len(rows) == 9
    for row, column, pattern in rows:
        bits[int(row), int(column)] = int(pattern, 16)
    return bits.view(ml_dtypes.bfloat16)


def parts() -> list[np.ndarray]:
    """The parts of the two examples."""
    blocks = re.findall(r"```endor-part\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(blocks) == 2
    return [np.frombuffer(hextext.parse(block), np.uint32) for block in blocks]


@pytest.fixture
def part() -> np.ndarray:
    return parts()[0]


@pytest.fixture
def integers() -> tuple[Quantised, np.ndarray]:
    """The second example from its table: integers with scales, and the bits of the elements."""
    values, scales = np.zeros((2, 130), np.int8), np.zeros((2, 2), np.uint16)
    bits = np.zeros((2, 130), np.uint16)
    row = r"^\| \((\d+), (\d+)\) \| (−?\d) \| `([0-9a-f]{4})`, [^|]* \| [^|]* \| `([0-9a-f]{4})`"
    rows = re.findall(row, DOCUMENT, re.MULTILINE)
    assert len(rows) == 4
    for place, column, value, scale, pattern in ((int(r[0]), int(r[1]), *r[2:]) for r in rows):
        values[place, column] = int(value.replace("−", "-"))
        scales[place, column // GROUP] = int(scale, 16)
        bits[place, column] = int(pattern, 16)
    return Quantised(values, scales.view(np.float16), (2, 130), "bfloat16"), bits


def test_the_example_is_what_the_encoder_writes(array: np.ndarray, part: np.ndarray) -> None:
    (written,) = encode_array(array, "packed:2").parts
    np.testing.assert_array_equal(np.asarray(written), part)
    assert f"one part: {part.nbytes} bytes" in DOCUMENT


def test_the_example_is_decoded(array: np.ndarray, part: np.ndarray) -> None:
    layout = encode_array(array, "packed:2").layout
    tensor = SparseTensor((part,), layout)
    np.testing.assert_array_equal(bits_of(decode(tensor)), bits_of(array))
    np.testing.assert_array_equal(bits_of(np.asarray(jax.jit(expand)(tensor))), bits_of(array))
    described = transcription.Tensor("a", (2, 40), "bfloat16", "packed:2", 2)
    assert transcription.decode([part.tolist()], [described], "a") == bits_of(array).reshape(-1).tolist()


def test_the_second_example_is_what_the_encoder_writes(integers: tuple[Quantised, np.ndarray]) -> None:
    (written,) = encode_array(integers[0], "int4").parts
    np.testing.assert_array_equal(np.asarray(written), parts()[1])
    assert f"one part: {parts()[1].nbytes} bytes" in DOCUMENT


def test_the_second_example_is_decoded(integers: tuple[Quantised, np.ndarray]) -> None:
    quantised, bits = integers
    tensor = SparseTensor((parts()[1],), encode_array(quantised, "int4").layout)
    np.testing.assert_array_equal(bits_of(decode(tensor)), bits)
    np.testing.assert_array_equal(bits_of(np.asarray(jax.jit(expand)(tensor))), bits)
    described = transcription.Tensor("a", (2, 130), "bfloat16", "int4", 2)
    assert transcription.decode([parts()[1].tolist()], [described], "a") == bits.reshape(-1).tolist()


def test_the_values_in_the_table_are_those_of_the_bits() -> None:
    rows = re.findall(r"^\| \(\d+, \d+\) \| ([^|]*) \| `([0-9a-f]{4})` \|", DOCUMENT, re.MULTILINE)
    for text, pattern in rows:
        value = 2.0**-40 if "⁴" in text else float(text.replace("−", "-"))
        assert np.array(int(pattern, 16), np.uint16).view(ml_dtypes.bfloat16) == np.float32(value)


def test_numbers_that_the_document_and_the_code_share() -> None:
    assert f"# The sparse format, version {FORMAT_VERSION}\n" in DOCUMENT
    assert f"S = min({SEGMENT}, C)" in DOCUMENT
    assert f"groups of {GROUP} columns" in DOCUMENT
    start = plan_layout({"a": TensorSpec((2, 40), "bfloat16", Codec("packed", 2))}).streams_start
    assert f"stream at word {start}" in DOCUMENT
