"""Mosaic's expand where there is no GPU: it lowers for CUDA, and its logic is run by NumPy, bit for bit.

What a warpgroup does beside arithmetic (`Warpgroup`) is NumPy here, for all threads of some programs at once;
the arithmetic is the kernel's own. tests/aot runs what the compiler makes of the whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax
from jax.sharding import PartitionSpec

from endor_jax.arrays import bits_of, dtype_from_name
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array, encode_record, with_escapes
from endor_jax.format.layout import DenseLayout, FieldLayout, TensorSpec, matrix_shape, plan_layout
from endor_jax.format.quantise import Quantised, dequantise
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec, parse_codec
from endor_jax.kernels.expand import mosaic
from endor_jax.kernels.expand.by_part import PartRows
from endor_jax.kernels.warpgroup import THREADS, WARP, Warpgroup
from tests import shapes, strategies
from tests.cases import spread
from tests.kernels.test_expand_conformance import KINDS, every_dtype_and_codec, longer, stored
from tests.kernels.test_triton_lowering import CALL, SCATTER, abstract_tensor
from tests.lowering import cuda_lowered, large_operations
from tests.shapes import NamedShape

AT_ONCE = 8
"""Programs that are run at once: always as many, so that JAX compiles an operation once."""


def simulated(
    words: np.ndarray, out: np.ndarray, written: np.ndarray, layout: FieldLayout, *, programs: int
) -> Warpgroup:
    """The warpgroups of AT_ONCE programs, of which only the first few store: arrays have a row for each, or
    one for all. written: how often each element was."""
    per_group = 16 // out.itemsize
    unit = math.gcd(16, layout.columns * out.itemsize) // out.itemsize

    def numbers(steps: int) -> jax.Array:
        return jnp.arange(steps * THREADS, dtype=jnp.uint32).reshape(1, -1)

    def load(places: jax.Array) -> jax.Array:
        index = np.asarray(places)
        assert index.min() >= 0
        assert index.max() < len(words)
        return jnp.asarray(words[index])

    def from_lane(values: jax.Array, lanes: jax.Array) -> jax.Array:
        assert values.shape[1] == THREADS
        assert np.asarray(lanes).max() < WARP
        warp = np.arange(lanes.shape[1]) % THREADS // WARP * WARP
        rows = np.broadcast_to(np.asarray(values), (max(len(values), len(lanes)), THREADS))
        return jnp.asarray(np.take_along_axis(rows, warp + np.asarray(lanes), axis=1))

    def store(group: Sequence[jax.Array], place: jax.Array, left: jax.Array | None) -> None:
        elements = np.stack([np.asarray(word) for word in group], axis=-1).view(out.dtype)
        first, elements = np.asarray(place)[:programs], elements[:programs]
        rest = np.full(first.shape, per_group) if left is None else np.asarray(left)[:programs]
        assert not np.any(first[rest > 0] % unit), "units of a store would not be aligned"
        assert not np.any(np.minimum(rest, per_group) % unit), "a unit of a store would be cut"
        exists = np.arange(per_group) < rest[..., None]
        index = (first[..., None].astype(np.int64) + np.arange(per_group))[exists]
        out[index] = elements[exists]
        np.add.at(written, index, 1)

    return Warpgroup(numbers, load, from_lane, lax.population_count, store)


def expand_simulated(tensor: SparseTensor) -> np.ndarray:
    """The dense array, by the logic of Mosaic's kernel; escapes scattered by NumPy."""
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    rows, columns = matrix_shape(layout.shape)
    out = np.zeros(rows * columns, layout.number.unsigned)
    for number, held in enumerate(tensor.parts):
        words, first = np.asarray(held), number * layout.rows
        if first >= rows:
            continue
        part = PartRows(layout, first, min(layout.rows, rows - first))
        written = np.zeros(out.size, int)
        count = mosaic.programs(part)
        for begin in range(0, count, AT_ONCE):
            warps = simulated(words, out, written, layout, programs=min(AT_ONCE, count - begin))
            program = jnp.minimum(jnp.arange(begin, begin + AT_ONCE, dtype=jnp.uint32), count - 1)
            mosaic.expand_program(warps, part, program=program[:, None], length=len(words))
        mine = slice(first * columns, (first + part.count) * columns)
        assert np.all(written[mine] == 1)
        assert not written[: mine.start].any()
        assert not written[mine.stop :].any()
        start, escapes = words[layout.header : layout.header + 2]
        index = words[start : start + escapes]
        out[first * columns + index] = words[start + escapes :].view(out.dtype)[:escapes]
    return out.view(dtype_from_name(layout.dtype)).reshape(layout.shape)


