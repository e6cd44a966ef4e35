"""One suite for every implementation of `expand`: on every named shape it equals the oracle `decode`.

An implementation joins by being listed in `backends.implementations` for the place the tests run at. Where
that is no GPU, Triton's kernel is run in interpret mode: the same operations, one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from endor_jax.arrays import FLOAT_FORMATS, bits_of, dtype_from_name
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.decode import decode
from endor_jax.format.encode import Encodable, encode_array, encode_record, with_escapes
from endor_jax.format.layout import FieldLayout, Section, TensorSpec, plan_layout
from endor_jax.format.quantise import Quantised, dequantise, quantise
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import INTEGER_BITS, Codec, parse_codec
from endor_jax.kernels.backends import Implementation, implementations
from endor_jax.kernels.check import least_words
from endor_jax.kernels.expand import expand, expand_all, triton
from endor_jax.kernels.linear import linear
from endor_jax.kernels.place import default_place
from tests import shapes, strategies
from tests.cases import ALL, spread
from tests.places import QUICKLY, on_this_device
from tests.shapes import NamedShape

CODECS = {
    "bfloat16": ("raw", "packed:2", "packed:7", "dense-raw", "dense-packed:3", "int4", "dense-int8"),
    "float16": ("raw", "packed:1", "packed:4", "dense-raw", "dense-packed:2", "int8"),
    "float32": ("raw", "packed:2", "packed:7", "dense-raw", "dense-packed:3", "dense-int4"),
}
KINDS = [(dtype, codec) for dtype, codecs in CODECS.items() for codec in codecs]

HERE = implementations(default_place())
every_implementation = pytest.mark.parametrize("implementation", on_this_device([*HERE, "triton"]))
every_implementation_and_none = pytest.mark.parametrize(
    "implementation", on_this_device([None, *HERE, "triton"])
)
every_dtype_and_codec = pytest.mark.parametrize(("dtype", "codec"), KINDS)

FEW = {("bfloat16", "packed:2"), ("bfloat16", "int4"), ("float16", "dense-raw"), ("float32", "packed:7")}
"""For an interpreted kernel, of which every case is compiled for seconds: that it decodes all codecs is seen
in `test_equals_the_oracle`."""


def few_of_interpreted(names: Iterable[Implementation | None]) -> pytest.MarkDecorator:
    """Every implementation with every dtype and codec; an interpreted one with some.

    So is none, which takes the first of them.
    """
    cases = [
        pytest.param(*way.values, dtype, codec, marks=way.marks, id=f"{way.id}-{dtype}-{codec}")
        for way in on_this_device(names)
        for dtype, codec in KINDS
        if way.values[0] not in (None, "triton") or "triton" in HERE or (dtype, codec) in FEW
    ]
    return pytest.mark.parametrize(("implementation", "dtype", "codec"), cases)


EVERY_CASE = ALL or "triton" in HERE
"""Whether what is compiled for each case runs on all of them. The extension's calls always do."""


def with_every_shape() -> list[ParameterSet]:
    """Every implementation with every dtype, codec and shape; XLA and an interpreter with a spread."""
    return [
        pytest.param(
            *way.values, dtype, codec, named, marks=way.marks, id=f"{way.id}-{dtype}-{codec}-{named}"
        )
        for way in on_this_device([*HERE, "triton"])
        for (dtype, codec), named in spread(
            KINDS, shapes.SHAPES, every=7, complete=EVERY_CASE or way.values[0] == "cpu"
        )
    ]


def stored(named: NamedShape, dtype: str, codec: str, seed: int = 0) -> tuple[np.ndarray, Encodable]:
    """What a tensor of this shape holds under a codec, and what it is encoded from."""
    bits = INTEGER_BITS.get(parse_codec(codec).kind)
    array = shapes.weights(named, dtype, specials=bits is None, seed=seed)
    if bits is None:
        return array, array
    quantised = quantise(array, bits)
    return dequantise(quantised), quantised


@functools.cache
def way(implementation: Implementation | None) -> Callable[[SparseTensor], jax.Array]:
    if implementation == "triton" and "triton" not in HERE:
        return functools.partial(triton.expand, interpret=True)
    return functools.partial(expand, implementation=implementation)


@functools.cache
def expander(implementation: Implementation) -> Callable[[SparseTensor], jax.Array]:
    interpreted = implementation == "triton" and "triton" not in HERE
    return jax.jit(way(implementation), compiler_options=QUICKLY if interpreted else {})


