"""The GGUF reader against hostile files: what it accepts, it reads as the gguf package does."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.sources import open_source
from endor_jax.sources.gguf import GgufSource
from tests.sources.fuzzing import NASTY_SIZES, Bench, Content, bench, damaged, settings
from tests.sources.tiny_gguf import permute

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 4, 5, 6, 7, 8, 9, 10, 12
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
HEADS, KV_HEADS, SIZE = 4, 2, 32


@dataclass(frozen=True)
class Table:
    """The fields of a GGUF file, each as it will be written, right or wrong."""

    metadata: list[tuple[bytes, int, bytes]]
    tensors: list[tuple[bytes, tuple[int, ...], int, int]]
    version: int = 3
    counts: tuple[int, int] | None = None
    padding: int = 32
    data: bytes = field(default=b"", repr=False)

    def header(self) -> bytes:
        counts = self.counts or (len(self.tensors), len(self.metadata))
        parts = [b"GGUF", struct.pack("<IQQ", self.version, *counts)]
        parts += [text(key) + struct.pack("<I", kind) + value for key, kind, value in self.metadata]
        for name, dims, kind, offset in self.tensors:
            sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            parts.append(text(name) + sizes + struct.pack("<IQ", kind, offset))
        return b"".join(parts)

    def build(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % self.padding) + self.data


def text(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


def items(kind: int, values: list[Any], count: int | None = None) -> bytes:
    packed = [text(value) if kind == STRING else struct.pack(f"<{CODES[kind]}", value) for value in values]
    return struct.pack("<IQ", kind, len(values) if count is None else count) + b"".join(packed)


TOKENS = [b"<unk>", b"<s>", b"</s>", b"\xe2\x96\x81", b"a", b"b", b"ab", b"<0x0A>"]
METADATA = [
    (b"general.architecture", STRING, text(b"llama")),
    (b"general.alignment", U32, struct.pack("<I", 32)),
    (b"llama.block_count", U32, struct.pack("<I", 1)),
    (b"llama.context_length", U32, struct.pack("<I", 64)),
    (b"llama.embedding_length", U32, struct.pack("<I", SIZE)),
    (b"llama.feed_forward_length", U32, struct.pack("<I", SIZE)),
    (b"llama.attention.head_count", U32, struct.pack("<I", HEADS)),
    (b"llama.attention.head_count_kv", ARRAY, items(I32, [KV_HEADS])),
    (b"llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
    (b"llama.rope.freq_base", F32, struct.pack("<f", 10000.0)),
    (b"tokenizer.ggml.model", STRING, text(b"llama")),
    (b"tokenizer.ggml.tokens", ARRAY, items(STRING, TOKENS)),
    (b"tokenizer.ggml.scores", ARRAY, items(F32, [0.0, 0, 0, -1, -2, -3, -4, 0])),
    (b"tokenizer.ggml.token_type", ARRAY, items(I32, [2, 3, 3, 1, 1, 1, 1, 6])),
    (b"tokenizer.ggml.unknown_token_id", U32, struct.pack("<I", 0)),
    (b"tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 1)),
    (b"tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 2)),
    (b"tokenizer.ggml.add_bos_token", BOOL, b"\1"),
    (b"tokenizer.chat_template", STRING, text(b"{{ messages }}")),
]
BYTE_LEVEL = {
    b"tokenizer.ggml.model": (STRING, text(b"gpt2")),
    b"tokenizer.ggml.pre": (STRING, text(b"llama-bpe")),
    b"tokenizer.ggml.merges": (ARRAY, items(STRING, [b"a b"])),
}
SHAPES = {b"token_embd.weight": (SIZE, len(TOKENS)), b"output_norm.weight": (SIZE,)}
SHAPES |= {b"blk.0.%s.weight" % name: (SIZE,) for name in (b"attn_norm", b"ffn_norm")}
SHAPES |= {
    b"blk.0.%s.weight" % name: (SIZE, SIZE // 2 if name in (b"attn_k", b"attn_v") else SIZE)
    for name in (b"attn_q", b"attn_k", b"attn_v", b"attn_output", b"ffn_gate", b"ffn_up", b"ffn_down")
}


def valid() -> Table:
    tensors, data = [], b""
    generator = np.random.default_rng(0)
    for name, dims in SHAPES.items():
        kind = FLOAT if len(dims) == 1 or b"attn_q" in name else Q8_0
        array = generator.normal(size=dims[::-1]).astype(np.float32)
        tensors.append((name, dims, int(kind), len(data)))
        data += gguf.quantize(array, kind).tobytes()
        data += bytes(-len(data) % 32)
    return Table(METADATA, tensors, data=data)


TABLE = valid()
VALID = TABLE.build()


@pytest.fixture(scope="module")
def at() -> Iterator[Bench]:
    with bench("GGUF reader") as made:
        yield made


def check(at: Bench, content: bytes) -> None:
    path = at.directory / "model.gguf"
    path.write_bytes(content)
    at.judge(lambda: accepted_is_right(path))


def accepted_is_right(path: Path) -> None:
    source = open_source(path)
    assert isinstance(source, GgufSource)
    ours = {name: source.read(name) for name in source.tensors}
    files = source.files()
    json.loads(files["config.json"])
    # This raises where the package refuses, and no EndorError: accepting such a file fails the test.
    theirs = gguf.GGUFReader(path)
    stated = {key: part.contents() for key, part in theirs.fields.items() if not key.startswith("GGUF.")}
    assert repr(dict(source.header.metadata)) == repr(stated)  # repr: NaN equals NaN
    assert source.header.data_start == theirs.data_offset
    there = {tensor.name: tensor for tensor in theirs.tensors}
    assert list(source.header.tensors) == list(there)
    for name, array in ours.items():
        tensor = there[source.stored_names[name]]
        assert (array.dtype, array.shape) == (np.float32, tuple(reversed(tensor.shape.tolist())))
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        if "q_proj" in name:
            array = permute(array, HEADS)
        elif "k_proj" in name:
            array = permute(array, KV_HEADS)
        assert array.tobytes() == expected.tobytes()


def test_the_valid_files_are_accepted(at: Bench) -> None:
    accepted = at.ended["accepted"]
    check(at, VALID)
    check(at, replace(TABLE, metadata=with_entries(BYTE_LEVEL)).build())
    assert at.ended["accepted"] == accepted + 2


def with_entries(changed: dict[bytes, tuple[int, bytes]]) -> list[tuple[bytes, int, bytes]]:
    kept = [entry for entry in METADATA if entry[0] not in changed]
    return kept + [(key, *value) for key, value in changed.items()]


@settings(3)
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda data: b"GGUF\3\0\0\0" + data),
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.binary(max_size=300)).map(
            lambda drawn: b"GGUF\3\0\0\0" + struct.pack("<QQ", *drawn[:2]) + drawn[2]
        ),
    )
)
def test_random_bytes(at: Bench, content: bytes) -> None:
    check(at, content)


@settings(3)
@given(content=damaged(VALID, header_bytes=len(TABLE.header())))
def test_damaged_files(at: Bench, content: bytes) -> None:
    check(at, content)


SIZES = st.one_of(st.sampled_from(NASTY_SIZES), st.integers(0, 64))
STRINGS = st.one_of(
    st.sampled_from(
        [b"", b"llama", b"gpt2", b"linear", b"yarn", b"\xff", b"\xed\xa0\x80", b"a\nb", b"x" * 3000]
    ),
    st.binary(max_size=6),
)


@st.composite
def scalars(draw: st.DrawFn, kind: int) -> Any:
    code = CODES[kind]
    if code in "fd":
        return draw(
            st.sampled_from(
                [
                    0.0,
                    -0.0,
                    1.0,
                    -1.0,
                    1e-30,
                    1e30,
                    *([1e300, 1e-300] if code == "d" else []),
                    float("inf"),
                    float("nan"),
                    0.5,
                ]
            )
        )
    if code == "?":
        return draw(st.booleans())
    bits = 8 * struct.calcsize(code)
    low = 0 if code.isupper() else -(2 ** (bits - 1))
    high = low + 2**bits - 1
    return draw(st.one_of(st.integers(low, high), st.sampled_from([low, high, 1, 2, 4, 8, 32, 64])))


@st.composite
def values(draw: st.DrawFn) -> tuple[int, bytes]:
    """A metadata value of any type, and now and then of none."""
    kind = draw(st.sampled_from([*CODES, STRING, STRING, ARRAY, ARRAY, ARRAY, 13, 2**32 - 1]))
    if kind in CODES:
        return kind, struct.pack(f"<{CODES[kind]}", draw(scalars(kind)))
    if kind == STRING:
        return kind, text(draw(STRINGS), draw(st.one_of(st.none(), st.none(), SIZES)))
    if kind != ARRAY:
        return kind, draw(st.binary(max_size=9))
    inner = draw(st.sampled_from([*CODES, STRING, ARRAY, 13]))
    count = draw(st.one_of(st.none(), st.none(), SIZES))
    if inner == ARRAY:  # nested, with or without an end
        depth = draw(st.sampled_from([1, 3, 2000]))
        return kind, struct.pack("<IQ", ARRAY, 1) * depth + items(U8, [1], count)
    if inner == 13:
        return kind, struct.pack("<IQ", inner, count or 0)
    strategy = STRINGS if inner == STRING else scalars(inner)
    return kind, items(inner, draw(st.lists(strategy, max_size=9)), count)


KEYS = [key for key, _, _ in METADATA] + [*BYTE_LEVEL]
KEYS += [
    b"tokenizer.ggml.eot_token_id",
    b"tokenizer.ggml.add_space_prefix",
    b"tokenizer.ggml.padding_token_id",
]
KEYS += [b"split.count", b"llama.expert_count", b"llama.rope.scaling.type", b"llama.rope.scaling.factor"]
KEYS += [
    b"llama.attention.key_length",
    b"llama.rope.dimension_count",
    b"general.name",
    b"",
    b"\xff",
    b"x" * 70,
]
NAMES = [
    *SHAPES,
    b"output.weight",
    b"rope_freqs.weight",
    b"blk.00.attn_q.weight",
    b"blk.0.attn_q.bias",
    b"\xff",
]
NAMES += [b"blk.99999999999999999999.ffn_up.weight", b"blk.\xd9\xa0.ffn_up.weight", b"", b"a\nb", b"n" * 5000]


@st.composite
def structured(draw: st.DrawFn) -> Content:
    """A valid table with one thing changed to something nasty."""
    table = TABLE
    if draw(st.booleans()):
        table = replace(table, metadata=with_entries(BYTE_LEVEL))
    metadata, tensors = list(table.metadata), list(table.tensors)
    place, row = draw(st.integers(0, len(metadata) - 1)), draw(st.integers(0, len(tensors) - 1))
    name, dims, kind, offset = tensors[row]
    match draw(st.integers(0, 9)):
        case 0:
            metadata[place] = (metadata[place][0], *draw(values()))
        case 1:
            metadata = with_entries({draw(st.sampled_from(KEYS)): draw(values())})
        case 2:
            metadata.insert(place, (draw(st.sampled_from(KEYS)), *draw(values())))
        case 3:
            del metadata[place]
        case 4:
            counts = st.one_of(SIZES, st.integers(0, 30))
            table = replace(table, counts=(draw(counts), draw(counts)))
        case 5:
            version = st.one_of(st.integers(0, 4), st.sampled_from([2**24, 2**31, 3 << 24, 2**32 - 1]))
            table = replace(table, version=draw(version))
        case 6:
            alignment = draw(st.one_of(st.sampled_from(NASTY_SIZES), st.sampled_from([4, 16, 64, 128])))
            entry = draw(st.sampled_from([(U32, "<I"), (I32, "<i"), (U64, "<Q")]))
            limited = (
                min(alignment, 2 ** (31 if entry[0] == I32 else 32) - 1) if entry[0] != U64 else alignment
            )
            metadata = with_entries({b"general.alignment": (entry[0], struct.pack(entry[1], limited))})
            table = replace(table, padding=draw(st.sampled_from([1, 16, 32, 64])))
        case 7:
            tensors[row] = (draw(st.sampled_from(NAMES)), dims, kind, offset)
        case 8:
            sizes = draw(st.one_of(st.lists(SIZES, max_size=6), st.permutations(dims), st.just((1,) * 2000)))
            offset = draw(st.one_of(st.just(offset), SIZES, st.sampled_from([row[3] for row in tensors])))
            tensors[row] = (name, tuple(sizes), kind, offset)
        case _:
            kind = draw(st.one_of(st.integers(0, 45), st.sampled_from([2**31, 2**32 - 1])))
            tensors[row] = (name, dims, kind, draw(st.sampled_from([offset, offset + 1, offset + 32])))
    if draw(st.integers(0, 9)) == 0:
        table = replace(table, data=table.data[: draw(st.integers(0, len(table.data)))])
    return Content(replace(table, metadata=metadata, tensors=tensors).build())


@settings(3)
@given(content=structured())
def test_hostile_tables(at: Bench, content: bytes) -> None:
    check(at, content)
