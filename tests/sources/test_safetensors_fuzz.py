"""The safetensors reader against hostile files: what it accepts, the safetensors package reads the same."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.arrays import dtype_from_name
from endor_jax.sources import open_source
from endor_jax.sources.safetensors_header import DTYPES
from tests.sources.fuzzing import NASTY_SIZES, Bench, Content, bench, damaged, settings

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "none": {"dtype": "F16", "shape": [0, 5], "data_offsets": [32, 32]},
    "scalar": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    "é": {"dtype": "U8", "shape": [3], "data_offsets": [40, 43]},
}
DATA = bytes(range(43))


def built(text: bytes, data: bytes = DATA, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TEXT = json.dumps(HEADER, ensure_ascii=False).encode()
VALID = built(TEXT)


@pytest.fixture(scope="module")
def at() -> Iterator[Bench]:
    with bench("safetensors reader") as made:
        (made.directory / "config.json").write_text("{}")
        yield made


def check(at: Bench, content: bytes) -> None:
    path = at.directory / "model.safetensors"
    path.write_bytes(content)
    at.judge(lambda: accepted_is_right(path, content))


def accepted_is_right(path: Path, content: bytes) -> None:
    with open_source(path.parent) as source:
        ours = {name: source.read(name) for name in source.tensors}
        assert all(array.flags.writeable for array in ours.values())
    # This raises where the package refuses, and no EndorError: accepting such a file fails the test.
    theirs = dict(safetensors.deserialize(content))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        there = theirs[name]
        assert array.dtype == dtype_from_name(DTYPES[there["dtype"]])
        assert list(array.shape) == there["shape"]
        assert array.tobytes() == bytes(there["data"])


def test_the_valid_file_is_accepted(at: Bench) -> None:
    accepted = at.ended["accepted"]
    check(at, VALID)
    assert at.ended["accepted"] == accepted + 1


@settings(3)
@given(content=st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(built)))
def test_random_bytes(at: Bench, content: bytes) -> None:
    check(at, content)


@settings(3)
@given(content=damaged(VALID, header_bytes=8 + len(TEXT)))
def test_damaged_files(at: Bench, content: bytes) -> None:
    check(at, content)


NUMBERS = st.one_of(
    st.sampled_from(NASTY_SIZES),
    st.sampled_from([-1, -(2**63), 2**64, 10**30, True, False, 1.0, 2.5, -0.0, 1e999, None, "2", [2], {}]),
    st.integers(0, 64),
)
NAMES = st.sampled_from(["a", "b.weight", "none", "scalar", "é", "__metadata__", "new", "", "\0\n", "\ud800"])
CODES = st.one_of(st.sampled_from([*DTYPES, "F4", "F6_E2M3", "f32", "", "I128", "\n"]), NUMBERS)
SHAPES = st.one_of(st.lists(NUMBERS, max_size=5), st.just([1] * 65), st.just([1] * 64), NUMBERS)
RANGES = st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), st.lists(NUMBERS, max_size=3), NUMBERS)
ENTRIES = st.one_of(
    st.fixed_dictionaries({"dtype": CODES, "shape": SHAPES, "data_offsets": RANGES}),
    st.just({"dtype": "F32", "shape": [1], "data_offsets": [43, 47]}),
    st.dictionaries(st.sampled_from(["dtype", "shape", "format", "x"]), NUMBERS, max_size=3),
    NUMBERS,
)
FIELDS = [
    (name, key) for name, entry in HEADER.items() if name != "__metadata__" for key in (*entry, "extra")
]
RAW = [
    b'"twice":{"dtype":"U8","shape":[0],"data_offsets":[43,43]},"twice":{"dtype":"U8","shape":[0],"data_offsets":[43,43]},',
    b'"deep":' + b"[" * 5000 + b"]" * 5000 + b",",
    b'"deep":' + b"[" * 150 + b"]" * 150 + b",",
    b'"deep":' + b'{"a":' * 100_000,
    b'"huge":1' + b"0" * 5000 + b",",
    b'"x":NaN,',
    b'"x":-Infinity,',
    b'"\xff":1,',
    b'"s\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[43,43]},',
    b'"s\\ud83d\\ude00":{"dtype":"U8","shape":[0],"data_offsets":[43,43]},',
    b'"z":{"dtype":"U8","shape":[-0],"data_offsets":[43,43]},',
    b'"z":{"dtype":"U8","shape":[0],"data_offsets":[43,43],"shape":[0]},',
    b'"z":{"dtype":"U8","shape":[00],"data_offsets":[43,43]},',
    b'"z":["U8",[0],[43,43]],',
    b'"__metadata__":{},',
    b'"' + b"n" * 10_000 + b'":1,',
    b"/**/",
    b" \t\r\n",
    b"\x0c",
    b"\0",
]


@st.composite
def structured(draw: st.DrawFn) -> Content:
    """A valid header with one thing changed to something nasty, its data sometimes changed to fit."""
    header: dict[str, Any] = deepcopy(HEADER)
    data, text, length = DATA, b"", None
    match draw(st.integers(0, 7)):
        case 0:
            name, key = draw(st.sampled_from(FIELDS))
            header[name][key] = draw({"dtype": CODES, "shape": SHAPES}.get(key, RANGES))
        case 1:
            header[draw(NAMES)] = draw(ENTRIES)
        case 2:
            name, field = draw(st.sampled_from(FIELDS))
            if field == "extra":
                del header[name]
            else:
                del header[name][field]
        case 3:
            header["__metadata__"] = draw(st.one_of(NUMBERS, st.dictionaries(NAMES, NUMBERS, max_size=2)))
        case 4:
            length = draw(st.one_of(st.sampled_from(NASTY_SIZES), st.integers(0, len(TEXT) + len(DATA) + 9)))
        case 5:
            text = draw(st.sampled_from(RAW))
        case 6:
            # Most are files to be accepted: other names, order, codes of one width, shapes of 6 and 0.
            entries = draw(st.permutations(list(header.items())[1:]))
            header = dict(entries) | {"__metadata__": draw(st.sampled_from([None, {}, {"x": "\n"}]))}
            header[draw(NAMES)] = header.pop(draw(st.sampled_from(["a", "none", "é"])))
            for entry in header.values():
                if entry and entry.get("data_offsets") == [0, 24]:
                    entry["dtype"] = draw(st.sampled_from(["F32", "I32", "U32", "F64", "F16"]))
                    entry["shape"] = draw(st.sampled_from([[6], [3, 2], [1, 6, 1], [3], [12], [2, 3, 0], []]))
                elif entry and entry.get("data_offsets") == [32, 32]:
                    entry["dtype"] = draw(st.sampled_from(list(DTYPES)))
                    entry["shape"] = draw(st.lists(st.sampled_from([0, *NASTY_SIZES]), max_size=4))
        case _:
            names = draw(st.permutations(list(header)))
            header = {name: header[name] for name in names}
            # A range moved, and often another code of the same width: some of these are files to be accepted.
            header["é"]["shape"], header["é"]["dtype"] = draw(SHAPES), draw(CODES)
            header["é"]["data_offsets"][1] = end = draw(st.integers(38, 60))
            data = DATA + bytes(max(end - 43, 0))
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=3))
    plain = json.dumps(header, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return Content(built(plain[:1] + text + plain[1:], data, length=length))


@settings(3)
@given(content=structured())
def test_hostile_headers(at: Bench, content: bytes) -> None:
    check(at, content)
