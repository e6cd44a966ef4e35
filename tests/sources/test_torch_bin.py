"""Reading pytorch_model.bin without torch: every kind of view, and nothing that is not a tensor."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import EndorError, InvalidInputError, NotFoundError, UnsupportedError
from endor_jax.sources import Source, TensorInfo, open_source, stored_tensor
from endor_jax.sources.byte_range import read_range
from endor_jax.sources.torch_bin_pickle import STORAGES
from tests.sources.tiny_torch_bin import (
    archive,
    called,
    named,
    number,
    numbers,
    opened,
    state_dict,
    storage,
    text,
    torch_file,
    view,
)

FLOATS = storage("torch.FloatStorage", "0", 6)
PLAIN = {"w": view(FLOATS, shape=(2, 3), strides=(3, 1))}
SIX = np.arange(6, dtype=np.float32)


def refusal(directory: Path, pickled: bytes, data: bytes = SIX.tobytes()) -> str:
    """The one line that opening a file with this pickle ends with."""
    with pytest.raises(EndorError) as raised:
        opened(directory, archive(pickled, {"0": data}))
    assert "pytorch_model.bin" in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("dtype", STORAGES.values())
def test_every_storage_class_gives_the_bits_that_were_stored(tmp_path: Path, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 2, (5, 7)).astype(dtype_from_name(dtype))
    tensors = {"model.w": array, "scalar": array[0, 0].reshape(()), "empty": array[:0]}
    with opened(tmp_path, torch_file(tensors)) as source:
        assert isinstance(source, Source)
        assert source.tensors == {name: TensorInfo(it.shape, dtype) for name, it in tensors.items()}
        for name, expected in tensors.items():
            got = source.read(name)
            assert (got.dtype, got.shape, got.tobytes()) == (
                expected.dtype,
                expected.shape,
                expected.tobytes(),
            )
            assert got.flags.writeable
            assert got.flags.c_contiguous
        with pytest.raises(InvalidInputError, match="'nope'"):
            source.read("nope")
        source.close()


def test_views_of_one_storage(tmp_path: Path) -> None:
    """Tied, transposed, expanded, a column, a row and a parameter, all of the same six numbers."""
    hooks = named("collections.OrderedDict") + b")R"
    entries = PLAIN | {
        "tied": view(FLOATS, shape=(2, 3), strides=(3, 1)),
        "transposed": view(FLOATS, shape=(3, 2), strides=(1, 3)),
        "expanded": view(FLOATS, shape=(4, 3), strides=(0, 1), start=3),
        "column": view(FLOATS, shape=(2, 1), strides=(3, 1), start=2),
        "row": view(FLOATS, shape=(1, 3), strides=(999, 1), start=3),
        "parameter": called("torch._utils._rebuild_parameter", PLAIN["w"], b"\x88", hooks),
    }
    source = opened(tmp_path, archive(state_dict(entries), {"0": SIX.tobytes()}))
    matrix = SIX.reshape(2, 3)
    expected = {
        "w": matrix,
        "tied": matrix,
        "transposed": matrix.T,
        "expanded": np.broadcast_to(matrix[1], (4, 3)),
        "column": matrix[:, 2:],
        "row": matrix[1:],
        "parameter": matrix,
    }
    assert source.tensors.keys() == expected.keys()
    for name, array in expected.items():
        got = source.read(name)
        assert got.shape == array.shape
        assert np.array_equal(got, array)
        assert got.flags.c_contiguous
    source.read("tied")[:] = 7
    assert np.array_equal(source.read("w"), matrix)


VALID = archive(state_dict(PLAIN), {"0": SIX.tobytes()})


MARKER = "was-run"
CALL = called("os.system", text(f"touch {MARKER}"))


@pytest.mark.parametrize("entry", [CALL, b"cos\nsystem\n" + text(f"touch {MARKER}") + b"\x85R"])
def test_a_pickle_that_runs_code_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = state_dict({"w": entry})
    pickle.loads(pickled)
    assert Path(MARKER).exists()
    Path(MARKER).unlink()
    line = refusal(tmp_path / "model", pickled)
    assert "'os.system'" in line
    assert "nothing of it was run" in line
    assert not Path(MARKER).exists()


OTHERS = {
    "nested": ({"model": b"}"}, r"entry 'model'.*a dictionary with 0 entries"),
    "optimizer": ({"optimizer": b"}(" + text("lr") + number(1) + b"u"}, "entry 'optimizer'"),
    "number": ({"step": number(7)}, "entry 'step'.*got 7, expected a tensor"),
    "none": ({"w": b"N"}, "entry 'w'.*got None"),
    "list": ({"w": b"]" + number(1) + b"a"}, "a list of 1"),
    "string": ({"w": text("x" * 500)}, "entry 'w'"),
    "size": ({"w": called("torch.Size", numbers((2, 3)))}, "a tuple of 2"),
    "class": (
        {"w": named("torch.nn.modules.linear.Linear")},
        "Python object 'torch.nn.modules.linear.Linear'",
    ),
    "storage class": ({"w": named("torch.FloatStorage")}, r"got torch\.FloatStorage"),
    "quantised": ({"w": storage("torch.QInt8Storage", "0", 6)}, r"'torch\.QInt8Storage'"),
    "bare storage": ({"w": FLOATS}, "part of a tensor"),
    "sparse": ({"w": called("torch._utils._rebuild_sparse_tensor")}, "_rebuild_sparse_tensor"),
    "eval": ({"w": called("builtins.eval", text("1"))}, r"builtins\.eval"),
    "called class": ({"w": called("torch.FloatStorage", number(6))}, r"torch\.FloatStorage of \(6,\)"),
    "called dict": ({"w": called("collections.OrderedDict", number(6))}, "OrderedDict of"),
    "flags": ({"w": view(FLOATS, shape=(6,), strides=(1,), more=b"}" + text("conj") + b"\x88s")}, "conj"),
    "negative": ({"w": view(FLOATS, shape=(6,), strides=(-1,))}, "_rebuild_tensor_v2 of"),
    "hooks": (
        {"w": called("torch._utils._rebuild_parameter", PLAIN["w"], b"\x88", b"]" + number(1) + b"a")},
        "_rebuild_parameter",
    ),
    "new object": ({"w": named("torch.Size") + b")\x81"}, "instruction NEWOBJ"),
    "extension": ({"w": b"\x82\x01"}, "instruction EXT1"),
    "protocol 4": ({"w": b"\x8c\x01a"}, "instruction SHORT_BINUNICODE"),
    "attributes": ({"w": b"}}" + text("x") + number(1) + b"sb"}, "attributes"),
    "persistent id": ({"w": text("storage") + b"Q"}, "persistent id 'storage'"),
    "integer key": ({"w": b"}" + number(1) + number(1) + b"s"}, "the key 1"),
    "half a letter": ({"w": b"}X\x03\0\0\0\xed\xa0\x80" + number(1) + b"s"}, "a dictionary with the key"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_tensor_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    entries, message = OTHERS[kind]
    with pytest.raises((UnsupportedError, InvalidInputError), match=message):
        opened(tmp_path, archive(state_dict(PLAIN | entries), {"0": SIX.tobytes()}))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02" + PLAIN["w"] + b".", "got a tensor, expected a dictionary"),
        (b"\x80\x02N.", "got None"),
        (b"", "a pickle"),
        (b"\x80\x02}", "a pickle that breaks off"),
        (b"\x80\x02.", "breaks off"),
        (b"\x80\x02u.", "breaks off"),
        (b"\x80\x02h\x05.", "breaks off"),
        (b"\x80\x02t.", "breaks off"),
        (b"\x80\x02c\\os\nsystem\n.", "breaks off"),
        (b"\xff.", "breaks off"),
        (b"\x80\x02NNNs.", "keys and values set in None"),
        (b"\x80\x02NNa.", "items appended to None"),
        (b"\x80\x02}(Nu.", "1 keys and values"),
        (b"\x80\x02}" + 2 * (text("w") + number(1) + b"s") + b".", "two entries 'w'"),
        (state_dict(PLAIN)[:-1], "pickle"),
    ],
)
def test_damaged_pickles(tmp_path: Path, pickled: bytes, message: str) -> None:
    assert message in refusal(tmp_path, pickled)


VIEWS = {
    "behind the end": (view(FLOATS, shape=(2, 3), strides=(3, 1), start=1), "6 elements of its storage"),
    "stride too long": (view(FLOATS, shape=(2, 3), strides=(4, 1)), "6 elements"),
    "empty from nowhere": (view(FLOATS, shape=(0, 3), strides=(3, 1), start=7), "6 elements"),
    "strides missing": (view(FLOATS, shape=(2, 3), strides=(3,)), "one stride per size"),
    "too many sizes": (view(FLOATS, shape=(1,) * 65, strides=(1,) * 65), "one stride per size"),
    "uncountable": (view(FLOATS, shape=(2**62, 0), strides=(0, 0)), "below 2"),
    "repeated for ever": (view(FLOATS, shape=(2**40,), strides=(0,)), "most of it repetition"),
    "more than there is": (
        view(storage("torch.FloatStorage", "0", 7), shape=(7,), strides=(1,)),
        "a storage of 24 bytes, expected data/0 of 28",
    ),
    "another type": (view(storage("torch.DoubleStorage", "0", 3), shape=(3,), strides=(1,)), "as float64"),
    "not there": (view(storage("torch.FloatStorage", "9", 6), shape=(6,), strides=(1,)), "no bytes at all"),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_views_are_checked_against_their_storage(tmp_path: Path, kind: str) -> None:
    entry, message = VIEWS[kind]
    line = refusal(tmp_path, state_dict(PLAIN | {"v": entry}))
    assert message in line
    assert "tensor 'v'" in line


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, file in names.items():
        (tmp_path / file).write_bytes(torch_file({name: SIX}))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_shards(sharded: Path) -> None:
    source = open_source(sharded)
    assert list(source.tensors) == ["a", "b"]
    assert np.array_equal(source.read("b"), SIX)
    assert source.path == sharded


def test_half_of_a_download_is_named(sharded: Path) -> None:
    for file in sharded.glob("*.bin"):
        file.unlink()
    with pytest.raises(NotFoundError, match=r"no pytorch_model-00001-of-00002\.bin, .*00002-of-00002.*all 2"):
        open_source(sharded)


def test_shards_without_their_index(sharded: Path) -> None:
    (sharded / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(NotFoundError, match=r"pytorch_model\.bin\.index\.json"):
        open_source(sharded)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "pytorch_model-00001-of-00002.bin"} | {"c": "pytorch_model-00002-of-00002.bin"},
            "'c'.*no shard",
        ),
        ({"a": "pytorch_model-00001-of-00002.bin"}, "no file"),
        ({"a": "../pytorch_model-00001-of-00002.bin"}, "same directory"),
        ({"a": "model.safetensors"}, "same directory"),
        ({"a": 3}, "shard 3"),
        ({}, "weight_map"),
    ],
)
def test_an_index_that_contradicts(sharded: Path, weight_map: dict, message: str) -> None:
    if message == "no file":
        (sharded / "pytorch_model-00001-of-00002.bin").write_bytes(torch_file({"a": SIX, "hidden": SIX}))
        message = "'hidden'.*no entry"
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InvalidInputError, match=message):
        open_source(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    (sharded / "pytorch_model-00002-of-00002.bin").write_bytes(torch_file({"a": SIX, "b": SIX}))
    with pytest.raises(InvalidInputError, match=r"'a'.*two copies"):
        open_source(sharded)


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    source = opened(tmp_path, VALID)
    os.truncate(tmp_path / "pytorch_model.bin", 100)
    with pytest.raises(InvalidInputError, match=r"tensor 'w'.*truncated"):
        source.read("w")


def test_torch_is_not_imported(tmp_path: Path) -> None:
    opened(tmp_path, VALID)
    program = f"""
