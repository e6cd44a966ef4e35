"""Mosaic's expand on a Hopper GPU, bit for bit: once this has passed there, and its record is committed, it
may be offered (`backends.implementations`). `bash .ci/gpu DIRECTORY mosaic` runs it, apart from all others.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from endor_jax.arrays import bits_of
from endor_jax.bench.device_matrices import device_matrix, measured_sparsity
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array, encode_record, with_escapes
from endor_jax.format.layout import DenseLayout, TensorSpec, plan_layout
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import parse_codec
from endor_jax.kernels.expand import mosaic
from tests import shapes
from tests.kernels.test_expand_conformance import KINDS, longer, stored
from tests.shapes import NamedShape

pytestmark = pytest.mark.gpu
HOPPER = "9.0"


@functools.cache
def expander() -> jax.stages.Wrapped:
    """Of the one GPU that it is written for; skips on any other."""
    device = jax.devices("gpu")[0]
    if device.compute_capability != HOPPER:
        pytest.skip(f"Mosaic's expand is for compute capability {HOPPER}")
    return jax.jit(mosaic.expand)


def assert_expands_to(tensor: SparseTensor, expected: np.ndarray) -> None:
    expand = expander()
    got = np.asarray(expand(jax.device_put(tensor, jax.devices("gpu")[0])))
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(bits_of(got), bits_of(expected))


@pytest.mark.parametrize("named", shapes.SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "codec"), KINDS)
def test_it_equals_the_oracle(dtype: str, codec: str, named: NamedShape) -> None:
    array, source = stored(named, dtype, codec)
    tensor = encode_array(source, codec)
    assert_expands_to(tensor, decode(tensor))
    if "tail" in named.name and not isinstance(tensor.layout, DenseLayout):
        assert_expands_to(longer(tensor, 40, 0xDEADBEEF), array)


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("codec", ["packed:2", "dense-packed:3", "int8"])
def test_several_parts_write_their_own_rows(codec: str, parts: int) -> None:
    array, source = stored(shapes.BY_NAME["rank_3"], "bfloat16", codec)
    layout = plan_layout({"w": TensorSpec(array.shape, "bfloat16", parse_codec(codec))}, parts=parts)
    encoded = encode_record(layout, {"w": source})
    assert_expands_to(Record(encoded.parts, with_escapes(layout, encoded.escapes))["w"], array)


@pytest.mark.parametrize("codec", ["raw", "packed:2", "int8", "int4", "dense-raw"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_layer_of_a_large_model(dtype: str, codec: str) -> None:
    """More programs than the device has processors, several segments a row."""
    sparsity = measured_sparsity(codec, 0.5)
    matrix = device_matrix((4096, 11008), codec=codec, sparsity=sparsity, dtype=dtype)
    assert_expands_to(matrix.tensor, matrix.dense)
