"""`int8` and `int4`: any integers and scales come back, by the code and by the document's transcription."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import endor_jax as endor
from endor_jax.arrays import bits_of
from endor_jax.errors import InvalidInputError
from endor_jax.format.check import check_part
from endor_jax.format.decode import decode, decode_rows
from endor_jax.format.encode import encode_array, encode_record, with_escapes
from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.quantise import Quantised, dequantise, quantise
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec
from tests import strategies
from tests.format import transcription
from tests.format.integers import quantised_of
from tests.strategies import INTEGER_CODECS, Pieces


@given(strategies.integers(), st.integers(1, 4))
def test_integers_and_scales_come_back(case: tuple[Pieces, Codec], parts: int) -> None:
    pieces, codec = case
    quantised = Quantised(*pieces)
    layout = plan_layout({"w": TensorSpec(quantised.shape, quantised.dtype, codec)}, parts=parts)
    record = encode_record(layout, {"w": quantised})
    tensor = with_escapes(layout, record.escapes)["w"]
    assert isinstance(tensor, FieldLayout)
    back = quantised_of(record.parts, tensor)
    np.testing.assert_array_equal(back.values, quantised.values)
    used = back.scales != 0
    np.testing.assert_array_equal(back.scales[used], quantised.scales[used])
    assert (dequantise(back) == dequantise(quantised)).all()
    decoded = decode(SparseTensor(record.parts, tensor))
    assert (decoded.dtype.name, decoded.shape) == (quantised.dtype, quantised.shape)
    np.testing.assert_array_equal(bits_of(decoded), bits_of(dequantise(quantised)))
    assert not np.signbit(decoded[decoded == 0]).any()
    stats = record.stats["w"]
    assert (stats.elements, stats.nonzero, stats.escapes) == (
        decoded.size,
        np.count_nonzero(quantised.values),
        0,
    )
    checked = [check_part(words, layout, part=part) for part, words in enumerate(record.parts)]
    assert not any(part.violations for part in checked)


@given(strategies.integers(max_elements=150), st.integers(1, 3))
@settings(max_examples=60)
def test_the_transcription_writes_and_reads_the_same(case: tuple[Pieces, Codec], parts: int) -> None:
    """Its arithmetic is that of fractions: every product is rounded to nearest even."""
    pieces, codec = case
    quantised = Quantised(*pieces)
    layout = plan_layout({"w": TensorSpec(quantised.shape, quantised.dtype, codec)}, parts=parts)
    record = encode_record(layout, {"w": quantised})
    item_bytes = 4 if quantised.dtype == "float32" else 2
    described = [transcription.Tensor("w", quantised.shape, quantised.dtype, codec.name, item_bytes)]
    columns = quantised.values.shape[1]
    spread = np.repeat(bits_of(quantised.scales), 128, axis=1)[:, :columns]
    pairs = list(zip(quantised.values.reshape(-1).tolist(), spread.reshape(-1).tolist(), strict=True))
    for g, part in enumerate(record.parts):
        np.testing.assert_array_equal(part, transcription.encode_part(described, {"w": pairs}, g, parts))
    decoded = transcription.decode([part.tolist() for part in record.parts], described, "w")
    assert decoded == bits_of(dequantise(quantised)).reshape(-1).tolist()


@pytest.mark.parametrize("codec", INTEGER_CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_integer_times_every_scale(codec: Codec, dtype: str) -> None:
    """All products that do not overflow, against float64 rounded once."""
    most = 127 if codec.kind == "int8" else 7
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    if dtype == "float16":
        scales = scales[scales.astype(np.float32) * most < 65520]
    values = np.broadcast_to(np.arange(-most, most + 1, dtype=np.int8), (len(scales), 2 * most + 1))
    values = values[:, :128] if most == 127 else values
    scales = scales[:, None]
    decoded = dequantise(Quantised(values, scales, values.shape, dtype))
    expected = (values.astype(np.float64) * scales.astype(np.float64)).astype(decoded.dtype)
    np.testing.assert_array_equal(bits_of(decoded), bits_of(expected + 0))


@given(strategies.integers(max_elements=2000), st.data())
def test_rows_are_decoded_in_any_order(case: tuple[Pieces, Codec], data: st.DataObject) -> None:
    pieces, codec = case
    quantised = Quantised(*pieces)
    count = quantised.values.shape[0]
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=8)), np.intp)
    tensor = encode_array(quantised, codec.name)
    assert isinstance(tensor.layout, FieldLayout)
    got = decode_rows(np.asarray(tensor.parts[0]), tensor.layout, rows)
    expected = dequantise(quantised).reshape(count, -1)[rows]
    np.testing.assert_array_equal(bits_of(got), bits_of(expected))


@pytest.mark.parametrize("codec", INTEGER_CODECS, ids=lambda codec: codec.name)
def test_an_array_is_quantised_part_by_part_as_it_would_be_whole(codec: Codec) -> None:
    array = np.random.default_rng(0).normal(size=(7, 3, 150)).astype("bfloat16")
    quantised = quantise(array, 8 if codec.kind == "int8" else 4)
    for parts in (1, 2, 4, 30):
        layout = plan_layout({"w": TensorSpec(array.shape, "bfloat16", codec)}, parts=parts)
        from_array = encode_record(layout, {"w": array}).parts
        from_integers = encode_record(layout, {"w": quantised}).parts
        assert all(np.array_equal(a, b) for a, b in zip(from_array, from_integers, strict=True))


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_encode_quantises_when_asked(values: str) -> None:
    array = np.random.default_rng(0).normal(size=(8, 300)).astype(np.float32)
    array[:, ::2] = 0
    tensor = endor.encode(array, values=values)
    assert isinstance(tensor.layout, FieldLayout)
    assert tensor.layout.codec.name == values
    off = np.abs(decode(tensor) - array)
    assert 0 < off.max() < (0.02 if values == "int8" else 0.6)
    assert (decode(tensor)[:, ::2] == 0).all()


WEIGHT = np.ones((2, 130), np.float32)


def quantised(**changed: object) -> Quantised:
    made = quantise(WEIGHT, 4)
    pieces = {"values": made.values, "scales": made.scales, "shape": made.shape, "dtype": made.dtype}
    return Quantised(**(pieces | changed))  # type: ignore[arg-type]


def test_integers_for_another_tensor_or_codec_are_refused() -> None:
    layout = plan_layout({"w": TensorSpec((2, 131), "float32", Codec("int4"))})
    with pytest.raises(
        InvalidInputError, match=r"'w': got a quantised float32\[2, 130\], expected float32\[2"
    ):
        encode_record(layout, {"w": quantised()})
    layout = plan_layout({"w": TensorSpec((2, 130), "float32", Codec("packed", 2))})
    with pytest.raises(
        InvalidInputError, match="'w': got a quantised array for the codec packed:2, expected"
    ):
        encode_record(layout, {"w": quantised()})


@pytest.mark.parametrize(
    ("name", "piece", "got"),
    [
        (
            "values",
            np.zeros((2, 129), np.int8),
            r"values of int8 and shape \(2, 129\), expected int8 and \(2, 1",
        ),
        ("values", np.zeros((2, 130), np.int16), "values of int16"),
        (
            "scales",
            np.ones((2, 1), np.float16),
            r"scales of float16 and shape \(2, 1\), expected float16 and",
        ),
        ("scales", np.ones((2, 2), np.float32), "scales of float32"),
    ],
)
def test_pieces_that_do_not_agree_are_refused(name: str, piece: np.ndarray, got: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"quantised array of shape \(2, 130\): got {got}"):
        quantised(**{name: piece})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"values": np.full((2, 130), -8, np.int8)}, r"a value of ±8 \(row 0, columns from 0 on\), .* ±7"),
        (
            {"scales": np.array([[1, 1], [1, -1]], np.float16)},
            "a scale that is negative or not finite .row 1",
        ),
        ({"scales": np.full((2, 2), np.nan, np.float16)}, "a scale that is negative or not finite"),
        ({"scales": np.full((2, 2), np.inf, np.float16)}, "a scale that is negative or not finite"),
        ({"scales": np.zeros((2, 2), np.float16)}, "values in a group of scale 0"),
        ({"scales": np.full((2, 2), 65504, np.float16), "dtype": "float16"}, "an element that overflows"),
    ],
)
def test_integers_and_scales_that_the_format_cannot_hold(changed: dict, said: str) -> None:
    with pytest.raises(InvalidInputError, match=f"tensor 'array': got {said}"):
        encode_array(quantised(**changed), "int4")
