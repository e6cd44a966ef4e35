"""`check_part`: passes what the encoder writes, names what it does not, and never falls over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.arrays import bits_of
from endor_jax.format.check import check_part
from endor_jax.format.decode import decode, read_escapes
from endor_jax.format.encode import Encodable, EncodedRecord, encode_record, with_escapes
from endor_jax.format.layout import DenseLayout, FieldLayout, RecordLayout, TensorSpec, plan_layout
from endor_jax.format.quantise import Quantised, quantise
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec
from tests.format.integers import quantised_of
from tests.strategies import INTEGER_CODECS, arrays, codecs, integers


def encoded(
    named: dict[str, tuple[Encodable, Codec | None]], parts: int = 1
) -> tuple[RecordLayout, EncodedRecord]:
    specs = {name: TensorSpec(a.shape, str(a.dtype), codec) for name, (a, codec) in named.items()}
    layout = plan_layout(specs, parts=parts)
    record = encode_record(layout, {name: array for name, (array, _) in named.items()})
    return with_escapes(layout, record.escapes | dict.fromkeys(set(named) - set(record.escapes), 0)), record


def draw_record(draw) -> dict[str, tuple[Encodable, Codec | None]]:
    named: dict[str, tuple[Encodable, Codec | None]] = {}
    for i in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 2)) == 0:
            pieces, codec = draw(integers(max_elements=3000))
            named[f"w{i}"] = Quantised(*pieces), codec
            continue
        array = draw(arrays(max_elements=3000))
        named[f"w{i}"] = array, draw(codecs(array.dtype.name))
    if draw(st.booleans()):
        named["b"] = (
            np.arange(draw(st.integers(0, 9)), dtype=draw(st.sampled_from(["int8", "float16"]))),
            None,
        )
    return named


@given(st.data())
def test_what_the_encoder_writes_passes_and_counts_agree(data: st.DataObject) -> None:
    layout, record = encoded(draw_record(data.draw), data.draw(st.integers(1, 4)))
    sums: dict = {}
    for part, words in enumerate(record.parts):
        checked = check_part(words, layout, part=part)
        assert checked.violations == ()
        for name, stats in checked.stats.items():
            sums[name] = sums[name] + stats if name in sums else stats
    assert sums == record.stats


@given(st.data())
def test_what_passes_after_a_flip_is_what_an_encoder_would_write(data: st.DataObject) -> None:
    """Whatever bits change, a part that passes is the encoding of what it decodes to: it may hold other
    weights, but nothing that a decoder could read in two ways."""
    layout, record = encoded(draw_record(data.draw), data.draw(st.integers(1, 3)))
    parts = [words.copy() for words in record.parts]
    part = data.draw(st.integers(0, len(parts) - 1))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, parts[part].shape[0] - 1))
        parts[part][at] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    passed = not check_part(parts[part], layout, part=part).violations
    dense_in_others = any(isinstance(t, DenseLayout) for _, t in layout.tensors) and len(parts) > 1
    if passed and not dense_in_others:
        again = encode_record(layout, decoded(parts, layout))
        if bases(parts, layout) == bases(list(again.parts), layout):
            assert all(np.array_equal(a, b) for a, b in zip(parts, again.parts, strict=True))


def decoded(parts: list[np.ndarray], layout: RecordLayout) -> dict[str, Encodable]:
    return {
        name: quantised_of(parts, tensor)
        if isinstance(tensor, FieldLayout) and tensor.codec.quantised
        else decode(SparseTensor(tuple(parts), tensor))
        for name, tensor in layout.tensors
    }


def bases(parts: list[np.ndarray], layout: RecordLayout) -> list[bytes]:
    sections = [t.bases for _, t in layout.tensors if isinstance(t, FieldLayout) and t.bases]
    return [words[s.start : s.stop].tobytes() for words in parts for s in sections]


def one(
    codec: Codec, *, shape=(3, 1100), dtype="bfloat16", parts: int = 1
) -> tuple[RecordLayout, np.ndarray]:
    """One matrix of half zeros with some escapes; its last part."""
    random = np.random.default_rng(0)
    array = random.normal(size=shape).astype(dtype) * (random.random(shape) < 0.5).astype(dtype)
    if not codec.quantised:
        array[0, 5], array[1, -3], array[2, 7] = np.inf, -0.0, np.nan
    layout, record = encoded({"w": (array, codec)}, parts)
    return layout, record.parts[-1].copy()


def broken(words: np.ndarray, layout: RecordLayout, part: int = 0) -> str:
    checked = check_part(words, layout, part=part)
    assert checked.violations
    return "; ".join(f"{v.tensor}: got {v.got}, expected {v.expected}" for v in checked.violations)


def as_array(parts: list[np.ndarray], layout: RecordLayout) -> np.ndarray:
    return decode(SparseTensor(tuple(parts), layout["w"]))


PACKED, RAW = Codec("packed", 3), Codec("raw")


def field_layout(layout: RecordLayout) -> FieldLayout:
    tensor = layout["w"]
    assert isinstance(tensor, FieldLayout)
    return tensor


def test_bitmap_bits_past_the_last_column() -> None:
    layout, words = one(PACKED)
    bitmap = field_layout(layout).bitmap
    assert bitmap is not None
    words[bitmap.start + 34] |= np.uint32(1 << 31)  # 1100 = 34·32 + 12
    assert "w: got bitmap bits past the last column in row 0, expected none past column 1100" in broken(
        words, layout
    )


def test_padding_rows() -> None:
    layout, words = one(PACKED, parts=2)  # rows 2 and nothing
    tensor = field_layout(layout)
    assert tensor.bitmap is not None
    assert tensor.bases is not None
    assert not check_part(words, layout, part=1).violations
    held = words.copy()
    held[tensor.bitmap.start + 35] |= np.uint32(1)
    assert "bitmap bits in padding rows" in broken(held, layout, 1)
    words.view(np.uint8)[4 * tensor.bases.start + 2] = 9
    assert "a base for a segment without fields" in broken(words, layout, 1)


def test_offsets() -> None:
    layout, words = one(PACKED)
    offsets = field_layout(layout).offsets
    words[offsets.start + 3] += np.uint32(11)
    assert "as offset of row 1, segment 1, expected bit" in broken(words, layout)
    words[offsets.start + 4] += np.uint32(11)
    assert "(2 offsets are wrong)" in broken(words, layout)


@pytest.mark.parametrize(
    "codec", [PACKED, RAW, Codec("packed", 3, bitmap=False), Codec("raw", bitmap=False), *INTEGER_CODECS]
)
def test_every_unused_bit_is_zero(codec: Codec) -> None:
    layout, words = one(codec, shape=(3, 45))
    array = as_array([words], layout)
    found = 0
    zeros = np.flatnonzero(words == 0)
    for at in zeros[:: max(1, len(zeros) // 100)]:
        held = words.copy()
        held[at] = 1 << 31
        result = check_part(held, layout, part=0)
        same = np.array_equal(bits_of(as_array([held], layout)), bits_of(array))
        assert result.violations or not same, at
        found += "which nothing uses" in str(result.violations)
    assert found > 50


def test_escape_lists() -> None:
    layout, words = one(PACKED)
    start, count = (int(word) for word in words[:2])
    index, _ = read_escapes(words, field_layout(layout))
    assert count == index.size >= 3

    def with_word(at: int, value: int) -> str:
        held = words.copy()
        held[at] = value
        return broken(held, layout)

    assert f"an escape list at word {start + 1:,}, expected one at word {start:,}" in with_word(0, start + 1)
    assert f"{count + 1} escapes, expected at most {count}, as its signature says" in with_word(1, count + 1)
    assert "words, expected" in with_word(1, 0) or "which nothing uses" in with_word(1, 0)
    assert "escapes out of order" in with_word(start, int(index[1]))
    assert "expected indices below 3,300" in with_word(start + count - 1, 3300)
    tensor = field_layout(layout)
    assert tensor.bitmap is not None
    first = words[tensor.bitmap.start : tensor.bitmap.stop].view(np.uint8)
    stored = int(np.flatnonzero(np.unpackbits(first, bitorder="little"))[0])
    assert stored < int(index[0])
    assert "an escape that the bitmap has too" in with_word(start, stored)


def test_escapes_that_should_be_none() -> None:
    layout, words = one(PACKED)
    start, count = (int(word) for word in words[:2])
    bits = words[start + count :].view(np.uint16)
    bits[0] = 0
    assert "an escape that is +0.0" in broken(words, layout)
    bits[0] = np.float32(1.0).view(np.uint32) >> 16
    assert "an escape that fits the window of its segment" in broken(words, layout)


def test_escape_with_a_field() -> None:
    layout, words = one(Codec("packed", 3, bitmap=False))
    tensor = field_layout(layout)
    index, _ = read_escapes(words, tensor)
    position = int(words[tensor.offsets.start]) + int(index[0]) * tensor.field_bits
    words[position // 32] |= np.uint32(1 << position % 32)
    assert "an escape with bits in its field" in broken(words, layout)


def test_bases_and_exponents() -> None:
    layout, words = one(PACKED)
    tensor = field_layout(layout)
    assert tensor.bases is not None
    held = words.copy()
    held.view(np.uint8)[4 * tensor.bases.start] = 249
    assert "a base of 249, expected at most 248" in broken(held, layout)
    for base in (0, 248):  # windows that reach exponents which are always escapes
        held.view(np.uint8)[4 * tensor.bases.start] = base
        assert "a field with exponent 0 or all ones in row 0, segment 0" in broken(held, layout)


def test_zero_with_a_field() -> None:
    layout, words = one(RAW)
    start = int(words[field_layout(layout).offsets.start]) // 32
    words[start : start + 1].view(np.uint16)[0] = 0
    assert "a field that is +0.0, expected a zero that is stored nowhere" in broken(words, layout)


@pytest.mark.parametrize("codec", [RAW, *INTEGER_CODECS], ids=lambda codec: codec.name)
def test_only_packed_codecs_have_escapes(codec: Codec) -> None:
    layout, words = one(codec)
    wide = replace(layout, tensors=(("w", replace(field_layout(layout), escape_capacity=1)),))
    words[1] = 1
    assert "got" in broken(words, wide)


def test_length() -> None:
    layout, words = one(PACKED)
    assert "words, expected" in broken(np.append(words, np.uint32(0)), layout)
    assert "words, expected" in broken(words[:-1], layout)
    assert "before the streams" in broken(words[: layout.streams_start], layout)


def integer_part(codec: Codec) -> tuple[RecordLayout, np.ndarray, int, FieldLayout]:
    """A matrix of integers, its part, and where its stream starts in bytes."""
    layout, words = one(codec, shape=(3, 1100))
    tensor = field_layout(layout)
    return layout, words, int(words[tensor.offsets.start]) // 8, tensor


@pytest.mark.parametrize("codec", INTEGER_CODECS, ids=lambda codec: codec.name)
def test_the_lowest_integer(codec: Codec) -> None:
    layout, words, stream, _ = integer_part(codec)
    held = words.view(np.uint8)
    if codec.kind == "int8":
        held[stream + 7] = 0x80
        assert "w: got a field of -128, expected values within ±127" in broken(words, layout)
    else:
        held[stream + 7] = (held[stream + 7] & 15) | 0x80
        assert "w: got a field of -8, expected values within ±7" in broken(words, layout)


def test_a_field_that_is_zero_beside_a_bitmap() -> None:
    layout, words, stream, _ = integer_part(Codec("int8"))
    words.view(np.uint8)[stream + 9] = 0
    assert "a field that is 0, expected a zero that is stored nowhere" in broken(words, layout)
    layout, words, stream, _ = integer_part(Codec("int8", bitmap=False))
    words.view(np.uint8)[stream + 9] = 0
    assert not check_part(words, layout, part=0).violations


@pytest.mark.parametrize("codec", INTEGER_CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (0x7C00, "a scale that is not finite in row 1, columns from 256 on, expected a finite scale"),
        (0x7E01, "that is not finite"),
        (0x8001, "a scale with a sign in row 1, columns from 256 on, expected a scale of 0 or more"),
        (0x0000, "a scale 0 for a group with values in row 1, columns from 256 on, expected more than 0"),
        (0x8000, "a scale with a sign"),
    ],
)
def test_scales(codec: Codec, bits: int, said: str) -> None:
    layout, words, _, tensor = integer_part(codec)
    assert tensor.scales is not None
    words[tensor.scales.start :].view(np.uint16)[1 * 9 + 2] = bits
    assert said in broken(words, layout)


@pytest.mark.parametrize("codec", INTEGER_CODECS, ids=lambda codec: codec.name)
def test_scales_of_groups_without_values(codec: Codec) -> None:
    array = np.ones((2, 300), np.float32)
    array[1, 128:256] = 0
    layout, record = encoded({"w": (array, codec)}, 2)
    tensor = field_layout(layout)
    assert tensor.scales is not None
    words = record.parts[1].copy()
    assert words[tensor.scales.start :].view(np.uint16)[1] == 0
    words[tensor.scales.start :].view(np.uint16)[1] = 0x3C00
    checked = check_part(words, layout, part=1)
    assert "a scale for a group of zeros in row 0, columns from 128 on, expected 0" in str(
        [f"{v.got}, expected {v.expected}" for v in checked.violations]
    )


@pytest.mark.parametrize("codec", INTEGER_CODECS, ids=lambda codec: codec.name)
def test_scales_of_padding_rows(codec: Codec) -> None:
    layout, words = one(codec, parts=2)  # rows 2 and nothing
    tensor = field_layout(layout)
    assert tensor.scales is not None
    words[tensor.scales.start :].view(np.uint16)[tensor.groups + 1] = 1
    assert "a scale for a group of zeros in row 1, columns from 128 on" in broken(words, layout, 1)


def test_an_element_that_overflows() -> None:
    quantised = quantise(np.full((1, 4), 60000, np.float16), 8)
    layout, record = encoded({"w": (quantised, Codec("int8"))})
    words = record.parts[0].copy()
    tensor = field_layout(layout)
    assert tensor.scales is not None
    words[tensor.scales.start :].view(np.float16)[0] = 517
    assert "a scale too large in row 0, columns from 0 on, expected no infinity" in broken(words, layout)
