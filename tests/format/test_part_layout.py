"""Where things are in a part, what the format refuses, and that neither needs the array in memory."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format import encode as encode_module
from endor_jax.format.encode import encode_record, with_escapes
from endor_jax.format.layout import (
    DenseLayout,
    FieldLayout,
    RecordLayout,
    Section,
    TensorSpec,
    padding_words,
    plan_layout,
)
from endor_jax.format.values import Codec, parse_codec
from tests import strategies


def sections(layout: RecordLayout) -> list[Section]:
    found = [Section(0, 2 * sum(isinstance(place, FieldLayout) for _, place in layout.tensors))]
    for _, place in layout.tensors:
        if isinstance(place, DenseLayout):
            found.append(place.data)
        else:
            found += [s for s in (place.bitmap, place.offsets, place.bases) if s is not None]
    return found


@st.composite
def described_tensors(draw: st.DrawFn) -> list[tuple[tuple[int, ...], str, Codec | None]]:
    result = []
    for _ in range(draw(st.integers(0, 5))):
        dtype = draw(strategies.dtypes)
        result.append((draw(strategies.shapes()), dtype, draw(st.none() | strategies.codecs(dtype))))
    return result


@given(described_tensors(), st.integers(1, 4))
def test_sections_are_aligned_and_follow_each_other(
    described: list[tuple[tuple[int, ...], str, Codec | None]], parts: int
) -> None:
    specs = {f"t{i}": TensorSpec(*description) for i, description in enumerate(described)}
    layout = plan_layout(specs, parts=parts)
    assert layout.names == tuple(specs)
    for before, after in itertools.pairwise([*sections(layout), Section(layout.streams_start, 0)]):
        assert after.start % 64 == 0
        assert before.stop <= after.start < before.stop + 64
    headers = [place.header for _, place in layout.tensors if isinstance(place, FieldLayout)]
    assert headers == list(range(0, 2 * len(headers), 2))
    assert layout == plan_layout(specs, parts=parts)
    assert hash(layout) == hash(plan_layout(specs, parts=parts))


def test_a_layer_by_hand() -> None:
    layout = plan_layout(
        {
            "norm": TensorSpec((100,), "float32", None),
            "up": TensorSpec((6, 2050), "bfloat16", Codec("packed", 2)),
            "head": TensorSpec((6, 40), "float16", Codec("raw", bitmap=False)),
        },
        parts=4,
    )
    norm, up, head = (layout[name] for name in layout.names)
    assert isinstance(norm, DenseLayout)
    assert isinstance(up, FieldLayout)
    assert isinstance(head, FieldLayout)
    assert norm.data == Section(64, 100)
    assert (up.rows, up.segment, up.segments, up.header, up.field_bits) == (2, 1024, 3, 0, 10)
    assert (up.bitmap, up.offsets, up.bases) == (Section(192, 130), Section(384, 6), Section(448, 2))
    assert (head.rows, head.segment, head.segments, head.header) == (2, 40, 1, 2)
    assert (head.bitmap, head.offsets, head.bases) == (None, Section(512, 2), None)
    assert layout.streams_start == 576
    assert padding_words(layout) == 16 + 1024 * 10 // 32
    assert layout.dense_bytes == 400 + 6 * 2050 * 2 + 6 * 40 * 2
    with pytest.raises(KeyError, match="no tensor 'down' in this record; it has norm, up, head"):
        layout["down"]


@given(strategies.encodable(max_elements=3000), st.integers(1, 3))
def test_streams_and_escapes_are_aligned_and_padded(case: tuple[np.ndarray, Codec], parts: int) -> None:
    array, codec = case
    layout = plan_layout({"a": TensorSpec(array.shape, array.dtype.name, codec)}, parts=parts)
    place = layout["a"]
    assert isinstance(place, FieldLayout)
    for part in encode_record(layout, {"a": array}).parts:
        assert int(part[place.offsets.start]) == 32 * layout.streams_start
        start, count = (int(word) for word in part[:2])
        assert start % 16 == 0
        end = start + count + -(-count * array.dtype.itemsize // 4)
        assert len(part) == -(-end // 16) * 16 + padding_words(layout)
        assert not part[end:].any()


def test_escape_capacities_are_kept_per_tensor() -> None:
    spec = TensorSpec((2, 40), "float16", Codec("packed", 1))
    layout = plan_layout({"a": spec, "b": spec, "bias": TensorSpec((2,), "float16", None)})
    roomy = with_escapes(layout, {"a": 3, "b": 5})
    capacities = {n: p.escape_capacity for n, p in roomy.tensors if isinstance(p, FieldLayout)}
    assert capacities == {"a": 3, "b": 5}
    assert roomy["bias"] == layout["bias"]
    assert roomy != layout
    assert with_escapes(roomy, {"a": 0, "b": 0}) == layout


def test_escapes_are_counted_by_their_longest_part() -> None:
    array = np.ones((4, 8), np.float16)
    array[0, :3] = np.nan
    array[3, :5] = np.inf
    layout = plan_layout({"a": TensorSpec((4, 8), "float16", Codec("packed", 2))}, parts=2)
    encoded = encode_record(layout, {"a": array})
    assert encoded.escapes == {"a": 5}
    assert encoded.stats["a"].escapes == 8


def test_dense_arrays_are_in_every_part_and_counted_once() -> None:
    arrays = {"w": np.ones((4, 40), np.float16), "bias": np.arange(3, dtype=np.float32)}
    specs = {
        "w": TensorSpec((4, 40), "float16", Codec("raw")),
        "bias": TensorSpec((3,), "float32", None),
    }
    layout = plan_layout(specs, parts=3)
    encoded = encode_record(layout, arrays)
    data = layout["bias"]
    assert isinstance(data, DenseLayout)
    for part in encoded.parts:
        assert part[data.data.start : data.data.stop].view(np.float32).tolist() == [0, 1, 2]
    assert encoded.stats["bias"].elements == 3
    assert encoded.stats["bias"].nonzero == 2
    assert encoded.stats["bias"].stored_bytes == 12
    assert encoded.stats["w"].elements == 160
    assert encoded.stats["w"].sparsity == 0


@pytest.mark.parametrize("shape", [(2**16, 2**15), (2, 2**30), (1, 2**31), (2**11, 2**10, 2**10)])
def test_a_tensor_of_two_to_the_31_is_refused_without_being_made(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match="'w': got 2,147,483,648 elements, expected fewer than"):
        plan_layout({"w": TensorSpec(shape, "bfloat16", Codec("raw"))})


def test_a_tensor_just_below_the_limit_is_laid_out() -> None:
    layout = plan_layout({"w": TensorSpec((2**16 - 1, 2**15), "bfloat16", Codec("packed", 2))})
    assert layout.streams_start > 2**31 / 32


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (4, 0), (2, 0, 3)])
def test_vectors_and_empty_arrays_are_no_matrices(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        UnsupportedError, match="expected a non-empty array of rank 2 or more; store it dense"
    ):
        plan_layout({"w": TensorSpec(shape, "float16", Codec("raw"))})


def test_other_dtypes_have_no_fields() -> None:
    with pytest.raises(
        UnsupportedError, match="'w': got dtype int16, expected one of bfloat16, float16, float32"
    ):
        plan_layout({"w": TensorSpec((2, 2), "int16", Codec("raw"))})


@pytest.mark.parametrize("codec", ["packed:5", "packed:7", "dense-packed:6"])
def test_exponent_bits_that_half_precision_has_no_room_for(codec: str) -> None:
    with pytest.raises(InvalidInputError, match=f"got codec {codec} for float16, expected fewer than 5"):
        plan_layout({"w": TensorSpec((2, 2), "float16", parse_codec(codec))})


@pytest.mark.parametrize(
    "dtype", ["float64", "int64", "uint64", "complex64", "int4", "uint2", "float4_e2m1fn"]
)
def test_dense_dtypes_that_a_device_cannot_hold(dtype: str) -> None:
    with pytest.raises(
        UnsupportedError, match=f"'w': got dtype {dtype}, expected real elements of 8, 16 or 32"
    ):
        plan_layout({"w": TensorSpec((2,), dtype, None)})


def test_a_part_at_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.ones((8, 64), np.float32)
    layout = plan_layout({"w": TensorSpec((8, 64), "float32", Codec("raw"))})
    (part,) = encode_record(layout, {"w": array}).parts
    monkeypatch.setattr(encode_module, "PART_LIMIT_WORDS", len(part) + 1)
    encode_record(layout, {"w": array})
    monkeypatch.setattr(encode_module, "PART_LIMIT_WORDS", len(part))
    with pytest.raises(UnsupportedError, match=rf"part: got {4 * len(part):,} bytes, .* into more parts"):
        encode_record(layout, {"w": array})
    encode_record(replace_parts(layout), {"w": array})


def replace_parts(layout: RecordLayout) -> RecordLayout:
    return plan_layout({"w": TensorSpec(layout["w"].shape, layout["w"].dtype, Codec("raw"))}, parts=2)


def test_layouts_compare_by_value() -> None:
    layout = plan_layout({"w": TensorSpec((2, 3), "float32", Codec("raw"))})
    assert replace(layout, parts=2) != layout
    assert {layout: "found"}[replace(layout)] == "found"
