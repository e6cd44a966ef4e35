"""Cutting a checkpoint again: the parts that a conversion would have written, whatever was there before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.arrays import bits_of, round_up
from endor_jax.errors import (
    CorruptCheckpointError,
    DestinationExistsError,
    InvalidInputError,
    NotFoundError,
    OptionError,
    ResumeError,
    StorageError,
)
from endor_jax.format.decode import decode
from endor_jax.format.layout import TensorSpec, plan_layout
from endor_jax.format.tree import rebuild
from endor_jax.store.manifest import read_manifest
from endor_jax.store.part import PAGE_BYTES
from endor_jax.store.verify import verify
from endor_jax.store.writer import CheckpointWriter
from tests.conversion.interrupting import contents
from tests.strategies import CODECS, INTEGER_CODECS
from tests.tiny_models import LLAMA, OPT, OPT_350M, write_tiny

UNTIED = LLAMA | {"tie_word_embeddings": False, "num_hidden_layers": 2, "vocab_size": 331}
SHORT = UNTIED | {"num_hidden_layers": 1}
ODD = SHORT | {"intermediate_size": 107, "tie_word_embeddings": True}
PRUNED = {"prune": "magnitude", "sparsity": 0.5, "dtype": "bfloat16"}


def but_made(path: Path) -> dict[str, bytes]:
    """Every file of a checkpoint, its manifest without how it came to be."""
    files = contents(path)
    manifest = json.loads(files["endor.json"])
    del manifest["made"], manifest["digest"]
    return files | {"endor.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize(
    ("config", "shards", "settings"),
    [
        (LLAMA | {"num_hidden_layers": 2}, 8, PRUNED),
        (ODD, 3, {"values": "int8"}),
        (SHORT, 5, {"values": "packed", "dtype": "float16", "keep_negative_zero": True}),
        (SHORT, 3, PRUNED | {"values": "int4"}),
        (OPT | {"num_hidden_layers": 1}, 2, {}),
        (OPT_350M | {"num_hidden_layers": 1}, 4, {"values": "raw", "dtype": "bfloat16"}),
    ],
    ids=["llama", "odd-int8", "untied-packed", "untied-int4", "opt", "opt-350m-raw"],
)
def test_it_gives_what_converting_would_have_given(tmp_path, config, shards, settings):
    source = write_tiny(tmp_path / "source", config, tokenizer=True)
    for count in (1, shards):
        endor.convert(source, tmp_path / f"convert{count}", shards=count, **settings)
    before = contents(tmp_path / "convert1")
    manifest = endor.reshard(tmp_path / "convert1", tmp_path / "cut", shards=shards)
    assert manifest.shards % shards == 0
    assert but_made(tmp_path / "cut") == but_made(tmp_path / f"convert{shards}")
    assert verify(tmp_path / "cut").problems == ()
    endor.reshard(tmp_path / "cut", tmp_path / "back", shards=1)
    assert but_made(tmp_path / "back") == but_made(tmp_path / "convert1")
    assert contents(tmp_path / "convert1") == before


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model of which every record is in one part."""
    endor.convert(write_tiny(tmp_path / "source", UNTIED, tokenizer=True), tmp_path / "one", **PRUNED)
    return tmp_path / "one"


def test_from_one_number_to_another_without_the_first(checkpoint, tmp_path):
    for source, destination, shards in (("one", "four", 4), ("four", "three", 3), ("one", "at once", 3)):
        endor.reshard(tmp_path / source, tmp_path / destination, shards=shards)
    assert but_made(tmp_path / "three") == but_made(tmp_path / "at once")


def test_how_it_was_made_is_kept(checkpoint, tmp_path):
    made = read_manifest(checkpoint).made
    calls = []
    manifest = endor.reshard(
        checkpoint, tmp_path / "two", shards=2, progress=lambda *call: calls.append(call)
    )
    assert calls[0][0] == "cutting embedding"
    assert calls[-1] == ("done", calls[-1][2], calls[-1][2])
    assert calls[-1][2] > 0
    how = manifest.made.pop("resharded")
    assert (how["source"], how["shards"]) == (str(checkpoint.resolve()), 2)
    assert manifest.made == made