import sys
from endor_jax.sources import open_source
open_source({str(tmp_path)!r}).read("w")
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.reference
def test_files_that_torch_wrote(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = torch.nn.Linear(6, 4).state_dict()  # an OrderedDict with _metadata
    for name in ("float16", "bfloat16", "float64", "int8", "int64", "uint8", "bool", "complex64"):
        state[name] = (base * 3).to(getattr(torch, name))
    state |= {"t": base.t(), "tied": base, "part": base[1:3, ::2], "wide": base[0].expand(5, 6)}
    state |= {"p": torch.nn.Parameter(base[0]), "scalar": torch.tensor(2.0), "empty": base[:0]}
    state["permuted"] = torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    source = open_source(tmp_path)
    assert list(source.tensors) == list(state)
    for name, tensor in state.items():
        bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        got = source.read(name)
        assert got.shape == tuple(tensor.shape), name
        assert got.tobytes() == bits.tobytes(), name


@pytest.mark.reference
def test_files_from_before_torch_1_6_say_what_to_do(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"before version 1\.6.*save_pretrained"):
        open_source(tmp_path)


@pytest.mark.reference
def test_the_files_of_these_tests_are_what_torch_reads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "x.bin").write_bytes(torch_file({"a": SIX.reshape(3, 2), "b": SIX.astype(np.int64)}))
    there = torch.load(tmp_path / "x.bin", weights_only=True)
    assert torch.equal(there["a"], torch.from_numpy(SIX.reshape(3, 2)))
    assert torch.equal(there["b"], torch.arange(6))


def test_the_range_of_a_storage_is_read_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(tmp_path, torch_file({"a": SIX, "b": np.ones(50_000, np.float32)}))
    lengths: list[int] = []

    def counted(path: Path, *, offset: int, length: int, what: str) -> np.ndarray:
        lengths.append(length)
        return read_range(path, offset=offset, length=length, what=what)

    monkeypatch.setattr(stored_tensor, "read_range", counted)
    source.read("a")
    assert lengths == [24]
