"""The worked example of docs/format.md is decoded out of the document, and encoded to the same bytes."""

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
from endor_jax.format.layout import SEGMENT, TensorSpec, plan_layout
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


@pytest.fixture
def part() -> np.ndarray:
    (block,) = re.findall(r"```endor-part\n(.*?)```", DOCUMENT, re.DOTALL)
    return np.frombuffer(hextext.parse(block), np.uint32)


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


def test_the_values_in_the_table_are_those_of_the_bits() -> None:
    rows = re.findall(r"^\| \(\d+, \d+\) \| ([^|]*) \| `([0-9a-f]{4})` \|", DOCUMENT, re.MULTILINE)
    for text, pattern in rows:
        value = 2.0**-40 if "⁴" in text else float(text.replace("−", "-"))
        assert np.array(int(pattern, 16), np.uint16).view(ml_dtypes.bfloat16) == np.float32(value)


def test_numbers_that_the_document_and_the_code_share() -> None:
    assert f"# The sparse format, version {FORMAT_VERSION}\n" in DOCUMENT
    assert f"S = min({SEGMENT}, C)" in DOCUMENT
    start = plan_layout({"a": TensorSpec((2, 40), "bfloat16", Codec("packed", 2))}).streams_start
    assert f"stream at word {start}" in DOCUMENT
