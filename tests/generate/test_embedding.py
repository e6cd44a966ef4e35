"""Rows of the embedding on disk are those of the decoded matrix, and little of it is ever in memory."""

from __future__ import annotations

import mmap
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.arrays import dtype_from_name
from endor_jax.errors import CorruptCheckpointError, InvalidInputError
from endor_jax.format.layout import TensorSpec, plan_layout
from endor_jax.format.quantise import dequantise, quantise
from endor_jax.format.values import parse_codec
from endor_jax.generate.embedding import PAGE, ROWS_AT_ONCE, Embedding, held_bytes
from endor_jax.store.writer import CheckpointWriter
from endor_jax.streaming.share import Share
from tests.tiny_models import write_tiny


@pytest.fixture
def embedding(checkpoint):
    with endor.open(checkpoint) as opened:
        record = opened.manifest.record("embedding")
        assert len(record.parts) > 1 or "untied" not in str(checkpoint)
        matrix = opened.read_tensor("embedding", "weight")
        on_disk = Embedding(opened, record)
        yield on_disk, matrix
        on_disk.close()


def check(on_disk: Embedding, matrix: np.ndarray, ids: list[int]) -> None:
    got = on_disk.rows(ids)
    assert got.dtype == matrix.dtype
    np.testing.assert_array_equal(got.view(np.uint8), np.ascontiguousarray(matrix[ids]).view(np.uint8))


def test_rows_are_those_of_the_matrix(embedding):
    on_disk, matrix = embedding
    vocabulary = on_disk.vocabulary
    random = np.random.default_rng(0)
    for ids in (
        [0],
        [vocabulary - 1],
        list(range(vocabulary)),
        random.integers(0, vocabulary, 50).tolist(),
        [7, 7, 0],
    ):
        check(on_disk, matrix, ids)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("codec", ["raw", "dense-raw", "packed:2", "dense-packed:3", "dense-packed:1"])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_codec_with_many_escapes(tmp_path, dtype, codec, parts):
    random = np.random.default_rng(0)
    matrix = random.normal(size=(101, 2500)).astype(dtype_from_name(dtype))
    matrix[random.random(matrix.shape) < 0.3] = 0
    matrix[5, ::3] = np.nan
    matrix[99, 7] = -0.0
    layout = plan_layout({"weight": TensorSpec(matrix.shape, dtype, parse_codec(codec))}, parts=parts)
    writer = CheckpointWriter(tmp_path / "x")
    writer.write_record("embedding", layout, {"weight": matrix})
    writer.finish(made={})
    with endor.open(tmp_path / "x") as opened:
        on_disk = Embedding(opened, opened.manifest.record("embedding"))
        for ids in ([0], [100, 5], [33, 34, 35], list(range(101)), random.integers(0, 101, 300).tolist()):
            check(on_disk, matrix, ids)
        on_disk.close()


@pytest.mark.parametrize("codec", ["int8", "dense-int4"])
@pytest.mark.parametrize("parts", [1, 3])
def test_integers_and_their_scales(tmp_path, codec, parts):
    array = np.random.default_rng(0).normal(size=(101, 2500)).astype(dtype_from_name("bfloat16"))
    array[:, 100:900] = 0
    quantised = quantise(array, 8 if codec == "int8" else 4)
    layout = plan_layout({"weight": TensorSpec(array.shape, "bfloat16", parse_codec(codec))}, parts=parts)
    writer = CheckpointWriter(tmp_path / "x")
    writer.write_record("embedding", layout, {"weight": quantised})
    writer.finish(made={})
    with endor.open(tmp_path / "x") as opened:
        on_disk = Embedding(opened, opened.manifest.record("embedding"))
        for ids in ([0], [100, 5], [33, 34, 35], list(range(101))):
            check(on_disk, dequantise(quantised), ids)
        on_disk.close()


def test_little_of_it_is_in_memory(tmp_path):
    """16,000 rows of 4 KiB: what is resident stays within what the plan is told, whatever was read."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(16_000, 2048)).astype(dtype_from_name("bfloat16"))
    layout = plan_layout(
        {"weight": TensorSpec(matrix.shape, "bfloat16", parse_codec("dense-packed:3"))}, parts=2
    )
    writer = CheckpointWriter(tmp_path / "x")
    writer.write_record("embedding", layout, {"weight": matrix})
    writer.finish(made={})
    with endor.open(tmp_path / "x") as opened:
        record = opened.manifest.record("embedding")
        bound = held_bytes(opened.manifest.layout(record)["weight"])
        assert bound < record.stored_bytes / 6
        on_disk = Embedding(opened, record)
        check(on_disk, matrix, random.integers(0, 16_000, 500).tolist())
        for _ in range(20):
            on_disk.rows(random.integers(0, 16_000, ROWS_AT_ONCE).tolist())
        # Pages that were given back read as zeros; the others are what is in memory.
        held = sum(
            np.count_nonzero(part._bytes.reshape(-1, PAGE).any(axis=1)) for part in on_disk._parts.values()
        )
        assert 0 < held * PAGE < bound
        on_disk.close()


@pytest.mark.parametrize("offset", [-1, 0])
def test_ids_outside_the_vocabulary_are_refused(embedding, offset):
    on_disk, _ = embedding
    bad = -1 if offset else on_disk.vocabulary
    with pytest.raises(InvalidInputError, match=rf"id {bad}, expected 0 to {on_disk.vocabulary - 1}"):
        on_disk.rows([0, bad])


def test_several_threads_at_once(embedding):
    on_disk, matrix = embedding
    wrong = []

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(30):
            ids = random.integers(0, on_disk.vocabulary, 20).tolist()
            if on_disk.rows(ids).tobytes() != np.ascontiguousarray(matrix[ids]).tobytes():
                wrong.append(ids)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_damaged_embedding_is_found_before_its_rows_are_used(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "x")
    file = tmp_path / "x" / "parts" / "embedding.0" / "c" / "0"
    data = bytearray(file.read_bytes())
    data[3000] ^= 1
    file.write_bytes(data)
    with (
        endor.open(tmp_path / "x") as opened,
        pytest.raises(CorruptCheckpointError, match=r"embedding\.0.*digest"),
    ):
        Embedding(opened, opened.manifest.record("embedding"))


def test_a_file_that_is_cut_off_while_it_is_open_is_an_error_and_no_crash(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "x")
    with endor.open(tmp_path / "x") as opened:
        on_disk = Embedding(opened, opened.manifest.record("embedding"))
        file = tmp_path / "x" / "parts" / "embedding.0" / "c" / "0"
        with file.open("r+b") as handle:
            handle.truncate(mmap.PAGESIZE)
        with pytest.raises(CorruptCheckpointError, match=r"embedding\.0"):
            on_disk.rows(list(range(on_disk.vocabulary)))
        on_disk.close()


def test_processes_read_their_own_parts_and_have_zeros_for_the_others(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source")
    endor.convert(source, tmp_path / "8.endor", shards=8)
    ids = np.arange(0, 320, 7).tolist()
    with endor.open(tmp_path / "8.endor") as opened:
        record = opened.manifest.record("embedding")
        with_all = Embedding(opened, record)
        whole, parts = with_all.rows(ids), []
        with_all.close()
        for places in ((0, 1), (2, 3)):
            shared = Embedding(opened, record, share=Share(4, places))
            parts.append(shared.rows(ids))
            shared.close()
    assert all(np.any(part) for part in parts)
    np.testing.assert_array_equal(parts[0] + parts[1], whole)
    assert not np.any((parts[0] != 0) & (parts[1] != 0))
