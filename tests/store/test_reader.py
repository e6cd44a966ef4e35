"""Reading a checkpoint back: damage of any kind raises the right error, with the file named."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import CorruptCheckpointError, IncompleteCheckpointError
from endor_jax.store.reader import Checkpoint
from endor_jax.store.writer import CheckpointWriter

LAYERS = [{"w": np.random.default_rng(i).normal(size=(64, 96)).astype(np.float32)} for i in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    endor.save(tmp_path / "x", LAYERS)
    return tmp_path / "x"


def read(path: Path, layer: int = 0) -> np.ndarray:
    with endor.open(path) as checkpoint:
        return checkpoint.read_tensor(f"layers.{layer}", "w")


def test_layers_come_back(path: Path) -> None:
    for i, layer in enumerate(LAYERS):
        assert read(path, i).tobytes() == layer["w"].tobytes()


def test_every_flipped_byte_is_seen(path: Path) -> None:
    file = path / "parts/layers.0.0/c/0"
    data = file.read_bytes()
    with endor.open(path) as checkpoint:
        length = checkpoint.manifest.records[0].parts[0].length_bytes
    for position in [*range(0, length, 997), length - 1]:
        damaged = bytearray(data)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(
            CorruptCheckpointError, match=r"part .*layers.0.0: got digest \w+ for bytes 0 and"
        ):
            read(path)


def exchange(first: Path, second: Path) -> None:
    first.rename(first.parent / "other")
    second.rename(first)
    (first.parent / "other").rename(second)


def test_exchanged_parts(path: Path) -> None:
    exchange(path / "parts/layers.0.0", path / "parts/layers.1.0")
    message = (
        r"layers.0.0.*: got the bytes of parts/layers.1.0.*, expected its own; files were exchanged; put"
    )
    with pytest.raises(CorruptCheckpointError, match=message):
        read(path)


def test_exchanged_data_of_one_length(tmp_path: Path) -> None:
    endor.save(tmp_path / "x", [{"w": np.full(2000, i, np.float32)} for i in range(2)])
    exchange(tmp_path / "x/parts/layers.0.0/c/0", tmp_path / "x/parts/layers.1.0/c/0")
    message = r"part .*layers.0.0: got the bytes of parts/layers.1.0, expected its own; files were exchanged"
    with pytest.raises(CorruptCheckpointError, match=message):
        read(tmp_path / "x")


def test_exchanged_data_of_other_lengths(tmp_path: Path) -> None:
    endor.save(tmp_path / "x", [{"w": np.ones(9000 * i, np.float32)} for i in (1, 2)])
    exchange(tmp_path / "x/parts/layers.0.0/c/0", tmp_path / "x/parts/layers.1.0/c/0")
    with pytest.raises(CorruptCheckpointError, match=r"layers.0.0: got .* too long, or that of another part"):
        read(tmp_path / "x")


def test_links_that_lead_outside(path: Path) -> None:
    with endor.open(path) as checkpoint:
        (path / "parts/layers.0.0").rename(path.parent / "outside")
        (path / "parts/layers.0.0").symlink_to(path.parent / "outside")
        with pytest.raises(
            CorruptCheckpointError, match=r"got a link to .*outside/zarr.json, expected a file in"
        ):
            checkpoint.read_tensor("layers.0", "w")
    with pytest.raises(CorruptCheckpointError, match=r"got a link to .*outside/c/0, expected a file inside"):
        endor.open(path)


def test_checkpoint_may_itself_be_a_link(path: Path) -> None:
    (path.parent / "link").symlink_to(path)
    assert read(path.parent / "link").tobytes() == LAYERS[0]["w"].tobytes()


def test_missing_part(path: Path) -> None:
    (path / "parts/layers.1.0/zarr.json").unlink()
    assert read(path, 0).shape == (64, 96)
    with pytest.raises(IncompleteCheckpointError, match=r"file .*layers.1.0/zarr.json: got no such file"):
        read(path, 1)
    shutil.rmtree(path / "parts/layers.1.0")
    with pytest.raises(IncompleteCheckpointError, match=r"part .*layers.1.0: got no file c/0"):
        read(path, 0)


def test_damage_after_a_good_read_is_a_missing_file(path: Path) -> None:
    with endor.open(path) as checkpoint:
        record = checkpoint.manifest.records[0]
        checkpoint.read_record(record)
        (path / "parts/layers.0.0/c/0").unlink()
        with pytest.raises(IncompleteCheckpointError, match="no file c/0"):
            checkpoint.read_record(record)


def test_unknown_names(path: Path) -> None:
    with endor.open(path) as checkpoint:
        with pytest.raises(KeyError, match=r"no record 'layers.3'; there are layers.0, layers.1, layers.2"):
            checkpoint.read_tensor("layers.3", "w")
        with pytest.raises(KeyError, match="no tensor 'v' in this record; it has w"):
            checkpoint.read_tensor("layers.0", "v")


def test_bytes_are_counted_in_many_threads(path: Path) -> None:
    checkpoint = Checkpoint(path)
    records = checkpoint.manifest.records

    def work() -> None:
        for record in records:
            checkpoint.read_record(record)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert checkpoint.bytes_read == 4 * checkpoint.manifest.stored_bytes
    checkpoint.close()
    checkpoint.close()


def test_buffer_may_be_longer_than_the_part(path: Path) -> None:
    with endor.open(path) as checkpoint:
        (part,) = checkpoint.manifest.records[0].parts
        into = np.full(part.buffer_bytes + 10, 0xAA, np.uint8)
        checkpoint.read_part(part, into=into)
    assert part.buffer_bytes % 4096 == 0
    assert np.all(into[part.length_bytes :] == 0xAA)


def test_files(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "x")
    writer.write_file("sub/notes.txt", b"hello")
    writer.finish(made={})
    with endor.open(tmp_path / "x") as checkpoint:
        assert checkpoint.read_file("sub/notes.txt") == b"hello"
        (tmp_path / "x/sub/notes.txt").write_bytes(b"hullo")
        with pytest.raises(
            CorruptCheckpointError, match=r"file .*notes.txt: got digest \w+, expected \w+; the file"
        ):
            checkpoint.read_file("sub/notes.txt")
        (tmp_path / "x/sub/notes.txt").unlink()
        with pytest.raises(
            IncompleteCheckpointError, match=r"file .*notes.txt: got no such file, expected this file"
        ):
            checkpoint.read_file("sub/notes.txt")


def test_every_file_but_the_data_has_a_digest(path: Path) -> None:
    with endor.open(path) as checkpoint:
        files = checkpoint.manifest.files
        for name in files:
            checkpoint.read_file(name)
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert found == set(files) | {"endor.json"} | {f"parts/layers.{i}.0/c/0" for i in range(3)}
