"""`verify` as a library: all problems with file, record and tensor; rules that no digest can see; notes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import IncompleteCheckpointError, NotFoundError, UnsupportedError
from endor_jax.format.encode import encode_record, with_escapes
from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.values import Codec
from endor_jax.store.digest import digest_bytes, digest_chunks, digest_json
from endor_jax.store.manifest import Manifest, Part, read_manifest, write_manifest
from endor_jax.store.part import METADATA_FILE, PAGE_BYTES, write_part
from endor_jax.store.verify import Problem, verify
from endor_jax.store.writer import CheckpointWriter
from tests.store.small_checkpoints import convert_small


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_small(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(whole, tmp_path / "x")
    return tmp_path / "x"


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """Two layers in two parts each, with escapes and a dense array."""
    random = np.random.default_rng(0)
    layout = plan_layout(
        {"w": TensorSpec((6, 1100), "bfloat16", Codec("packed", 2)), "b": TensorSpec((7,), "float32", None)},
        parts=2,
    )
    writer = CheckpointWriter(tmp_path / "trees")
    for i in range(2):
        array = (random.normal(size=(6, 1100)) * (random.random((6, 1100)) < 0.5)).astype("bfloat16")
        writer.write_record(f"layers.{i}", layout, {"w": array, "b": np.arange(7, dtype=np.float32)})
    writer.finish(made={})
    return tmp_path / "trees"


def problems(path: Path) -> list[Problem]:
    report = verify(path)
    assert report.ok == (not report.problems)
    return list(report.problems)


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_whole_checkpoints_are_whole(path: Path, trees: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = verify(path, lambda *moment: seen.append(moment))
    assert report.ok
    assert report.files == len([file for file in path.rglob("*") if file.is_file()])
    assert report.records == len(read_manifest(path).records)
    total = read_manifest(path).stored_bytes
    assert seen[0] == ("endor.json", 0, total)
    assert seen[-1] == ("done", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert problems(trees) == []


def test_saved_trees_of_every_kind_are_whole(tmp_path: Path) -> None:
    layers = [
        {"w": np.random.default_rng(i).normal(size=(80, 64)).astype("float16"), "n": 3} for i in range(3)
    ]
    endor.save(tmp_path / "x", [*layers, {}, {"e": np.zeros((0, 3), np.float32)}])
    assert problems(tmp_path / "x") == []


def test_all_problems_are_found(path: Path) -> None:
    flip(path / "parts/layers.0.0/c/0", 500)
    os.truncate(path / "parts/layers.1.0/c/0", 4096)
    (path / "tokenizer.json").unlink()
    flip(path / "config.json", 3)
    found = {problem.file: problem for problem in problems(path)}
    assert set(found) == {"parts/layers.0.0/c/0", "parts/layers.1.0/c/0", "tokenizer.json", "config.json"}
    assert found["parts/layers.0.0/c/0"].record == "layers.0"
    assert found["parts/layers.1.0/c/0"].fix.startswith("the file is truncated; copy")
    assert found["tokenizer.json"].got == "no such file"
    assert "the file is damaged" in found["config.json"].fix
    line = "file parts/layers.0.0/c/0, record layers.0: got digest "
    assert str(found["parts/layers.0.0/c/0"]).startswith(line)


def test_what_no_reader_of_ours_looks_at(path: Path) -> None:
    part = read_manifest(path).record("layers.0").parts[0]
    file = path / part.path / "c/0"
    flip(file, part.length_bytes)
    assert [p.got for p in problems(path)] == [f"byte 0x01 at {part.length_bytes:,}, behind the part"]
    flip(file, part.length_bytes)
    for back in (1, 4, 5, 12, 13, 20):  # crc32c, length, offset
        flip(file, file.stat().st_size - back)
        (problem,) = problems(path)
        assert (problem.file, problem.record) == (f"{part.path}/c/0", "layers.0")
        flip(file, file.stat().st_size - back)
    assert problems(path) == []


def test_exchanged_parts(path: Path) -> None:
    first, second = path / "parts/layers.0.0", path / "parts/layers.1.0"
    first.rename(path / "other")
    second.rename(first)
    (path / "other").rename(second)
    found = problems(path)
    assert {problem.record for problem in found} == {"layers.0", "layers.1"}
    assert any("files were exchanged" in problem.fix or "another part" in problem.fix for problem in found)


def test_damaged_manifest_is_the_only_problem(path: Path) -> None:
    (path / "endor.json").write_text((path / "endor.json").read_text().replace("\n ", "\n  ", 1))
    (problem,) = problems(path)
    assert (problem.file, problem.got) == ("endor.json", "other bytes than a writer gives these values")


def test_files_that_belong_to_nothing_are_noted(path: Path) -> None:
    (path / "parts/notes.txt").write_text("")
    (path / "README").write_text("")
    report = verify(path)
    assert report.ok
    assert report.notes == (
        "README belongs to no record and is not listed",
        "parts/notes.txt belongs to no record and is not listed",
    )


def test_what_is_no_finished_checkpoint(path: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such directory"):
        verify(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"got no endor.json"):
        verify(tmp_path / "empty")
    (path / "endor.json").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"parts, but no endor.json: it was not finished"):
        verify(path)


def test_newer_version(path: Path) -> None:
    value = json.loads((path / "endor.json").read_text()) | {"format_version": 2}
    del value["digest"]
    (path / "endor.json").write_text(json.dumps(value | {"digest": digest_json(value)}, indent=1))
    with pytest.raises(UnsupportedError, match=r"endor.json: got format version 2, expected version 1"):
        verify(path)


def test_unreadable_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.preadv

    def fail(handle, buffers, at):
        if "layers.1" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(5, "Input/output error")
        return read(handle, buffers, at)

    monkeypatch.setattr(os, "preadv", fail)
    (problem,) = problems(path)
    assert (problem.record, problem.got) == ("layers.1", "Input/output error")
    assert problem.fix == "see whether the disk is sound"


def rewrite(path: Path, manifest: Manifest, part: Part, words: np.ndarray) -> Manifest:
    """Another part under right digests: what a writer with a mistake would leave."""
    shutil.rmtree(path / part.path)
    data = words.view(np.uint8)
    write_part(path / part.path, data)
    name = f"{part.path}/{METADATA_FILE}"
    other = replace(
        part,
        length_bytes=data.shape[0],
        digests=digest_chunks(data, part.chunk_bytes),
        buffer_bytes=max(part.buffer_bytes, -(-data.shape[0] // PAGE_BYTES) * PAGE_BYTES),
    )
    records = tuple(
        replace(record, parts=tuple(other if p == part else p for p in record.parts))
        for record in manifest.records
    )
    files = manifest.files | {name: digest_bytes((path / name).read_bytes())}
    return replace(manifest, records=records, files=files)


def words_of(path: Path, part: Part) -> np.ndarray:
    return np.fromfile(path / part.path / "c/0", np.uint8, part.length_bytes).view(np.uint32)


def test_broken_invariants_name_the_tensor(trees: Path) -> None:
    manifest = read_manifest(trees)
    part = manifest.records[1].parts[1]
    layout = manifest.signatures[0].layout["w"]
    assert isinstance(layout, FieldLayout)
    words = words_of(trees, part)
    words[layout.offsets.start + 2] += np.uint32(10)
    write_manifest(trees, rewrite(trees, manifest, part, words))
    (problem,) = problems(trees)
    assert (problem.file, problem.record, problem.tensor) == ("parts/layers.1.1/c/0", "layers.1", "w")
    assert "as offset of row 1, segment 0" in problem.got
    assert problem.fix.startswith("whoever wrote this checkpoint made a mistake")


def test_dense_arrays_agree_in_all_parts(trees: Path) -> None:
    manifest = read_manifest(trees)
    part = manifest.records[0].parts[1]
    words = words_of(trees, part)
    words[manifest.signatures[0].layout["b"].data.start] += np.uint32(1)  # type: ignore[union-attr]
    write_manifest(trees, rewrite(trees, manifest, part, words))
    (problem,) = problems(trees)
    assert (problem.tensor, problem.got, problem.expected) == (
        "b",
        "another array than in part 0",
        "the same",
    )


@pytest.mark.parametrize("count", ["nonzero", "escapes", "stored_bytes"])
def test_counts_are_those_of_the_data(trees: Path, count: str) -> None:
    manifest = read_manifest(trees)
    first = manifest.records[0]
    stats = replace(first.stats["w"], **{count: getattr(first.stats["w"], count) - 1})
    wrong = replace(first, stats=first.stats | {"w": stats})
    write_manifest(trees, replace(manifest, records=(wrong, *manifest.records[1:])))
    (problem,) = problems(trees)
    assert (problem.file, problem.record, problem.tensor) == ("endor.json", "layers.0", "w")
    assert "counted in its parts" in problem.expected


def test_escape_capacity_is_the_longest_list(trees: Path) -> None:
    manifest = read_manifest(trees)
    layout = manifest.signatures[0].layout
    room = layout["w"].escape_capacity  # type: ignore[union-attr]
    assert room > 0
    for escapes, got in (
        (room + 1, f"at most {room + 1:,} escapes in signature 0"),
        (room - 1, f"{room:,} escapes"),
    ):
        signature = replace(manifest.signatures[0], layout=with_escapes(layout, {"w": escapes, "b": 0}))
        write_manifest(trees, replace(manifest, signatures=(signature,)))
        assert got in [problem.got for problem in problems(trees)]


def test_size_classes_are_as_few_as_they_can_be(tmp_path: Path) -> None:
    layout = plan_layout({"w": TensorSpec((8, 1100), "bfloat16", Codec("raw"))})
    writer = CheckpointWriter(tmp_path / "x")
    for name, rows in (("short", 1), ("long", 8)):
        array = np.zeros((8, 1100), "bfloat16")
        array[:rows] = 1
        assert encode_record(layout, {"w": array}).parts
        writer.write_record(name, layout, {"w": array})
    manifest = writer.finish(made={})
    assert problems(tmp_path / "x") == []
    short, long = manifest.records
    padded = replace(short.parts[0], buffer_bytes=long.parts[0].buffer_bytes)
    write_manifest(tmp_path / "x", replace(manifest, records=(replace(short, parts=(padded,)), long)))
    (problem,) = problems(tmp_path / "x")
    assert problem.got.startswith("buffers of [")
    assert problem.expected.startswith("the size classes [")
