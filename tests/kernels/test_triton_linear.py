"""Triton's fused product, interpreted where there is no GPU: both bodies against float64; escapes, parts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax.format.encode import encode_array, encode_record, with_escapes
from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.quantise import dequantise, quantise
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import parse_codec
from endor_jax.kernels.backends import Implementation, Place
from endor_jax.kernels.config import linear_block
from endor_jax.kernels.expand import api as expand_api
from endor_jax.kernels.expand import triton as expand_triton
from endor_jax.kernels.linear import api, linear, triton
from endor_jax.kernels.linear.triton import Body, bodies_for, body_of, fused
from tests import shapes
from tests.kernels.test_linear_product import NAMED, activations, assert_is_product, weight_and_tensor
from tests.lowering import cuda_text
from tests.places import INTERPRET, QUICKLY, marked_on_this_device
from tests.shapes import NamedShape


def interpreted(x: jax.Array, tensor: SparseTensor, body: Body | None = None) -> jax.Array:
    return triton.linear(x, tensor, x.dtype, body=body, interpret=INTERPRET)


pytestmark = marked_on_this_device()
OPTIONS = QUICKLY if INTERPRET else {}

WIDE = NamedShape("wide", (24, 1100), 0.5)
"""Wide enough to be fused without being told."""


@functools.cache
def product(body: Body | None = None) -> Callable[[jax.Array, SparseTensor], jax.Array]:
    return jax.jit(functools.partial(interpreted, body=body), compiler_options=OPTIONS)


@pytest.mark.parametrize(
    ("named", "body"),
    [
        pytest.param(named, body, id=f"{named}-{body}")
        for number, named in enumerate(NAMED)
        for body in ("vector", "tensor")
        if not INTERPRET
        or named.name in ("word_tail", "segment_tail")
        or (body == "vector") == (number % 2 == 0)
    ],
)
def test_every_shape(named: NamedShape, body: Body) -> None:
    weight, tensor = weight_and_tensor(named, "bfloat16")
    x = activations((2, weight.shape[1]), "bfloat16")
    y = product(body)(x, tensor)
    assert y.shape == (2, weight.shape[0])
    assert_is_product(y, np.asarray(x), weight, "bfloat16")


@pytest.mark.parametrize(
    ("dtype", "body"),
    [("bfloat16", "vector"), ("bfloat16", "tensor"), ("float16", "tensor"), ("float32", "vector")],
)
@pytest.mark.parametrize("codec", ["raw", "packed:4", "dense-int4"])
def test_every_kind_of_codec(dtype: str, body: Body, codec: str) -> None:
    array = shapes.weights(shapes.BY_NAME["segment_tail"], dtype, specials=False)
    quantised = quantise(array, int(codec[-1])) if "int" in codec else array
    weight = dequantise(quantised) if "int" in codec else array
    x = activations((3, weight.shape[1]), dtype)
    assert_is_product(product(body)(x, encode_array(quantised, codec)), np.asarray(x), weight, dtype)


@pytest.mark.parametrize(
    ("rows", "dtype"), [(4, "float32"), (16, "bfloat16"), (17, "float16"), (128, "bfloat16")]
)
def test_every_number_of_rows(rows: int, dtype: str) -> None:
    weight, tensor = weight_and_tensor(shapes.BY_NAME["word_tail"], dtype)
    x = activations((rows, 45), dtype)
    body: Body = "vector" if dtype == "float32" else "tensor"
    assert_is_product(product(body)(x, tensor), np.asarray(x), weight, dtype)


@pytest.mark.parametrize(
    "dtypes", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")]
)
def test_x_of_another_dtype(dtypes: tuple[str, str]) -> None:
    weight, tensor = weight_and_tensor(WIDE, dtypes[1])
    x = activations((2, 1100), dtypes[0])
    assert body_of(x, tensor.layout) == "vector"
    assert_is_product(product()(x, tensor), np.asarray(x), weight, dtypes[0])


@pytest.mark.parametrize("body", ["vector", "tensor"])
@pytest.mark.parametrize(("shape", "most"), [((70, 300), 128), ((70, 300), 16_384), ((40, 1500), 10**6)])
def test_escapes(shape: tuple[int, int], most: int, body: Body) -> None:
    """A window of two exponents: most elements are escapes, thousands of them. `most` is room, at least."""
    weight = np.random.default_rng(0).standard_normal(shape).astype("bfloat16")
    weight[np.random.default_rng(1).random(shape) < 0.5] = 0
    if most == 128:  # and few of them
        weight[weight != 0] = 1.5
        weight[::7, 3] = 1e-30
    tensor = encode_array(weight, "packed:1")
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    assert layout.escape_capacity > (0 if most == 128 else 3000)
    tensor = SparseTensor(tensor.parts, replace(layout, escape_capacity=max(most, layout.escape_capacity)))
    x = activations((2, shape[1]), "bfloat16")
    assert_is_product(product(body)(x, tensor), np.asarray(x), weight, "bfloat16")


@pytest.mark.parametrize("body", ["vector", "tensor"])
def test_escapes_that_are_no_numbers_reach_their_own_outputs_only(body: Body) -> None:
    weight = np.full((20, 40), 0.5, np.float32).astype("bfloat16")
    weight[3, 7], weight[18, 0] = np.inf, np.nan
    x = jnp.ones((2, 40), jnp.bfloat16)
    y = np.asarray(product(body)(x, encode_array(weight, "packed:2"))).astype(np.float32)
    assert np.isposinf(y[:, 3]).all()
    assert np.isnan(y[:, 18]).all()
    assert (np.delete(y, [3, 18], axis=1) == 20).all()


@pytest.mark.parametrize("rows", [1, 8])
def test_several_parts(rows: int) -> None:
    """Also one that is all padding."""
    array = shapes.weights(NamedShape("few_rows", (7, 130), 0.4), "bfloat16", specials=False)
    layout = plan_layout({"w": TensorSpec(array.shape, "bfloat16", parse_codec("packed:1"))}, parts=5)
    encoded = encode_record(layout, {"w": array})
    tensor = Record(encoded.parts, with_escapes(layout, encoded.escapes))["w"]
    x = activations((rows, 130), "bfloat16")
    body: Body = "vector" if rows == 1 else "tensor"
    assert_is_product(product(body)(x, tensor), np.asarray(x), array, "bfloat16")


def test_under_vmap_over_x_and_over_both() -> None:
    weights = [shapes.weights(WIDE, "bfloat16", specials=False, seed=seed) for seed in range(2)]
    layout = plan_layout({"w": TensorSpec(WIDE.shape, "bfloat16", parse_codec("packed:2"))})
    encoded = [encode_record(layout, {"w": weight}) for weight in weights]
    place = with_escapes(layout, {"w": max(e.escapes["w"] for e in encoded)})["w"]
    length = max(len(e.parts[0]) for e in encoded)
    words = np.stack([np.pad(e.parts[0], (0, length - len(e.parts[0]))) for e in encoded])
    x = activations((2, 5, 1100), "bfloat16")
    many = jax.jit(jax.vmap(interpreted), compiler_options=OPTIONS)
    both = many(x, SparseTensor((jnp.asarray(words),), place))
    for got, each, weight in zip(both, x, weights, strict=True):
        assert_is_product(got, np.asarray(each), weight, "bfloat16")
    one = SparseTensor((jnp.asarray(words[0]),), place)
    shared = jax.jit(jax.vmap(interpreted, in_axes=(0, None)), compiler_options=OPTIONS)
    for got, each in zip(shared(x, one), x, strict=True):
        assert_is_product(got, np.asarray(each), weights[0], "bfloat16")
    far = activations((40, 4, 1100), "bfloat16")  # more rows together than a fused product takes
    for got, each in zip(shared(far, one), far, strict=True):
        assert_is_product(got, np.asarray(each), weights[0], "bfloat16")


def test_a_batch_of_more_rows_than_are_fused_expands_once() -> None:
    _, tensor = weight_and_tensor(WIDE)
    assert isinstance(tensor.layout, FieldLayout)
    for rows, loops in ((1, 0), (500, 0)):
        x = jax.ShapeDtypeStruct((rows, 1, 1100), jnp.bfloat16)
        product = functools.partial(triton.linear, output_dtype="bfloat16")
        text = cuda_text(jax.vmap(product, in_axes=(0, None)), x, tensor)
        assert text.count("stablehlo.while") == loops
        assert ("endor_expand" in text) == (rows > 128)


@pytest.mark.parametrize("body", ["vector", "tensor"])
@pytest.mark.parametrize("columns", [384, 1536, 576])
def test_what_follows_a_row_is_no_part_of_it(columns: int, body: Body) -> None:
    """Rows whose last segment ends within a tile or with one, each before one that has an infinity."""
    weight = shapes.weights(NamedShape("rows", (6, columns), 0.5), "bfloat16", specials=False)
    weight[3, :8], weight[5, :8] = np.inf, np.nan
    x = jnp.ones((1, columns), jnp.bfloat16)
    y = np.asarray(product(body)(x, encode_array(weight, "raw"))).astype(np.float32)
    assert np.isposinf(y[0, 3])
    assert np.isnan(y[0, 5])
    others = [0, 1, 2, 4]
    exact = weight[others].astype(np.float64).sum(axis=1)
    assert np.abs(y[0, others] - exact).max() < 0.02 * (1 + np.abs(exact).max())


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public functions with implementation="triton", as on a GPU, but interpreted where there is none."""
    if not INTERPRET:
        return

    def resolve(requested: Implementation | None, place: Place) -> Implementation:
        del place
        assert requested is not None
        return requested

    for module in (api, expand_api):
        monkeypatch.setattr(module, "resolve", resolve)
    monkeypatch.setitem(expand_api._EXPAND, "triton", functools.partial(expand_triton.expand, interpret=True))
    monkeypatch.setattr(triton, "linear", functools.partial(triton.linear, interpret=True))


