"""Writing Hugging Face directories: what safetensors reads back, shards, refusals, nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import (
    DestinationBusyError,
    DestinationExistsError,
    EndorError,
    InvalidInputError,
    StorageError,
    UnsupportedError,
)
from endor_jax.sources import TensorInfo, open_source, write_safetensors
from endor_jax.sources.safetensors_header import parse_header

ARRAYS = {
    "small": np.arange(3, dtype=np.uint8),
    "half": np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16),
    "scalar": np.float32(2.5).reshape(()),
    "wide": np.arange(6, dtype=np.float64).reshape(2, 3),
    "empty": np.zeros((0, 4), np.float16),
}
INFOS = {name: TensorInfo(array.shape, array.dtype.name) for name, array in ARRAYS.items()}
FILES = {"config.json": b'{"model_type": "llama"}'}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("shard_bytes", [10**9, 60, 1])
def test_round_trip_in_any_order(tmp_path: Path, shard_bytes: int) -> None:
    target = tmp_path / "new" / "directory"
    backwards = reversed(ARRAYS.items())
    written = write_safetensors(target, backwards, infos=INFOS, files=FILES, shard_bytes=shard_bytes)
    assert sorted(written) == sorted(target.iterdir())
    assert (target / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    with open_source(target) as source:
        assert source.tensors.keys() == ARRAYS.keys()
        assert all(same(source.read(name), array) for name, array in ARRAYS.items())
        assert source.files() == FILES


def test_safetensors_reads_it(tmp_path: Path) -> None:
    write_safetensors(tmp_path, ARRAYS.items(), infos=INFOS)
    loaded = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert all(same(loaded[name], array) for name, array in ARRAYS.items())


def test_a_shard_takes_exactly_its_limit(tmp_path: Path) -> None:
    infos = {name: TensorInfo((10,), "float32") for name in "abcd"}
    tensors = [(name, np.zeros(10, np.float32)) for name in infos]
    write_safetensors(tmp_path, tensors, infos=infos, shard_bytes=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert index == {
        "metadata": {"total_size": 160},
        "weight_map": dict(zip("abcd", [shards[0]] * 2 + [shards[1]] * 2, strict=True)),
    }


def test_every_tensor_is_aligned_to_its_elements(tmp_path: Path) -> None:
    write_safetensors(tmp_path, ARRAYS.items(), infos=INFOS)
    for info, location in parse_header(tmp_path / "model.safetensors").values():
        assert location.offset % dtype_from_name(info.dtype).itemsize == 0


def test_views_and_byte_orders(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {"transposed": array.T, "big": array.astype(">f4")}
    infos = {name: TensorInfo(value.shape, "float32") for name, value in tensors.items()}
    write_safetensors(tmp_path, tensors.items(), infos=infos)
    loaded = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert np.array_equal(loaded["transposed"], array.T)
    assert np.array_equal(loaded["big"], array)


DISAGREEMENTS = {
    "missing": ([("a", np.zeros(2, np.float32))], "'b'.*no data"),
    "twice": ([("a", np.zeros(2, np.float32))] * 2, "'a'.*twice"),
    "unannounced": ([("c", np.zeros(2, np.float32))], "'c'.*unannounced"),
    "shape": ([("a", np.zeros(3, np.float32))], r"'a'.*float32 \(3,\)"),
    "dtype": ([("a", np.zeros(2, np.float16))], r"'a'.*float16"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_tensors_other_than_announced(tmp_path: Path, case: str) -> None:
    tensors, message = DISAGREEMENTS[case]
    infos = {name: TensorInfo((2,), "float32") for name in ("a", "b")}
    with pytest.raises(InvalidInputError, match=message):
        write_safetensors(tmp_path, tensors, infos=infos, files=FILES)
    assert list(tmp_path.iterdir()) == []


def test_failure_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", np.zeros(2, np.float32)
        raise KeyboardInterrupt

    infos = {name: TensorInfo((2,), "float32") for name in ("a", "b")}
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path, tensors(), infos=infos, shard_bytes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors", "config.json"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(DestinationExistsError, match=name):
        write_safetensors(tmp_path, ARRAYS.items(), infos=INFOS, files=FILES)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_dtype_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'w'.*int4"):
        write_safetensors(tmp_path, [], infos={"w": TensorInfo((2,), "int4")})


def test_failed_renaming_takes_back_what_was_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every file of a sharded export: whichever cannot be renamed, none is left, nor a new directory."""
    rename = Path.rename

    def fails_at(name: str) -> None:
        def renamed(self: Path, target: Path) -> Path:
            if target.name == name:
                raise OSError(errno.EIO, "Input/output error")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", renamed)

    (tmp_path / "kept.txt").write_text("kept")
    whole = [
        path.name
        for path in write_safetensors(tmp_path / "x", ARRAYS.items(), infos=INFOS, files=FILES, shard_bytes=1)
    ]
    shutil.rmtree(tmp_path / "x")
    for name in whole:
        fails_at(name)
        for target in (tmp_path, tmp_path / "new" / "deeper"):
            with pytest.raises(StorageError, match=r"Input/output error.*nothing is left"):
                write_safetensors(target, ARRAYS.items(), infos=INFOS, files=FILES, shard_bytes=1)
            assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_full_disk_is_found_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        raise AssertionError("work began")
        yield

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 100))
    with pytest.raises(StorageError, match=r"100 bytes free, expected [0-9,]{3,}; free some space"):
        write_safetensors(tmp_path / "new", tensors(), infos=INFOS)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: object, /) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("endor_jax.sources.partial_files.FileIO", Full)
    with pytest.raises(StorageError, match=r"No space left on device.*free some space"):
        write_safetensors(tmp_path / "new", ARRAYS.items(), infos=INFOS)
    assert list(tmp_path.iterdir()) == []


def test_room_that_is_just_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_safetensors(tmp_path / "first", ARRAYS.items(), infos=INFOS, files=FILES, shard_bytes=60)
    needed = sum(path.stat().st_size for path in paths)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, needed - 1))
    with pytest.raises(StorageError, match=f"expected {needed:,};"):
        write_safetensors(tmp_path / "b", ARRAYS.items(), infos=INFOS, files=FILES, shard_bytes=60)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, needed))
    write_safetensors(tmp_path / "b", ARRAYS.items(), infos=INFOS, files=FILES, shard_bytes=60)


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.partial").write_bytes(b"left" * 1000)
    write_safetensors(tmp_path, ARRAYS.items(), infos=INFOS, files=FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert safetensors.numpy.load_file(tmp_path / "model.safetensors").keys() == ARRAYS.keys()


def test_two_writers(tmp_path: Path) -> None:
    with (tmp_path / ".model.safetensors.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DestinationBusyError, match=r"model\.safetensors.*another process"):
            write_safetensors(tmp_path, ARRAYS.items(), infos=INFOS)
        assert [path.name for path in tmp_path.iterdir()] == [".model.safetensors.partial"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        (tmp_path / "config.json").write_text("precious")
        yield from ARRAYS.items()

    with pytest.raises(DestinationExistsError, match=r"config\.json.*came while"):
        write_safetensors(tmp_path, tensors(), infos=INFOS, files=FILES)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_link_or_pipe_under_the_temporary_name(tmp_path: Path) -> None:
    for make in (lambda path: path.symlink_to("/dev/null"), os.mkfifo):
        trap = tmp_path / ".model.safetensors.partial"
        make(trap)
        with pytest.raises(EndorError):
            write_safetensors(tmp_path, ARRAYS.items(), infos=INFOS)
        trap.unlink(missing_ok=True)
    assert list(tmp_path.iterdir()) == []