def assert_same_bits(got: jax.Array | np.ndarray, expected: np.ndarray) -> None:
    got = np.asarray(got)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_array_equal(bits_of(got), bits_of(expected))


def field_layout(tensor: SparseTensor) -> FieldLayout:
    assert isinstance(tensor.layout, FieldLayout)
    return tensor.layout


@pytest.mark.parametrize(("implementation", "dtype", "codec", "named"), with_every_shape())
def test_equals_the_oracle(implementation: Implementation, dtype: str, codec: str, named: NamedShape) -> None:
    array, source = stored(named, dtype, codec)
    tensor = encode_array(source, codec)
    expanded = expander(implementation)(tensor)
    assert_same_bits(expanded, decode(tensor))
    assert_same_bits(expanded, array)


@every_implementation
@given(strategies.encodable(max_elements=400))
@settings(max_examples=6)
def test_any_bits_without_jit(implementation: Implementation, case: tuple[np.ndarray, Codec]) -> None:
    array, codec = case
    assert_same_bits(way(implementation)(encode_array(array, codec.name)), array)


@every_implementation
@given(strategies.integers(max_elements=400))
@settings(max_examples=6)
def test_any_integers_without_jit(
    implementation: Implementation, case: tuple[strategies.Pieces, Codec]
) -> None:
    quantised = Quantised(*case[0])
    expanded = way(implementation)(encode_array(quantised, case[1].name))
    assert_same_bits(expanded, dequantise(quantised))


@every_implementation
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_integer_times_every_scale(implementation: Implementation, dtype: str) -> None:
    """Subnormal scales and products too, and whatever an infinity comes of."""
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    values = np.broadcast_to(np.arange(-127, 128, 2, dtype=np.int8), (len(scales), 128))
    if dtype == "float16":
        scales = scales[scales < 515]
    quantised = Quantised(values[: len(scales)], scales[:, None], (len(scales), 128), dtype)
    assert_same_bits(expander(implementation)(encode_array(quantised, "int8")), dequantise(quantised))


def longer(tensor: SparseTensor, words: int, fill: int) -> SparseTensor:
    """The same tensor in a device buffer of a larger size class, with rubbish behind the part."""
    tail = np.full(words, fill, np.uint32)
    return SparseTensor(
        tuple(jnp.asarray(np.concatenate([part, tail])) for part in tensor.parts), tensor.layout
    )


@few_of_interpreted([*HERE, "triton"])
@pytest.mark.parametrize("name", ["word_tail", "segment_tail"])
def test_what_lies_behind_the_part_changes_nothing(
    implementation: Implementation, dtype: str, codec: str, name: str
) -> None:
    array, source = stored(shapes.BY_NAME[name], dtype, codec)
    tensor = encode_array(source, codec)
    expand_jitted = expander(implementation)
    for fill in (0xFFFFFFFF, 0xDEADBEEF):
        assert_same_bits(expand_jitted(longer(tensor, 1000, fill)), array)


@few_of_interpreted([*HERE, "triton"])
def test_room_for_more_escapes_than_there_are(implementation: Implementation, dtype: str, codec: str) -> None:
    """`escape_capacity` is a bound over a signature: entries past this record's own count are not its."""
    array, source = stored(shapes.BY_NAME["rank_3"], dtype, codec)
    tensor = encode_array(source, codec)
    for capacity in (field_layout(tensor).escape_capacity + 1, 3 * array.size):
        layout = replace(field_layout(tensor), escape_capacity=capacity)
        roomy = longer(SparseTensor(tensor.parts, layout), 64, 0x00000001)
        assert_same_bits(expander(implementation)(roomy), array)


def equal_layouts(dtype: str, codec: str, count: int) -> tuple[list[np.ndarray], SparseTensor]:
    """Arrays of one shape, and their words stacked: (count, words) with one layout."""
    both = [stored(shapes.BY_NAME["word_tail"], dtype, codec, seed) for seed in range(count)]
    arrays = [array for array, _ in both]
    layout = plan_layout({"array": TensorSpec(arrays[0].shape, dtype, parse_codec(codec))})
    encoded = [encode_record(layout, {"array": source}) for _, source in both]
    most = max(e.escapes["array"] for e in encoded)
    length = max(len(e.parts[0]) for e in encoded)
    words = [np.pad(e.parts[0], (0, length - len(e.parts[0])), constant_values=0xABCD) for e in encoded]
    return arrays, SparseTensor(
        (jnp.asarray(np.stack(words)),), with_escapes(layout, {"array": most})["array"]
    )