def assert_expands_to(tensor: SparseTensor, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(bits_of(expand_simulated(tensor)), bits_of(expected))


@pytest.mark.parametrize(
    ("dtype", "codec", "named"),
    [
        pytest.param(dtype, codec, named, id=f"{dtype}-{codec}-{named}")
        for (dtype, codec), named in spread(KINDS, shapes.SHAPES, every=3)
    ],
)
def test_its_logic_equals_the_oracle(dtype: str, codec: str, named: NamedShape) -> None:
    array, source = stored(named, dtype, codec)
    tensor = encode_array(source, codec)
    assert_expands_to(tensor, decode(tensor))
    if "tail" in named.name:
        assert_expands_to(longer(tensor, 40, 0xDEADBEEF), array)


@given(strategies.encodable(max_elements=400))
@settings(max_examples=10)
def test_its_logic_with_any_bits(case: tuple[np.ndarray, Codec]) -> None:
    array, codec = case
    assert_expands_to(encode_array(array, codec.name), array)


@given(strategies.integers(max_elements=400))
@settings(max_examples=5)
def test_its_logic_with_any_integers(case: tuple[strategies.Pieces, Codec]) -> None:
    quantised = Quantised(*case[0])
    assert_expands_to(encode_array(quantised, case[1].name), dequantise(quantised))


@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize("codec", ["packed:2", "dense-packed:3", "int8"])
def test_several_parts_write_their_own_rows(codec: str, parts: int) -> None:
    for name in ("segment_of_one_column", "rank_3"):
        array, source = stored(shapes.BY_NAME[name], "bfloat16", codec)
        layout = plan_layout({"w": TensorSpec(array.shape, "bfloat16", parse_codec(codec))}, parts=parts)
        encoded = encode_record(layout, {"w": source})
        assert_expands_to(Record(encoded.parts, with_escapes(layout, encoded.escapes))["w"], array)


@every_dtype_and_codec
def test_damage_reads_and_writes_nothing_outside(dtype: str, codec: str) -> None:
    """The simulated loads would raise."""
    _, source = stored(shapes.BY_NAME["segment_tail"], dtype, codec)
    tensor = encode_array(source, codec)
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    random = np.random.default_rng(0)
    for fill in (None, 0xFFFFFFFF, 0x7FFFFFFF):
        words = np.array(tensor.parts[0])
        noise = random.integers(0, 2**32, len(words), dtype=np.uint64).astype(np.uint32)
        words[:] = noise if fill is None else fill
        words[layout.header + 1] = 0  # no escapes: NumPy would raise
        expand_simulated(SparseTensor((words,), layout))


@every_dtype_and_codec
def test_it_lowers_as_one_call_and_a_scatter(dtype: str, codec: str) -> None:
    assert_one_call((64, 4096), dtype, codec, escapes=100 if "packed" in codec else 0)


@pytest.mark.parametrize("shape", [(24, 700), (33, 1025), (8, 8, 45)], ids=str)
def test_it_lowers_for_rows_that_no_vector_fits(shape: tuple[int, ...]) -> None:
    assert_one_call(shape, "bfloat16", "packed:2", escapes=0)


def assert_one_call(shape: tuple[int, ...], dtype: str, codec: str, *, escapes: int) -> None:
    lowered = cuda_lowered(mosaic.expand, abstract_tensor(shape, dtype, codec, escapes=escapes))
    assert large_operations(lowered, math.prod(shape)) == [CALL] + [SCATTER] * bool(escapes)
    assert lowered.as_text().count("@mosaic_gpu_v2") == 1


def test_several_parts_are_written_into_one_array() -> None:
    shape = (24, 700)
    lowered = cuda_lowered(mosaic.expand, abstract_tensor(shape, "bfloat16", "packed:2", parts=3))
    assert large_operations(lowered, math.prod(shape)) == [CALL] * 3
    assert lowered.as_text().count("output_operand_alias<") == 2


def test_what_is_waited_for_is_an_operand() -> None:
    tensor = abstract_tensor((24, 700), "bfloat16", "packed:2", parts=2)
    earlier = jax.ShapeDtypeStruct((3,), jnp.float32)
    text = cuda_lowered(mosaic.expand, tensor, earlier).as_text()
    calls = [line for line in text.splitlines() if "@mosaic_gpu_v2" in line]
    assert ["tensor<1xui32>" in line for line in calls] == [True, True]


def test_it_lowers_inside_shard_map_and_vmap() -> None:
    tensor = abstract_tensor((16, 256), "bfloat16", "packed:2", escapes=10)
    stacked = jax.tree.map(lambda words: jax.ShapeDtypeStruct((2, *words.shape), words.dtype), tensor)
    assert CALL in large_operations(cuda_lowered(jax.vmap(mosaic.expand), stacked), 16 * 256)
    mesh = jax.sharding.AbstractMesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("rows")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def local(tensor: SparseTensor) -> jax.Array:
        return mosaic.expand(jax.tree.map(lambda words: words.reshape(-1), tensor))

    jaxpr = jax.make_jaxpr(local)(stacked)
    assert jaxpr.out_avals[0].shape == (32, 256)


def test_an_array_that_is_stored_dense_is_its_bytes() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    layout = plan_layout({"w": TensorSpec(array.shape, "float32", None)})
    encoded = encode_record(layout, {"w": array})
    tensor = Record(encoded.parts, layout)["w"]
    assert isinstance(tensor.layout, DenseLayout)
    np.testing.assert_array_equal(mosaic.expand(tensor), array)
