"""`linear` against float64, its gradient against the dense one, and what it refuses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from endor_jax import native
from endor_jax.arrays import bits_of
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.encode import encode_array, encode_record, with_escapes
from endor_jax.format.layout import TensorSpec, plan_layout
from endor_jax.format.quantise import dequantise, quantise
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec
from endor_jax.kernels.backends import Implementation, implementations
from endor_jax.kernels.expand import expand
from endor_jax.kernels.linear import dense, linear
from endor_jax.kernels.linear.cpu import fused, fused_rows
from endor_jax.kernels.order import after
from endor_jax.kernels.place import cpu_place, default_place
from tests import shapes
from tests.cases import ALL, spread
from tests.places import on_this_device
from tests.shapes import NamedShape

FLOAT32_STEP = 2.0**-24
"""Largest relative error of one float32 operation."""
STEPS = {"float32": FLOAT32_STEP, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Largest relative error of rounding to a dtype."""

needs_extension = pytest.mark.skipif(not native.available(), reason="the extension was not built")

NAMED = [named for named in shapes.SHAPES if len(named.shape) == 2]


def weight_and_tensor(
    named: NamedShape, dtype: str = "bfloat16", codec: str = "packed:2"
) -> tuple[np.ndarray, SparseTensor]:
    array = shapes.weights(named, dtype, specials=False)
    return array, encode_array(array, codec)


def activations(shape: tuple[int, ...], dtype: str, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), dtype)


def assert_is_product(got: jax.Array, x: np.ndarray, weight: np.ndarray, dtype: str) -> None:
    """C products summed in float32 in any order are off by at most C steps of Σ|x·w|; then one rounding."""
    x64, weight64 = np.asarray(x).astype(np.float64), np.asarray(weight).astype(np.float64)
    exact, magnitude = x64 @ weight64.T, np.abs(x64) @ np.abs(weight64).T
    columns = weight.shape[1]
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    bound = (columns + 1) * FLOAT32_STEP * magnitude + 2 * STEPS[dtype] * np.abs(exact) + smallest
    assert got.dtype == dtype
    error = np.abs(np.asarray(got).astype(np.float64) - exact)
    assert (error <= bound).all(), float((error / bound).max())


every_implementation = pytest.mark.parametrize(
    "implementation", on_this_device(implementations(default_place()))
)


@every_implementation
@pytest.mark.parametrize(
    ("named", "dtype", "rows"),
    spread(
        NAMED,
        ["float32", "bfloat16", "float16"],
        [3, 40],
        every=3,
        complete=ALL or default_place().platform == "gpu",
    ),
    ids=str,
)
def test_against_float64(named: NamedShape, dtype: str, rows: int, implementation: Implementation) -> None:
    weight, tensor = weight_and_tensor(named, dtype)
    x = activations((2, rows, weight.shape[1]), dtype)
    y = jax.jit(functools.partial(linear, implementation=implementation))(x, tensor)
    assert y.shape == (2, rows, weight.shape[0])
    assert_is_product(y, np.asarray(x), weight, dtype)


@every_implementation
@pytest.mark.parametrize(("rows", "codec"), [(3, "int8"), (40, "int4"), (3, "dense-int4")])
def test_integers_against_float64(rows: int, codec: str, implementation: Implementation) -> None:
    """The product is that of the rounded elements, as they are expanded."""
    array = shapes.weights(shapes.BY_NAME["segment_tail"], "bfloat16", specials=False)
    quantised = quantise(array, 8 if codec == "int8" else 4)
    tensor, weight = encode_array(quantised, codec), dequantise(quantised)
    x = activations((2, rows, weight.shape[1]), "bfloat16")
    product = functools.partial(linear, implementation=implementation)
    assert_is_product(jax.jit(product)(x, tensor), np.asarray(x), weight, "bfloat16")
    gradient = jax.jit(jax.grad(lambda x: product(x, tensor).astype(jnp.float32).sum()))(x)
    assert_is_product(gradient, np.ones((2, rows, 2), np.float32), weight.T, "bfloat16")


@every_implementation
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(("dtype", "codec"), [("bfloat16", "dense-int4"), ("float16", "dense-int8")])
def test_no_compiler_leaves_the_rounding_of_elements_out(
    dtype: str, codec: str, rows: int, implementation: Implementation
) -> None:
    """Unit vectors of float32 give the elements themselves: rounded, though they are widened at once."""
    array = shapes.weights(shapes.BY_NAME["square"], dtype, specials=False)
    quantised = quantise(array, 8 if "8" in codec else 4)
    product = jax.jit(functools.partial(linear, implementation=implementation))
    got = product(jnp.eye(64, dtype=jnp.float32)[:rows], encode_array(quantised, codec))
    np.testing.assert_array_equal(np.asarray(got).T, dequantise(quantised)[:, :rows].astype(np.float32))


