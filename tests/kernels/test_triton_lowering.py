"""Triton's kernels lower for CUDA on a machine without one: one call per tensor, nothing else of its size."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import parse_codec
from endor_jax.kernels.backends import Place
from endor_jax.kernels.expand import api as expand_api
from endor_jax.kernels.expand import expand, triton
from endor_jax.kernels.linear import api as linear_api
from endor_jax.kernels.linear import dense, linear
from endor_jax.kernels.linear import triton as linear_triton
from tests.lowering import cuda_lowered, large_operations

CODECS = {
    "bfloat16": ("raw", "packed:1", "packed:2", "packed:7", "dense-raw", "dense-packed:3"),
    "float16": ("raw", "packed:1", "packed:4", "dense-raw", "dense-packed:2"),
    "float32": ("raw", "packed:2", "packed:7", "dense-raw", "dense-packed:3"),
}
INTEGERS = ("int8", "int4", "dense-int8", "dense-int4")


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """JAX's default device is a Hopper. What there is was looked up when a function was first traced."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (expand_api, linear_api):
            patch.setattr(module, "default_place", lambda: Place("gpu", (9, 0)))
        jax.clear_caches()
        yield
    jax.clear_caches()


CALL, SCATTER = "stablehlo.custom_call", "stablehlo.scatter"


def abstract_tensor(
    shape: tuple[int, ...], dtype: str, codec: str, *, escapes: int = 0, parts: int = 1
) -> SparseTensor:
    """Words of a plausible number, and a layout: nothing that lowering looks at is missing."""
    layout = plan_layout({"w": TensorSpec(shape, dtype, parse_codec(codec))}, parts=parts)["w"]
    assert isinstance(layout, FieldLayout)
    words = jax.ShapeDtypeStruct((math.prod(shape) + 4096,), jnp.uint32)
    return SparseTensor((words,) * parts, replace(layout, escape_capacity=escapes))


@pytest.mark.parametrize(
    ("dtype", "codec"), [(dtype, codec) for dtype, codecs in CODECS.items() for codec in (*codecs, *INTEGERS)]
)
@pytest.mark.parametrize("shape", [(64, 4096), (8, 8, 45)], ids=str)
def test_expand_is_one_call_and_a_scatter(shape: tuple[int, ...], dtype: str, codec: str) -> None:
    for escapes in (0, 100) if "packed" in codec else (0,):
        tensor = abstract_tensor(shape, dtype, codec, escapes=escapes)
        lowered = cuda_lowered(triton.expand, tensor)
        assert large_operations(lowered, math.prod(shape)) == [CALL] + [SCATTER] * bool(escapes)
        assert lowered.as_text().count("@__gpu$xla.gpu.triton") == 1


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize(
    ("dtype", "codec"),
    [(dtype, codec) for dtype in CODECS for codec in (*CODECS[dtype], *INTEGERS)],
)
def test_linear_is_one_call_and_nothing_of_the_matrix_size(dtype: str, codec: str, rows: int) -> None:
    shape = (256, 4096)
    tensor = abstract_tensor(shape, dtype, codec, escapes=100 if codec.startswith("packed") else 0)
    x = jax.ShapeDtypeStruct((rows, 4096), jnp.dtype(dtype))
    if not linear_triton.fused(x, tensor.layout, dtype):
        assert dtype == "float32"
        assert rows > 4
        return
    lowered = cuda_lowered(functools.partial(linear_triton.linear, output_dtype=dtype), x, tensor)
    assert lowered.as_text().count("@__gpu$xla.gpu.triton") == 1
    assert large_operations(lowered, max(math.prod(shape), rows * 4096 + 1)) == []


def test_a_gradient_expands_once() -> None:
    shape = (256, 4096)
    tensor = abstract_tensor(shape, "bfloat16", "packed:2")
    x = jax.ShapeDtypeStruct((8, 4096), jnp.bfloat16)
    with as_on_a_gpu():
        lowered = cuda_lowered(jax.grad(lambda x, t: linear(x, t).astype(jnp.float32).sum()), x, tensor)
    large = large_operations(lowered, math.prod(shape))
    assert large.count(CALL) == 1  # and what turns it for the product
    assert SCATTER not in large


def test_several_parts_are_written_into_one_array() -> None:
    shape = (24, 700)
    lowered = cuda_lowered(triton.expand, abstract_tensor(shape, "bfloat16", "packed:2", parts=3))
    assert large_operations(lowered, math.prod(shape)) == [CALL] * 3
    assert lowered.as_text().count("output_operand_alias<") == 2


def test_a_layer_has_one_call_per_tensor() -> None:
    specs = {
        "up": TensorSpec((64, 1024), "bfloat16", parse_codec("packed:2")),
        "down": TensorSpec((1024, 64), "bfloat16", parse_codec("int4")),
        "norm": TensorSpec((64,), "float32", None),
    }
    record = Record((jax.ShapeDtypeStruct((100_000,), jnp.uint32),), plan_layout(specs))
    with as_on_a_gpu():
        lowered = cuda_lowered(expand, record)
    assert large_operations(lowered, 64 * 1024) == [CALL] * 2


def test_a_weight_is_expanded_once_for_a_batch_that_it_waits_for() -> None:
    tensor = abstract_tensor((16, 256), "bfloat16", "packed:2")
    x = jax.ShapeDtypeStruct((7, 1, 256), jnp.bfloat16)

    def product(x: jax.Array, tensor: SparseTensor) -> jax.Array:
        return dense(x, triton.expand(tensor, x))

    lowered = cuda_lowered(jax.vmap(product, in_axes=(0, None)), x, tensor)
    assert large_operations(lowered, 16 * 256) == [CALL]
    words, earlier = lowered.as_text().split("@__gpu$xla.gpu.triton(")[1].split(")")[0].split(", ")
    assert words != earlier


def test_it_lowers_inside_shard_map_and_vmap() -> None:
    tensor = abstract_tensor((16, 256), "bfloat16", "packed:2", escapes=10)
    stacked = jax.tree.map(lambda words: jax.ShapeDtypeStruct((2, *words.shape), words.dtype), tensor)
    assert CALL in large_operations(cuda_lowered(jax.vmap(triton.expand), stacked), 16 * 256)
    mesh = jax.sharding.AbstractMesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("rows")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def local(tensor: SparseTensor) -> jax.Array:
        return triton.expand(jax.tree.map(lambda words: words.reshape(-1), tensor))

    jaxpr = jax.make_jaxpr(local)(stacked)
    assert jaxpr.out_avals[0].shape == (32, 256)


def test_large_operations_are_seen() -> None:
    """Of the check itself: a copy would be found."""
    lowered = cuda_lowered(lambda x: jnp.flip(x) + 1, np.zeros((64, 64), np.float32))
    assert set(large_operations(lowered, 64 * 64)) >= {"stablehlo.reverse", "stablehlo.add"}