def random_trees() -> list[dict[str, Any]]:
    """Layers with everything that a parameter tree may hold, −0.0, NaN and escapes among it."""
    random = np.random.default_rng(0)
    trees = []
    for _ in range(2):
        sparse = random.normal(size=(3, 23, 70)).astype("bfloat16") * (random.random((3, 23, 70)) < 0.5)
        sparse[0, 1, :9] = [-0.0, np.nan, np.inf, -np.inf, 1e-39, 3e38, 0.0, 1.0, -1e-30]
        trees.append(
            {
                "sparse": sparse.astype("bfloat16"),
                "noise": random.integers(0, 2**16, (70, 60), np.uint16).view(np.float16),
                "small": -np.zeros((2, 3), np.float32),
                "rest": [np.arange(5, dtype=np.float32), (random.integers(-9, 9, (80, 70), np.int8), None)],
            }
        )
    return trees


def leaves_of(path: Path, record: str) -> Any:
    with endor.open(path) as opened:
        stored = opened.manifest.record(record)
        names = opened.manifest.layout(stored).names
        leaves = {name: opened.read_tensor(record, name) for name in names}
        return rebuild(opened.manifest.signatures[stored.signature].tree, leaves)


@pytest.mark.parametrize("values", ["auto", "raw"])
def test_parameter_trees_stay_what_they_are(tmp_path, values):
    trees = random_trees()
    endor.save(tmp_path / "one", trees, values=values)
    assert endor.reshard(tmp_path / "one", tmp_path / "four", shards=4).shards == 4
    assert verify(tmp_path / "four").problems == ()
    endor.reshard(tmp_path / "four", tmp_path / "back", shards=1)
    assert but_made(tmp_path / "back") == but_made(tmp_path / "one")
    for index, tree in enumerate(trees):
        found = leaves_of(tmp_path / "four", f"layers.{index}")
        assert type(found["rest"][1]) is tuple
        pairs = [(found[name], tree[name]) for name in ("sparse", "noise", "small")]
        pairs += [(found["rest"][0], tree["rest"][0]), (found["rest"][1][0], tree["rest"][1][0])]
        for got, expected in pairs:
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(bits_of(got), bits_of(expected))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_codec_and_parts_of_padding_alone(tmp_path, dtype):
    """Two segments and a bit per row, cut into more parts than rows, and cut again."""
    random = np.random.default_rng(1)
    array = (random.normal(size=(5, 1100)) * (random.random((5, 1100)) < 0.5)).astype(dtype)
    array[0, :40] = 0
    specs = {c.name: TensorSpec(array.shape, dtype, c) for c in (*CODECS[dtype], *INTEGER_CODECS)}
    with CheckpointWriter(tmp_path / "eight") as writer:
        writer.write_record("layers.0", plan_layout(specs, parts=8), dict.fromkeys(specs, array))
        writer.finish(made={})
    expected = decoded(tmp_path / "eight")
    for source, shards in (("eight", 3), ("3", 1), ("1", 5)):
        endor.reshard(tmp_path / source, tmp_path / str(shards), shards=shards)
        assert verify(tmp_path / str(shards)).problems == ()
        for name, found in decoded(tmp_path / str(shards)).items():
            np.testing.assert_array_equal(found, expected[name])


def decoded(path: Path) -> dict[str, np.ndarray]:
    """The bits of every tensor of the first layer."""
    with endor.open(path) as opened:
        record = opened.read_record(opened.manifest.record("layers.0"))
        return {name: bits_of(decode(record[name])) for name in record}


def interrupt_at(checkpoint: Path, destination: Path, record: str, shards: int) -> dict[str, bytes]:
    """A call that is interrupted before a record; what it left."""

    def progress(what: str, done: int, total: int) -> None:
        if what == f"cutting {record}":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endor.reshard(checkpoint, destination, shards=shards, progress=progress)
    return contents(destination)