@pytest.mark.parametrize("codec", ["int8", "dense-int4"])
@pytest.mark.parametrize("rows", [2, 40])
def test_a_product_with_integers_is_that_with_their_elements_bit_for_bit(codec: str, rows: int) -> None:
    array = shapes.weights(shapes.BY_NAME["segment_tail"], "bfloat16", specials=False)
    quantised = quantise(array, 8 if codec == "int8" else 4)
    x = activations((rows, array.shape[1]), "bfloat16")
    product = jax.jit(linear)
    np.testing.assert_array_equal(
        np.asarray(product(x, encode_array(quantised, codec))).view(np.uint16),
        np.asarray(product(x, encode_array(dequantise(quantised), "raw"))).view(np.uint16),
    )


@pytest.mark.parametrize("codec", ["raw", "packed:3", "dense-raw", "dense-packed:2"])
def test_the_codec_changes_no_bit_of_the_product(codec: str) -> None:
    if default_place().platform == "gpu":
        pytest.skip("Triton's kernels add up escapes apart")
    named = shapes.BY_NAME["segment_tail"]
    weight, tensor = weight_and_tensor(named, codec=codec)
    x = activations((2, weight.shape[1]), "bfloat16")
    _, reference = weight_and_tensor(named, codec="packed:2")
    np.testing.assert_array_equal(
        np.asarray(jax.jit(linear)(x, tensor)).view(np.uint16),
        np.asarray(jax.jit(linear)(x, reference)).view(np.uint16),
    )


def test_small_terms_are_not_lost_in_bfloat16() -> None:
    """256 + 1000 · 1 would stay 256 if sums were bfloat16."""
    weight = np.ones((1, 1001), np.float32).astype("bfloat16")
    x = jnp.ones((1, 1001), jnp.bfloat16).at[0, 0].set(256)
    y = linear(x, encode_array(weight, "packed:2"), output_dtype=jnp.dtype("float32"))
    assert y.tolist() == [[1256.0]]


@pytest.mark.parametrize("output", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("spelled", [str, jnp.dtype, lambda name: getattr(jnp, name)])
def test_output_dtype(output: str, spelled: type) -> None:
    weight, tensor = weight_and_tensor(shapes.BY_NAME["square"])
    x = activations((5, 64), "bfloat16")
    y = linear(x, tensor, output_dtype=spelled(output))
    assert_is_product(y, np.asarray(x), weight, output)
    assert_is_product(dense(x, expand(tensor), output_dtype=spelled(output)), np.asarray(x), weight, output)


def test_one_vector() -> None:
    weight, tensor = weight_and_tensor(shapes.BY_NAME["word_tail"])
    x = activations((45,), "float32")
    y = linear(x, tensor)
    assert y.shape == (7,)
    assert_is_product(y, np.asarray(x), weight, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_is_the_dense_one(dtype: str) -> None:
    weight, tensor = weight_and_tensor(shapes.BY_NAME["word_tail"])
    x, cotangent = activations((4, 45), dtype), activations((4, 7), dtype, seed=2)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum((linear(x, tensor) * cotangent).astype(jnp.float32))

    got = jax.jit(jax.grad(loss))(x)
    assert_is_product(got, np.asarray(cotangent), weight.T, dtype)

    def dense_loss(x: jax.Array) -> jax.Array:
        return jnp.sum((dense(x, jnp.asarray(weight)) * cotangent).astype(jnp.float32))

    expected = jax.jit(jax.grad(dense_loss))(x)
    bound = (
        46 * STEPS[dtype] * (np.abs(np.asarray(cotangent, np.float64)) @ np.abs(weight.astype(np.float64)))
    )
    assert (np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64)) <= bound).all()


def test_nothing_dense_is_kept_for_the_backward_pass() -> None:
    _, tensor = weight_and_tensor(shapes.BY_NAME["square"])
    x = activations((2, 64), "float32")
    _, pull_back = jax.vjp(lambda x: linear(x, tensor), x)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull_back))
    assert kept <= tensor.parts[0].nbytes < 64 * 64 * 4


def test_gradients_of_the_tensor_are_refused_by_jax() -> None:
    _, tensor = weight_and_tensor(shapes.BY_NAME["square"])
    x = activations((2, 64), "float32")
    with pytest.raises(TypeError, match="grad requires real- or complex-valued inputs"):
        jax.grad(lambda t: jnp.sum(linear(x, t)))(tensor)


