"""Reading Hugging Face directories: dtypes, shards, indexes that lie, damaged headers."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from endor_jax.errors import InvalidInputError, NotFoundError, UnsupportedError
from endor_jax.sources import Source, TensorInfo, open_source
from endor_jax.sources.safetensors_header import DTYPES, build_header, parse_header


def save(directory: Path, tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    save_file(tensors, directory / name)


def save_raw(path: Path, header: bytes | dict, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(tmp_path, {"a": np.arange(3.0, dtype=np.float32)}, "model-00001-of-00002.safetensors")
    save(tmp_path, {"b": np.arange(5, dtype=np.int32)}, "model-00002-of-00002.safetensors")
    index(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    return tmp_path


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64, np.int8, np.bool_])
def test_reads_the_bits_that_safetensors_wrote(tmp_path: Path, dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 100, (7, 5)).astype(dtype)
    save(tmp_path, {"w": array, "scalar": array.ravel()[:1].reshape(()), "empty": array[:0]})
    with open_source(tmp_path) as source:
        assert isinstance(source, Source)
        assert source.tensors["w"] == TensorInfo((7, 5), np.dtype(dtype).name)
        got = source.read("w")
        assert (got.dtype, got.tobytes()) == (array.dtype, array.tobytes())
        assert source.read("scalar").shape == ()
        assert source.read("empty").shape == (0, 5)


@pytest.mark.parametrize("code", DTYPES)
def test_every_listed_dtype_has_an_array_type(tmp_path: Path, code: str) -> None:
    data = bytes(range(16))
    size = TensorInfo((), DTYPES[code]).nbytes
    save_raw(
        tmp_path / "x.safetensors",
        {"t": {"dtype": code, "shape": [16 // size], "data_offsets": [0, 16]}},
        data,
    )
    (tmp_path / "config.json").write_text("{}")
    array = open_source(tmp_path).read("t")
    assert array.dtype.name == DTYPES[code]
    assert array.tobytes() == data


def test_memory_is_the_callers_and_the_file_is_not_written(tmp_path: Path) -> None:
    save(tmp_path, {"w": np.ones((4, 4), np.float32)})
    before = (tmp_path / "model.safetensors").read_bytes()
    source = open_source(tmp_path)
    source.read("w")[:] = 7
    assert np.all(source.read("w") == 1)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    source.close()
    source.close()


def test_shards_and_copied_files(sharded: Path) -> None:
    (sharded / "chat_template.jinja").write_text("x")
    (sharded / "README.md").write_text("not copied")
    source = open_source(sharded)
    assert list(source.tensors) == ["a", "b"]
    assert np.array_equal(source.read("b"), np.arange(5))
    assert source.files().keys() == {"config.json", "chat_template.jinja"}


def test_files_without_index_are_all_read(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert open_source(sharded).tensors.keys() == {"a", "b"}


def test_single_file_comes_before_the_index(sharded: Path) -> None:
    save(sharded, {"only": np.zeros(1, np.float32)})
    assert open_source(sharded).tensors.keys() == {"only"}


def test_same_tensor_in_two_files_is_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    save(sharded, {"a": np.zeros(1, np.float32)}, "third.safetensors")
    with pytest.raises(InvalidInputError, match=r"'a'.*two copies.*third"):
        open_source(sharded)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}, "'c'.*00002"),
        ({"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}, "'a'.*00002"),
        (
            {"a": "model-00001-of-00002.safetensors", "b": "../elsewhere.safetensors"},
            "elsewhere.*same directory",
        ),
        ({"a": 3}, "shard 3 for tensor 'a'"),
        ({"a": "/etc/model.safetensors"}, "same directory"),
        ({"a": ".."}, "same directory"),
        ({"a": ""}, "same directory"),
        ({"a": "x\0.safetensors"}, "same directory"),
        ({"a": "x" * 300 + ".safetensors"}, "same directory"),
        ({"a": "weights.bin"}, "same directory"),
        ({}, "weight_map"),
        (None, "weight_map"),
    ],
)
def test_index_that_contradicts_the_shards(sharded: Path, weight_map: object, message: str) -> None:
    index(sharded, weight_map)
    with pytest.raises(InvalidInputError, match=message):
        open_source(sharded)


def test_tensor_that_the_index_forgets(sharded: Path) -> None:
    save(sharded, {"a": np.zeros(1), "hidden": np.zeros(1)}, "model-00001-of-00002.safetensors")
    with pytest.raises(InvalidInputError, match=r"'hidden'.*no entry"):
        open_source(sharded)


def test_missing_files(sharded: Path) -> None:
    config = sharded / "config.json"
    config.rename(sharded / "elsewhere.json")
    with pytest.raises(NotFoundError, match=r"config\.json"):
        open_source(sharded)
    (sharded / "elsewhere.json").rename(config)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFoundError, match="00002-of-00002"):
        open_source(sharded)


def test_unknown_name(sharded: Path) -> None:
    with pytest.raises(InvalidInputError, match="'nope'"):
        open_source(sharded).read("nope")


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "overlap": ({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, 12, "overlap"),
    "hole": ({"a": F32, "b": F32 | {"data_offsets": [12, 20]}}, 20, "hole"),
    "not from zero": ({"a": F32 | {"data_offsets": [4, 12]}}, 12, "hole"),
    "length against shape": ({"a": F32 | {"shape": [3]}}, 8, "range of 12 bytes"),
    "reversed": ({"a": F32 | {"data_offsets": [8, 0]}}, 8, "range of 8 bytes"),
    "negative": ({"a": F32 | {"data_offsets": [-8, 0]}}, 8, "header entry"),
    "negative shape": ({"a": F32 | {"shape": [-2]}}, 8, "header entry"),
    "shape of bool": ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, 1, "header entry"),
    "range of bool": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}}, 1, "header entry"),
    "minus zero": (b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', 0, "header entry"),
    "uncountable": ({"a": {"dtype": "U8", "shape": [2**62, 4, 0], "data_offsets": [0, 0]}}, 0, "2\\*\\*63"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "strings by string"),
    "no number": (b'{"__metadata__":NaN}', 0, "NaN is not JSON"),
    "half a pair": (b'{"__metadata__":{"a":"\\ud800"}}', 0, "unreadable JSON"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8, "header entry"),
    "data too short": ({"a": F32}, 7, "7 bytes of data"),
    "data too long": ({"a": F32}, 9, "9 bytes of data"),
    "not JSON": (b"{nonsense", 0, "unreadable JSON"),
    "not an object": (b"[]", 0, "JSON list"),
    "same key twice": (b'{"a": 1, "a": 2}', 0, "'a' occurs twice"),
    "not UTF-8": (b'{"\xff": 1}', 0, "unreadable JSON"),
    "deep": (b"[" * 100_000, 0, "unreadable JSON"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_headers(tmp_path: Path, case: str) -> None:
    header, data_bytes, message = DAMAGED[case]
    save_raw(tmp_path / "x.safetensors", header, bytes(data_bytes))
    with pytest.raises(InvalidInputError, match=message):
        parse_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}"])
def test_header_length_that_cannot_be(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InvalidInputError, match="damaged or truncated"):
        parse_header(tmp_path / "x.safetensors")


def test_dtype_without_an_array_type(tmp_path: Path) -> None:
    entry = {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}
    save_raw(tmp_path / "x.safetensors", {"quantised": entry}, b"\0")
    with pytest.raises(UnsupportedError, match=r"'quantised'.*F4"):
        parse_header(tmp_path / "x.safetensors")


@given(cut=st.integers(0, 10_000), position=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_reported_as_ours(tmp_path: Path, cut: int, position: int, value: int) -> None:
    """A flipped byte in the header or a file cut short never gives anything but our errors."""
    infos = {"first": TensorInfo((3, 2), "bfloat16"), "second": TensorInfo((4,), "float32")}
    header, _ = build_header(infos)
    damaged = bytearray(header + bytes(28))
    damaged[position % len(header)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(damaged[: cut % len(damaged)] if cut % 2 else damaged)
    with suppress(InvalidInputError, UnsupportedError):
        parse_header(path)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    save(tmp_path, {"w": np.ones(100, np.float32)})
    source = open_source(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidInputError, match=r"'w'.*got 390 bytes.*expected 400"):
        source.read("w")