def test_it_goes_on_and_the_bytes_are_the_same(checkpoint, tmp_path):
    endor.reshard(checkpoint, tmp_path / "whole", shards=3)
    left = interrupt_at(checkpoint, tmp_path / "dst", "layers.1", 3)
    assert "endor.json" not in left
    shutil.rmtree(tmp_path / "dst/parts/layers.0.1")  # and some of it is lost
    kept = {name: (tmp_path / "dst" / name).stat().st_ino for name in left if "embedding" in name}
    assert kept
    endor.reshard(checkpoint, tmp_path / "dst", shards=3)
    assert contents(tmp_path / "dst") == contents(tmp_path / "whole")
    assert {name: (tmp_path / "dst" / name).stat().st_ino for name in kept} == kept


def test_what_was_begun_otherwise_is_refused(checkpoint, tmp_path):
    left = interrupt_at(checkpoint, tmp_path / "dst", "layers.1", 2)
    with pytest.raises(ResumeError, match=r"destination .*dst: got shards 4, expected 2, as when it was"):
        endor.reshard(checkpoint, tmp_path / "dst", shards=4)
    endor.convert(tmp_path / "source", tmp_path / "other", dtype="bfloat16")
    with pytest.raises(ResumeError, match=r"destination .*dst: got source '\w{16}', expected '\w{16}'"):
        endor.reshard(tmp_path / "other", tmp_path / "dst", shards=2)
    with pytest.raises(ResumeError, match=r"destination .*dst: got by 'conversion', expected 'reshard'"):
        endor.convert(tmp_path / "source", tmp_path / "dst")
    with pytest.raises(DestinationExistsError, match="what an interrupted reshard left"):
        endor.reshard(checkpoint, tmp_path / "dst", shards=2, resume=False)
    assert contents(tmp_path / "dst") == left


def test_what_cannot_be_cut_is_refused_and_nothing_written(checkpoint, tmp_path):
    before = contents(tmp_path)
    with pytest.raises(NotFoundError, match=r"checkpoint .*source: got no endor\.json"):
        endor.reshard(tmp_path / "source", tmp_path / "dst", shards=2)
    with pytest.raises(InvalidInputError, match=r"destination .*: got the source itself"):
        endor.reshard(checkpoint, checkpoint, shards=2)
    with pytest.raises(InvalidInputError, match=r"destination .*: got a place inside the source"):
        endor.reshard(checkpoint, checkpoint / "dst", shards=2)
    with pytest.raises(DestinationExistsError, match=r"destination .*source: got a directory that is not"):
        endor.reshard(checkpoint, tmp_path / "source", shards=2)
    with pytest.raises(OptionError, match=r"shards: got 0, expected 1 or more"):
        endor.reshard(checkpoint, tmp_path / "dst", shards=0)
    with pytest.raises(OptionError, match=r"shards: got 65, expected at most 64"):
        endor.reshard(checkpoint, tmp_path / "dst", shards=65)
    assert contents(tmp_path) == before


def test_a_damaged_checkpoint_is_not_cut(checkpoint, tmp_path):
    path = checkpoint / "parts/layers.1.0/c/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r"layers\.1\.0"):
        endor.reshard(checkpoint, tmp_path / "dst", shards=2)
    assert not (tmp_path / "dst/endor.json").exists()


def test_room_is_asked_for_beforehand(checkpoint, tmp_path, monkeypatch):
    asked = []

    def refuse(path: Path, need_bytes: int) -> None:
        asked.append(need_bytes)
        raise StorageError("disk", got="no room", expected="some", fix="make it")

    with monkeypatch.context() as patch:
        patch.setattr("endor_jax.conversion.reshard.check_room", refuse)
        with pytest.raises(StorageError, match="no room"):
            endor.reshard(checkpoint, tmp_path / "dst", shards=4)
    assert not (tmp_path / "dst").exists()
    endor.reshard(checkpoint, tmp_path / "dst", shards=4)
    files = [file for file in (tmp_path / "dst").rglob("*") if file.is_file()]
    pages = sum(round_up(file.stat().st_size, PAGE_BYTES) for file in files)
    assert 0.9 * pages <= asked[0] <= 1.2 * pages