def test_under_vmap_over_x_and_over_both() -> None:
    weights = [shapes.weights(shapes.BY_NAME["square"], "bfloat16", specials=False, seed=s) for s in range(3)]
    layout = plan_layout({"w": TensorSpec((64, 64), "bfloat16", Codec("packed", 2))})
    encoded = [encode_record(layout, {"w": weight}) for weight in weights]
    place = with_escapes(layout, {"w": max(e.escapes["w"] for e in encoded)})["w"]
    length = max(len(e.parts[0]) for e in encoded)
    words = np.stack([np.pad(e.parts[0], (0, length - len(e.parts[0]))) for e in encoded])
    stacked = SparseTensor((jnp.asarray(words),), place)
    x = activations((3, 2, 64), "bfloat16")

    over_x = jax.jit(jax.vmap(linear, in_axes=(0, None)))(x, SparseTensor((jnp.asarray(words[0]),), place))
    over_both = jax.jit(jax.vmap(linear))(x, stacked)
    gradients = jax.jit(jax.vmap(jax.grad(lambda x, t: jnp.sum(linear(x, t).astype(jnp.float32)))))(
        x, stacked
    )
    for i, weight in enumerate(weights):
        assert_is_product(over_x[i], np.asarray(x[i]), weights[0], "bfloat16")
        assert_is_product(over_both[i], np.asarray(x[i]), weight, "bfloat16")
        assert_is_product(gradients[i], np.ones((2, 64)), weight.T, "bfloat16")


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [((3, 63), (64, 64)), ((64,), (2, 32)), ((2, 64), (2, 2, 64)), ((64, 2), (64, 3))],
)
def test_shapes_that_do_not_meet(inputs: tuple[int, ...], shape: tuple[int, ...]) -> None:
    tensor = encode_array(np.ones(shape, np.float32), "raw")
    with pytest.raises(
        InvalidInputError, match=r"linear: got x of shape \(.*expected \(\.\.\., inputs\) and"
    ):
        linear(jnp.ones(inputs), tensor)


def test_an_implementation_that_the_device_lacks_is_refused() -> None:
    tensor = encode_array(np.ones((2, 3), np.float32), "raw")
    with pytest.raises(UnsupportedError, match="got 'mosaic' on "):
        linear(jnp.ones((1, 3)), tensor, implementation="mosaic")


@pytest.mark.parametrize(("dtype", "output"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_gradients_have_the_dtype_of_their_input(dtype: str, output: str) -> None:
    weight, tensor = weight_and_tensor(shapes.BY_NAME["square"])
    x, cotangent = activations((2, 64), dtype), activations((2, 64), output, seed=2)
    y, pull_back = jax.vjp(lambda x: linear(x, tensor, output_dtype=output), x)
    (gradient,) = jax.jit(pull_back)(cotangent)
    assert y.dtype == output
    assert_is_product(gradient, np.asarray(cotangent), weight.T, dtype)


EXPANDED = [("xla", 1), *([("cpu", 64)] if native.available() else [])]
"""Implementations and rows of x with which a product expands its matrix."""


def chain_of_three() -> list[SparseTensor]:
    return [
        encode_array(np.random.default_rng(i).normal(size=(1024, 1024)).astype(np.float32), "packed:3")
        for i in range(3)
    ]


def temporary_bytes(implementation: Implementation, rows: int, tensors: list[SparseTensor]) -> int:
    def chain(x, tensors):
        for tensor in tensors:
            x = jnp.tanh(linear(x, tensor, implementation=implementation))
        return x

    x = jnp.ones((rows, 1024))
    return jax.jit(chain).lower(x, tensors).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("implementation", "rows"), EXPANDED)
def test_a_matrix_is_dense_only_while_its_product_runs(implementation: Implementation, rows: int) -> None:
    """Of three matrices in a row XLA would otherwise expand all before it multiplies with the first."""
    tensors = chain_of_three()
    alone = temporary_bytes(implementation, rows, tensors[:1])
    assert alone >= 4 * 1024 * 1024
    assert temporary_bytes(implementation, rows, tensors) < 1.2 * alone


@needs_extension
@pytest.mark.parametrize("rows", [1, 32])
def test_the_fused_product_is_never_dense(rows: int) -> None:
    assert temporary_bytes("cpu", rows, chain_of_three()) < 1024 * 1024 * 4 // 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.0, 1.0])
def test_waiting_changes_no_bit(value):
    bits = np.random.default_rng(0).integers(0, 2**32, (8, 128), np.uint32)
    waited = jax.jit(after)(bits, jnp.full((2, 3), value, jnp.bfloat16))
    np.testing.assert_array_equal(waited, bits)
    floats = bits.view(np.float32)
    waited = jax.jit(after)(floats, jnp.full((2, 3), value))
    np.testing.assert_array_equal(np.asarray(waited).view(np.uint32), bits)


def test_nothing_to_multiply():
    tensor = encode_array(np.ones((64, 32), np.float32), "raw")
    assert linear(jnp.zeros((0, 32)), tensor).shape == (0, 64)


def test_a_weight_is_expanded_once_for_a_batch_under_vmap():
    tensor = encode_array(np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32), "packed:3")

    def temporaries(function) -> int:
        return jax.jit(function).lower(jnp.ones((64, 512))).compile().memory_analysis().temp_size_in_bytes

    together = temporaries(lambda x: linear(x, tensor))
    assert temporaries(jax.vmap(lambda x: linear(x, tensor))) < 2 * together
    x = jnp.asarray(np.random.default_rng(1).normal(size=(64, 512)), jnp.float32)
    np.testing.assert_allclose(jax.vmap(lambda x: linear(x, tensor))(x), linear(x, tensor), atol=1e-4)


