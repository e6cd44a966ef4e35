"""docs/format.md, transcribed as loops over bits, writes the encoder's bytes and reads them alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax.arrays import bits_of, dtype_from_name
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array, encode_record
from endor_jax.format.layout import RecordLayout, TensorSpec, plan_layout
from endor_jax.format.record import Record
from endor_jax.format.values import Codec, parse_codec
from tests import strategies
from tests.format import transcription

DENSE_DTYPES = ("bool", "uint8", "int16", "float8_e4m3fn", "bfloat16", "float32", "int32")


def described(name: str, array: np.ndarray, codec: Codec | None) -> transcription.Tensor:
    return transcription.Tensor(
        name, array.shape, array.dtype.name, codec.name if codec else None, array.dtype.itemsize
    )


def as_integers(array: np.ndarray, codec: Codec | None) -> list[int]:
    if codec is None:
        return list(array.tobytes())
    return [int(bits) for bits in bits_of(array).reshape(-1)]


def assert_same_parts(
    arrays: Mapping[str, np.ndarray], codecs: Mapping[str, Codec | None], parts: int
) -> None:
    specs = {name: TensorSpec(array.shape, array.dtype.name, codecs[name]) for name, array in arrays.items()}
    layout = plan_layout(specs, parts=parts)
    encoded = encode_record(layout, arrays)
    tensors = [described(name, array, codecs[name]) for name, array in arrays.items()]
    integers = {name: as_integers(array, codecs[name]) for name, array in arrays.items()}
    for g, part in enumerate(encoded.parts):
        np.testing.assert_array_equal(part, transcription.encode_part(tensors, integers, g, parts))
    written = [part.tolist() for part in encoded.parts]
    for tensor in tensors:
        if tensor.codec is not None:
            assert transcription.decode(written, tensors, tensor.name) == integers[tensor.name]
    assert_decodes(layout, encoded.parts, arrays)


def assert_decodes(
    layout: RecordLayout, parts: tuple[np.ndarray, ...], arrays: Mapping[str, np.ndarray]
) -> None:
    record = Record(parts, layout)
    for name, array in arrays.items():
        decoded = decode(record[name])
        assert decoded.dtype == array.dtype
        assert decoded.shape == array.shape
        assert decoded.tobytes() == array.tobytes()


@given(strategies.encodable(max_elements=150))
@settings(max_examples=60)
def test_one_tensor(case: tuple[np.ndarray, Codec]) -> None:
    array, codec = case
    assert_same_parts({"array": array}, {"array": codec}, parts=1)


@st.composite
def records(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], dict[str, Codec | None]]:
    arrays: dict[str, np.ndarray] = {}
    codecs: dict[str, Codec | None] = {}
    for i in range(draw(st.integers(1, 4))):
        name = f"t{i}"
        if draw(st.booleans()):
            arrays[name], codecs[name] = draw(strategies.encodable(max_elements=60))
        else:
            dtype = dtype_from_name(draw(st.sampled_from(DENSE_DTYPES)))
            shape = draw(st.sampled_from([(), (0,), (1,), (3, 5), (70,)]))
            random = np.random.default_rng(draw(st.integers(0, 99)))
            count = int(np.prod(shape)) * dtype.itemsize
            data = random.integers(0, 2 if dtype.kind == "b" else 256, count, dtype=np.uint8)
            arrays[name], codecs[name] = data.view(dtype).reshape(shape), None
    return arrays, codecs


@given(records(), st.integers(1, 4))
def test_records_of_several_tensors_and_parts(
    record: tuple[dict[str, np.ndarray], dict[str, Codec | None]], parts: int
) -> None:
    arrays, codecs = record
    assert_same_parts(arrays, codecs, parts)


@pytest.mark.parametrize("codec", ["raw", "packed:2", "dense-raw", "dense-packed:3"])
@pytest.mark.parametrize("columns", [1024, 1025, 1061])
def test_rows_longer_than_a_segment(codec: str, columns: int) -> None:
    random = np.random.default_rng(columns)
    array = (random.standard_normal((2, columns)) * 0.02).astype("bfloat16")
    array[random.random(array.shape) < 0.5] = 0
    assert_same_parts({"array": array}, {"array": parse_codec(codec)}, parts=1)


def test_more_parts_than_rows() -> None:
    array = np.ones((2, 33), np.float16)
    for codec in strategies.CODECS["float16"]:
        assert_same_parts({"array": array}, {"array": codec}, parts=5)


def test_the_transcription_is_told_apart_from_the_encoder() -> None:
    """A guard on the test itself: one flipped bit of an array changes the transcribed part."""
    array = np.full((2, 3), 0.5, np.float16)
    changed = array.copy()
    changed.view(np.uint16)[1, 1] ^= 1
    tensors = [described("array", array, Codec("raw"))]
    (part,) = encode_array(array, "raw").parts
    assert transcription.encode_part(tensors, {"array": as_integers(changed, Codec("raw"))}, 0, 1) != list(
        part
    )