@pytest.mark.parametrize(
    ("rows", "dtype"), [(1, "bfloat16"), (6, "bfloat16"), (6, "float32"), (130, "bfloat16")]
)
@pytest.mark.usefixtures("on_cuda")
def test_the_public_product_and_its_gradient(rows: int, dtype: str) -> None:
    weight, tensor = weight_and_tensor(WIDE, dtype)
    x = activations((rows, 1100), dtype)

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = linear(x, tensor, implementation="triton")
        return y.astype(jnp.float32).sum(), y

    gradient, y = jax.jit(jax.grad(total, has_aux=True), compiler_options=OPTIONS)(x)
    assert_is_product(y, np.asarray(x), weight, dtype)
    assert_is_product(gradient, np.ones((rows, 24), np.float32), weight.T, dtype)


@pytest.mark.parametrize("body", ["vector", "tensor"])
def test_damaged_parts_give_wrong_values_only(body: Body) -> None:
    weight, tensor = weight_and_tensor(shapes.BY_NAME["segment_tail"], codec="packed:1")
    x = activations((2, weight.shape[1]), "bfloat16")
    random = np.random.default_rng(0)
    assert isinstance(tensor.layout, FieldLayout)
    for start, stop in ((0, 64), (tensor.layout.offsets.start, tensor.layout.offsets.stop), (0, None)):
        for fill in (None, 0xFFFFFFFF, 0x7FFFFFFF):
            words = np.array(tensor.parts[0])
            noise = random.integers(0, 2**32, len(words[start:stop]), dtype=np.uint64).astype(np.uint32)
            words[start:stop] = noise if fill is None else fill
            y = product(body)(x, SparseTensor((jnp.asarray(words),), tensor.layout))
            assert y.shape == (2, weight.shape[0])


