"""`expand` and `linear` lower for CUDA on a machine without one: nothing in them is for the host only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from endor_jax.format.encode import encode_array
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.expand import expand
from endor_jax.kernels.linear import linear
from tests import shapes
from tests.lowering import abstract, cuda_text


@pytest.mark.parametrize("codec", ["raw", "packed:2", "dense-raw", "dense-packed:3", "int4"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_expand_lowers_for_cuda(dtype: str, codec: str) -> None:
    array = shapes.weights(shapes.BY_NAME["segment_tail"], dtype, specials="int" not in codec)
    text = cuda_text(expand, abstract(encode_array(array, codec)))
    assert "bitcast_convert" in text
    if codec.startswith("packed"):
        assert "popcnt" in text
        assert "scatter" in text


def test_linear_and_its_gradient_lower_for_cuda() -> None:
    weight = shapes.weights(shapes.BY_NAME["square"], "bfloat16", specials=False)
    tensor = abstract(encode_array(weight, "packed:2"))
    x = jax.ShapeDtypeStruct((2, 64), jnp.bfloat16)
    text = cuda_text(linear, x, tensor)
    # On a GPU the product takes bfloat16 as it is; widening is for the CPU.
    assert "(tensor<2x64xbf16>, tensor<64x64xbf16>) -> tensor<2x64xf32>" in text

    def loss(x: jax.Array, tensor: SparseTensor) -> jax.Array:
        return jnp.sum(linear(x, tensor).astype(jnp.float32))

    assert "dot_general" in cuda_text(jax.grad(loss), x, tensor)