@few_of_interpreted([None, *HERE, "triton"])
def test_under_vmap(implementation: Implementation | None, dtype: str, codec: str) -> None:
    arrays, stacked = equal_layouts(dtype, codec, count=3)
    expanded = jax.jit(jax.vmap(way(implementation)))(stacked)
    assert_same_bits(expanded, np.stack(arrays))


@every_implementation_and_none
@pytest.mark.parametrize(
    ("dtype", "codec"),
    [("bfloat16", "packed:2"), ("float16", "raw"), ("float32", "dense-packed:3"), ("bfloat16", "int4")],
)
def test_under_shard_map(implementation: Implementation | None, dtype: str, codec: str) -> None:
    """Each device expands its own rows: the sharded array is the arrays one after the other."""
    devices = jax.devices()
    if len(devices) < 4:
        pytest.skip("needs four devices")
    mesh = jax.make_mesh((4,), ("rows",), devices=devices[:4])
    arrays, stacked = equal_layouts(dtype, codec, count=4)
    spec = PartitionSpec("rows")

    # Pallas' interpreter does not know what varies; the compiled call is in test_triton_lowering.py.
    checked = implementation != "triton" or "triton" in HERE

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=checked)
    def local(tensor: SparseTensor) -> jax.Array:
        mine = jax.tree.map(lambda words: words.reshape(-1), tensor)
        return way(implementation)(mine)

    expanded = jax.jit(local)(jax.device_put(stacked, NamedSharding(mesh, spec)))
    assert expanded.addressable_shards[3].data.shape == arrays[3].shape
    assert_same_bits(expanded, np.concatenate(arrays))


@every_implementation
@pytest.mark.parametrize(
    ("codec", "parts"),
    spread(["packed:2", "dense-packed:3", "int8", "dense-int4"], [2, 3, 5], every=3, complete=EVERY_CASE),
)
def test_several_parts(implementation: Implementation, codec: str, parts: int) -> None:
    """Also more parts than rows: the last ones are all padding."""
    for name in ("segment_of_one_column", "rank_3"):
        array, source = stored(shapes.BY_NAME[name], "bfloat16", codec)
        layout = plan_layout({"w": TensorSpec(array.shape, "bfloat16", parse_codec(codec))}, parts=parts)
        encoded = encode_record(layout, {"w": source})
        record = Record(encoded.parts, with_escapes(layout, encoded.escapes))
        assert_same_bits(expander(implementation)(record["w"]), array)


@few_of_interpreted([*HERE, "triton"])
def test_damaged_parts_give_wrong_values_only(implementation: Implementation, dtype: str, codec: str) -> None:
    """Any words where positions and counts are: no crash, no hang, the right shape."""
    array, source = stored(shapes.BY_NAME["segment_tail"], dtype, codec)
    tensor = encode_array(source, codec)
    layout = replace(field_layout(tensor), escape_capacity=max(40, field_layout(tensor).escape_capacity))
    header = Section(layout.header, 2)
    expand_jitted = expander(implementation)
    random = np.random.default_rng(0)
    for place in (header, *layout.sections, Section(0, len(tensor.parts[0]))):
        for fill in (None, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000):
            words = np.array(tensor.parts[0])
            noise = random.integers(0, 2**32, place.words, dtype=np.uint64).astype(np.uint32)
            words[place.start : place.stop] = noise if fill is None else fill
            expanded = expand_jitted(SparseTensor((jnp.asarray(words),), layout)).block_until_ready()
            assert expanded.shape == array.shape
            assert expanded.dtype == array.dtype


@every_implementation
def test_a_damaged_escape_list_is_dropped_where_it_points_outside(implementation: Implementation) -> None:
    """One escape with an index past the end, and past 2^31: its element keeps 0, all others are right."""
    array = np.full((3, 40), 0.5, np.float32)
    array[1, 7] = np.inf
    tensor = encode_array(array, "packed:2")
    expected = array.copy()
    expected[1, 7] = 0
    start = int(tensor.parts[0][field_layout(tensor).header])
    for index in (array.size, 2**31 - 1, 2**31, 2**32 - 1):
        words = np.array(tensor.parts[0])
        words[start] = index
        assert_same_bits(expander(implementation)(SparseTensor((words,), tensor.layout)), expected)