BF16, F16, F32 = "bfloat16", "float16", "float32"


@pytest.mark.parametrize(
    ("rows", "x_dtype", "weight_dtype", "codec", "escapes", "body"),
    [
        (1, BF16, BF16, "packed:2", 9, "vector"),
        (2, BF16, BF16, "packed:2", 9, "tensor"),
        (128, F16, F16, "int8", 0, "tensor"),
        (64, BF16, BF16, "packed:2", 9, "tensor"),
        (65, BF16, BF16, "packed:2", 9, None),  # 128 and those of escapes would be an eighth of the matrix
        (129, BF16, BF16, "packed:2", 0, None),
        (0, BF16, BF16, "packed:2", 0, None),
        (4, F32, F32, "raw", 0, "vector"),
        (5, F32, F32, "raw", 0, None),
        (4, F32, BF16, "raw", 0, "vector"),
        (5, F16, BF16, "raw", 0, None),
        (1, BF16, BF16, "dense-packed:3", 0, "vector"),
        (1, BF16, BF16, "dense-packed:3", 1, None),
    ],
)
def test_what_is_fused(
    rows: int, x_dtype: str, weight_dtype: str, codec: str, escapes: int, body: Body | None
) -> None:
    columns = 4096
    layout = plan_layout({"w": TensorSpec((64, columns), weight_dtype, parse_codec(codec))})["w"]
    assert isinstance(layout, FieldLayout)
    layout = replace(layout, escape_capacity=escapes)
    x = jax.ShapeDtypeStruct((rows, columns), jnp.dtype(x_dtype))
    assert fused(x, layout, x_dtype) == (body is not None)
    assert not fused(x, layout, "float64")
    if body is not None:
        assert body_of(x, layout) == body


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [((1, 2**29), 1, False), ((2**24, 64), 1, True), ((2**28, 1), 5, False), ((2**16, 8192), 128, True)],
)
def test_x_and_sums_that_int32_cannot_index_are_not_fused(
    shape: tuple[int, int], rows: int, expected: bool
) -> None:
    layout = plan_layout({"w": TensorSpec(shape, "bfloat16", parse_codec("raw"))})["w"]
    assert fused(jax.ShapeDtypeStruct((rows, shape[1]), jnp.bfloat16), layout, "bfloat16") == expected


@pytest.mark.parametrize(
    "shape", [(64, 64), (4096, 4096), (8192, 28672), (28672, 8192), (4096, 576)], ids=str
)
@pytest.mark.parametrize("rows", [1, 4, 16, 32, 64, 128])
@pytest.mark.parametrize("escapes", [0, 1000])
def test_programs_share_the_matrix_out_and_their_sums_stay_small(
    shape: tuple[int, int], rows: int, escapes: int
) -> None:
    """An eighth of the dense matrix, where a product is fused at all."""
    layout = plan_layout({"w": TensorSpec(shape, "bfloat16", parse_codec("packed:2"))})["w"]
    assert isinstance(layout, FieldLayout)
    layout = replace(layout, escape_capacity=escapes)
    bodies = bodies_for(jax.ShapeDtypeStruct((rows, shape[1]), jnp.bfloat16), layout)
    assert bodies or rows >= 64 or shape[1] < 1024
    for body in bodies:
        padded = rows if body == "vector" else max(16, rows)
        block = linear_block(layout, tensor_cores=body == "tensor", rows=padded)
        assert 1 <= block.segments <= layout.segments
        assert block.rows % block.at_once == 0
        sums = -(-layout.segments // block.segments) + bool(escapes)
        assert sums * padded * shape[0] * 4 < 2 * math.prod(shape) / 8
