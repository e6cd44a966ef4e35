"""Parts written once and kept: a format version is a promise about bytes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from make_golden import EXAMPLES, GOLDEN, Golden, read_golden

from endor_jax.arrays import dtype_from_name
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.expand import expand


@pytest.fixture(params=sorted(path.stem for path in GOLDEN.glob("*.txt")))
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_golden(GOLDEN / f"{request.param}.txt")


def array_of(golden: Golden) -> np.ndarray:
    return np.frombuffer(golden.array, dtype_from_name(golden.dtype)).reshape(golden.shape)


def test_none_is_missing() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(EXAMPLES)


def test_arrays_are_encoded_to_the_same_bytes(golden: Golden) -> None:
    (part,) = encode_array(array_of(golden), golden.codec).parts
    assert np.asarray(part).tobytes() == golden.part


def test_bytes_are_decoded_to_the_same_arrays(golden: Golden) -> None:
    layout = encode_array(array_of(golden), golden.codec).layout
    tensor = SparseTensor((np.frombuffer(golden.part, np.uint32),), layout)
    assert decode(tensor).tobytes() == golden.decoded
    assert np.asarray(jax.jit(expand)(tensor)).tobytes() == golden.decoded