def test_gradients_pass_through_waiting():
    def function(x, y):
        return (after(x, y) * y).sum()

    x, y = jnp.arange(3.0), jnp.ones(3)
    dx, dy = jax.grad(function, argnums=(0, 1))(x, y)
    np.testing.assert_array_equal(dx, y)
    np.testing.assert_array_equal(dy, x)
    batched = jax.vmap(jax.grad(function), in_axes=(0, 0))(jnp.ones((4, 3)), jnp.ones((4, 3)))
    np.testing.assert_array_equal(batched, jnp.ones((4, 3)))


@pytest.mark.parametrize("implementation", [None, *implementations(cpu_place())])
@pytest.mark.parametrize(("sharded", "rows"), spread(["x", "tensor", "both"], [4, 160], every=2), ids=str)
def test_under_shard_map(implementation: Implementation | None, rows: int, sharded: str) -> None:
    devices = jax.devices()
    if devices[0].platform != "cpu" or len(devices) < 4:
        pytest.skip("needs four devices of the CPU")
    mesh = Mesh(np.array(devices[:4]), ("d",))
    _, tensor = weight_and_tensor(shapes.BY_NAME["square"])
    stacked = jax.tree.map(lambda words: jnp.stack([words] * 4), tensor)
    x = activations((rows, 64), "float32")
    split, whole = PartitionSpec("d"), PartitionSpec()

    def local(x: jax.Array, tensor: SparseTensor) -> jax.Array:
        mine = jax.tree.map(lambda words: words[0], tensor) if sharded != "x" else tensor
        return linear(x, mine, implementation=implementation)

    def together(x: jax.Array) -> jax.Array:
        specs = (whole if sharded == "tensor" else split, whole if sharded == "x" else split)
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split)
        return run(x, tensor if sharded == "x" else stacked)

    expected = np.asarray(linear(x, tensor))
    got = np.asarray(jax.jit(together)(x))
    np.testing.assert_allclose(got[: len(expected)], expected, rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: together(x).sum()))(x)
    times = 4 if sharded == "tensor" else 1
    once = jax.grad(lambda x: linear(x, tensor).sum())(x)
    np.testing.assert_allclose(np.asarray(gradient), times * np.asarray(once), rtol=1e-4, atol=1e-4)


@needs_extension
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_matrix_that_is_worth_several_threads(dtype: str, parts: int) -> None:
    weight = shapes.weights(NamedShape("large", (1500, 1100), 0.5), dtype, specials=False)
    layout = plan_layout({"w": TensorSpec(weight.shape, dtype, Codec("packed", 2))}, parts=parts)
    encoded = encode_record(layout, {"w": weight})
    tensor = SparseTensor(encoded.parts, with_escapes(layout, encoded.escapes)["w"])
    expanded = jax.jit(functools.partial(expand, implementation="cpu"))(tensor)
    np.testing.assert_array_equal(bits_of(np.asarray(expanded)), bits_of(weight))
    for rows in (1, 5, 32):
        x = activations((rows, 1100), dtype)
        product = jax.jit(functools.partial(linear, implementation="cpu"))(x, tensor)
        assert_is_product(product, np.asarray(x), weight, dtype)


@pytest.mark.parametrize(
    ("shape", "most"), [((64, 64), 32), ((2048, 4096), 32), ((2049, 4096), 128), ((8192, 28672), 128)]
)
def test_up_to_how_many_rows_a_product_is_fused(shape: tuple[int, int], most: int) -> None:
    layout = plan_layout({"w": TensorSpec(shape, "bfloat16", Codec("packed", 2))})["w"]
    assert [fused_rows(rows, layout) for rows in (0, 1, most, most + 1)] == [False, True, True, False]
    for dtype, expected in (("bfloat16", True), ("float32", True), ("float8_e4m3fn", False)):
        x = jax.ShapeDtypeStruct((2, shape[1]), dtype)
        assert fused(x, layout, "float32") == expected
    whole = plan_layout({"w": TensorSpec(shape, "bfloat16", None)})["w"]
    assert not fused_rows(1, whole)