@given(st.data())
@settings(max_examples=10)
def test_expand_all_expands_every_tensor_of_a_record(data: st.DataObject) -> None:
    arrays: dict[str, np.ndarray] = {
        "up": data.draw(strategies.arrays(max_elements=300)),
        "down": data.draw(strategies.arrays(max_elements=300)),
        "norm": np.linspace(0, 1, 7, dtype=np.float32),
        "scale": np.array(2.5, np.float32).astype("bfloat16"),
        "mask": np.array([True, False, True]),
        "ids": np.arange(-3, 3, dtype=np.int8).reshape(2, 3),
        "eighth": np.arange(8).astype(dtype_from_name("float8_e4m3fn")),
        "nothing": np.zeros((0, 3), np.int32),
    }
    specs = {
        name: TensorSpec(array.shape, array.dtype.name, codec_or_dense(data, array))
        for name, array in arrays.items()
    }
    parts = data.draw(st.integers(1, 3))
    layout = plan_layout(specs, parts=parts)
    encoded = encode_record(layout, arrays)
    record = Record(encoded.parts, with_escapes(layout, encoded.escapes))
    expanded = jax.jit(expand_all)(record)
    assert set(expanded) == set(arrays)
    for name, array in arrays.items():
        assert_same_bits(expanded[name], array)
        assert_same_bits(decode(record[name]), array)


def codec_or_dense(data: st.DataObject, array: np.ndarray) -> Codec | None:
    if array.dtype.name in FLOAT_FORMATS and array.ndim > 1:
        return data.draw(strategies.codecs(array.dtype.name))
    return None


def test_layers_of_one_signature_share_a_trace() -> None:
    traces = 0

    @jax.jit
    def step(record: Record) -> dict[str, jax.Array]:
        nonlocal traces
        traces += 1
        return expand_all(record)

    layout = plan_layout({"w": TensorSpec((8, 100), "float16", Codec("packed", 2))})
    layout = with_escapes(layout, {"w": 300})
    for seed in range(3):
        array = shapes.weights(NamedShape("layer", (8, 100), 0.2 * seed), "float16", seed=seed)
        encoded = encode_record(layout, {"w": array})
        assert 0 < encoded.escapes["w"] <= 300
        (part,) = encoded.parts
        words = np.full(1000, 7, np.uint32)
        words[: len(part)] = part
        assert_same_bits(step(Record((words,), layout))["w"], array)
    assert traces == 1


@pytest.mark.parametrize(
    "words", [np.zeros(400, np.int32), np.zeros(400, np.uint8), np.zeros((2, 400), np.uint32)]
)
def test_words_of_another_kind_are_refused(words: np.ndarray) -> None:
    layout = encode_array(np.ones((2, 3), np.float32), "raw").layout
    message = rf"expand: got a part of dtype {words.dtype} and shape \(.*use jax.vmap for a batch"
    with pytest.raises(InvalidInputError, match=message):
        expand(SparseTensor((words,), layout))


def test_a_part_shorter_than_its_layout_is_refused() -> None:
    tensor = encode_array(np.ones((40, 300), np.float32), "packed:2")
    words = np.asarray(tensor.parts[0])
    least = least_words(tensor.layout)
    assert 200 < least <= len(words)
    assert expand(SparseTensor((words[:least],), tensor.layout)).shape == (40, 300)
    short = SparseTensor((words[: least - 1],), tensor.layout)
    message = f"a part of {least - 1:,} words, shorter than its layout says, expected at least {least:,}"
    with pytest.raises(InvalidInputError, match=f"expand: got {message}"):
        expand(short)
    with pytest.raises(InvalidInputError, match=f"linear: got {message}"):
        linear(jnp.ones((1, 300)), short)


def test_an_implementation_that_the_device_lacks_is_refused() -> None:
    tensor = encode_array(np.ones((2, 3), np.float32), "raw")
    with pytest.raises(UnsupportedError, match="implementation: got 'mosaic' on "):
        expand(tensor, implementation="mosaic")
    with pytest.raises(UnsupportedError, match="implementation: got 'mosaic' on "):
        jax.jit(lambda t: expand(t, implementation="mosaic"))(tensor)
