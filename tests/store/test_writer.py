"""The writer by itself: locks, leftovers, and what a hostile journal cannot do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import DestinationBusyError, DestinationExistsError, ResumeError, StorageError
from endor_jax.format.layout import TensorSpec, plan_layout
from endor_jax.format.quantise import Quantised, dequantise
from endor_jax.format.values import Codec, parse_codec
from endor_jax.store import part
from endor_jax.store.journal import Journal
from endor_jax.store.verify import verify
from endor_jax.store.writer import CheckpointWriter

LAYOUT = plan_layout({"w": TensorSpec((64, 64), "float32", Codec("raw"))}, parts=2)
ARRAYS = {"w": np.arange(4096, dtype=np.float32).reshape(64, 64)}
PART = {
    "path": "parts/layers.0.0",
    "length_bytes": 4,
    "buffer_bytes": 0,
    "chunk_bytes": 4096,
    "digests": ["0"],
}
REST = {"metadata": "0", "rest": "0", "stats": {}, "escapes": {}, "note": {}}
JOB = {"by": "conversion", "files": {"notes.txt": "0"}, "seed": 1}


def begin(path: Path, *, records: int = 1, **options: Any) -> None:
    """A writer that goes away after some records."""
    with CheckpointWriter(path, job=JOB, **options) as writer:
        writer.write_file("notes.txt", b"n")
        for index in range(records):
            writer.write_record(f"layers.{index}", LAYOUT, ARRAYS, note={"index": index})


def names(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_parts_are_kept_with_what_was_noted(tmp_path: Path) -> None:
    begin(tmp_path / "x")
    with CheckpointWriter(tmp_path / "x", job=JOB, resume=True) as writer:
        assert writer.finished_parts == 2
        assert writer.missing("layers.0", LAYOUT) == ()
        assert writer.notes("layers.0", LAYOUT) == [{"index": 0}] * 2
        assert writer.missing("layers.1", LAYOUT) == (0, 1)
        (tmp_path / "x/parts/layers.0.1/c/0").write_bytes(b"?")
    with CheckpointWriter(tmp_path / "x", job=JOB, resume=True) as writer:
        assert writer.missing("layers.0", LAYOUT) == (1,)
        assert not (tmp_path / "x/parts/layers.0.1").exists()
        writer.write_record("layers.0", LAYOUT, ARRAYS)
        writer.finish(made={})
    with endor.open(tmp_path / "x") as checkpoint:
        assert np.array_equal(checkpoint.read_tensor("layers.0", "w"), ARRAYS["w"])
    assert "endor.journal" not in names(tmp_path / "x")


@pytest.mark.parametrize("codec", ["int8", "dense-int4"])
def test_integers_that_were_decided_elsewhere_are_stored_as_they_are(tmp_path: Path, codec: str) -> None:
    """And gone on with, part by part, to the same bytes."""
    random = np.random.default_rng(0)
    values = random.integers(-7, 7, (5, 300), np.int8, endpoint=True)
    scales = random.random((5, 3)).astype(np.float16) + np.float16(0.01)
    quantised = Quantised(values, scales, (5, 300), "bfloat16")
    layout = plan_layout({"w": TensorSpec((5, 300), "bfloat16", parse_codec(codec))}, parts=2)
    for name in ("whole", "resumed"):
        with CheckpointWriter(tmp_path / name, job=JOB) as writer:
            writer.write_record("layers.0", layout, {"w": quantised})
            if name == "whole":
                writer.finish(made={})
    (tmp_path / "resumed/parts/layers.0.1/c/0").write_bytes(b"?")
    with CheckpointWriter(tmp_path / "resumed", job=JOB, resume=True) as writer:
        assert writer.missing("layers.0", layout) == (1,)
        writer.write_record("layers.0", layout, {"w": quantised})
        writer.finish(made={})
    for name in ("whole", "resumed"):
        assert verify(tmp_path / name).ok
        with endor.open(tmp_path / name) as checkpoint:
            held = checkpoint.read_tensor("layers.0", "w")
            assert held.tobytes() == dequantise(quantised).tobytes()
    assert [(tmp_path / "whole" / file).read_bytes() for file in sorted(names(tmp_path / "whole"))] == [
        (tmp_path / "resumed" / file).read_bytes() for file in sorted(names(tmp_path / "resumed"))
    ]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "x", job=JOB, resume=True) as writer:
        writer.write_record("layers.0", LAYOUT, ARRAYS)
        for resume in (True, False):
            with pytest.raises(DestinationBusyError, match=r"destination .*x: got another process writing"):
                CheckpointWriter(tmp_path / "x", job=JOB, resume=resume)
        with pytest.raises(DestinationBusyError, match="expected one writer; wait until it is done"):
            endor.save(tmp_path / "x", [ARRAYS])
    CheckpointWriter(tmp_path / "x", job=JOB, resume=True).close()


def test_a_journal_that_is_removed_while_we_wait_for_it_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened just before its writer finishes and removes it: the lock would be on a file that is nowhere."""
    first = Journal(tmp_path)
    first.start({"by": "the first"})
    real, opened = os.open, []

    def late(path: Any, *arguments: Any) -> int:
        handle = real(path, *arguments)
        if Path(path).name == "endor.journal":
            opened.append(path)
            if len(opened) == 1:
                monkeypatch.setattr(os, "open", real)
                first.remove()
        return handle

    monkeypatch.setattr(os, "open", late)
    second = Journal(tmp_path)
    assert second.header is None
    assert second.empty
    with pytest.raises(DestinationBusyError):
        Journal(tmp_path)
    second.remove()
    assert names(tmp_path) == set()


def test_what_save_left_is_not_gone_on_with(tmp_path: Path) -> None:
    def layers():
        yield ARRAYS
        raise RuntimeError("the program ends")

    with pytest.raises(RuntimeError, match="the program ends"):
        endor.save(tmp_path / "x", layers())
    left = names(tmp_path / "x")
    assert "endor.journal" in left
    with pytest.raises(DestinationExistsError, match=r"got what an interrupted save left, .*remove it first"):
        endor.save(tmp_path / "x", [ARRAYS])
    with pytest.raises(ResumeError, match="got by 'conversion', expected 'save'"):
        CheckpointWriter(tmp_path / "x", job=JOB, resume=True)
    assert names(tmp_path / "x") == left


def test_nothing_is_left_of_a_beginning(tmp_path: Path) -> None:
    begin(tmp_path / "x", records=0)
    assert not (tmp_path / "x").exists()


def test_another_job_may_take_the_place_of_one_that_finished_nothing(tmp_path: Path) -> None:
    journal = Journal(_made(tmp_path / "x"))
    journal.start({"journal": 1} | JOB)
    journal.close()
    (tmp_path / "x/notes.txt").write_text("old")
    (tmp_path / "x/parts/layers.0.0").mkdir(parents=True)
    with CheckpointWriter(tmp_path / "x", job={"by": "other", "files": {}}, resume=True):
        assert names(tmp_path / "x") == {"endor.journal"}


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    "files",
    [{"../victim": "0"}, {"/etc/victim": "0"}, ["victim"], "victim", 7, {"": "0"}, {"..": "0"}],
    ids=str,
)
def test_a_hostile_journal_makes_us_touch_nothing_elsewhere(tmp_path: Path, files: Any) -> None:
    (tmp_path / "victim").write_text("mine")
    journal = Journal(_made(tmp_path / "x"))
    journal.start({"journal": 1, "by": "conversion", "files": files})
    journal.close()
    CheckpointWriter(tmp_path / "x", job=JOB, resume=True).close()
    assert (tmp_path / "victim").read_text() == "mine"


def test_what_a_line_speaks_of_is_durable_before_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every directory in which something was made is synced between that and the journal's line about it."""
    synced: list[str] = []
    sync = os.fsync

    def record(handle: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    with CheckpointWriter(tmp_path / "new/x", job=JOB) as writer:
        assert synced == ["new", ".", "new/x/endor.journal", "new/x", "new/x"]
        for name in ("layers.0", "layers.1"):
            del synced[:]
            writer.write_record(name, LAYOUT, ARRAYS)
            by_part = [
                [f"{name}.{part}/c/0.tmp", f"{name}.{part}/c", f"{name}.{part}", "."] for part in (0, 1)
            ]
            journal = "../endor.journal"
            expected = [*by_part[0], journal, *by_part[1], journal]
            assert [os.path.relpath(path, "new/x/parts") for path in synced] == expected
        del synced[:]
        writer.finish(made={})
    assert synced == ["new/x/endor.json.tmp", "new/x", "new/x", "new/x"]


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_parts_that_lie_elsewhere_are_refused(tmp_path: Path, kind: str, resume: bool) -> None:
    (_made(tmp_path / "theirs/project.1") / "thesis.txt").write_text("mine")
    journal = Journal(_made(tmp_path / "x"))
    journal.start({"journal": 1} | JOB)
    journal.close()
    if kind == "file":
        (tmp_path / "x/parts").write_text("mine")
    else:
        (tmp_path / "x/parts").symlink_to(tmp_path / ("theirs" if kind == "link" else "nowhere"))
    before = names(tmp_path)
    with pytest.raises(DestinationExistsError, match=r"got 'parts' that is a link or a file .*remove it"):
        CheckpointWriter(tmp_path / "x", job=JOB, resume=resume)
    assert names(tmp_path) == before


def test_links_among_the_parts_are_unlinked_and_never_followed(tmp_path: Path) -> None:
    theirs = _made(tmp_path / "theirs")
    (theirs / "thesis.txt").write_text("mine")
    begin(tmp_path / "x")
    parts = tmp_path / "x/parts"
    (parts / "layers.0.0").rename(tmp_path / "moved")  # sound, but not in its place
    (parts / "layers.0.0").symlink_to(tmp_path / "moved")
    (parts / "layers.0.1/c").rename(tmp_path / "moved-c")
    (parts / "layers.0.1/c").symlink_to(tmp_path / "moved-c")
    (parts / "layers.1.0").symlink_to(theirs)
    (_made(parts / "layers.1.1") / "c").symlink_to(theirs)
    with CheckpointWriter(tmp_path / "x", job=JOB, resume=True) as writer:
        assert writer.missing("layers.0", LAYOUT) == (0, 1)
        assert list(parts.iterdir()) == []
    assert names(tmp_path) >= {"theirs/thesis.txt", "moved/c/0", "moved/zarr.json", "moved-c/0"}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"part": 3},
        {"part": {"path": "p"}},
        {"part": {"digests": 1}},
        REST | {"part": PART | {"path": ["p"]}},
        REST | {"part": PART | {"length_bytes": "4"}},
        REST | {"part": PART | {"chunk_bytes": None}},
    ],
    ids=str,
)
def test_lines_that_are_no_parts(tmp_path: Path, entry: dict[str, Any]) -> None:
    journal = Journal(_made(tmp_path / "x"))
    journal.start({"journal": 1} | JOB)
    journal.add(entry)
    journal.close()
    with pytest.raises(ResumeError, match=r"(?s)journal in .*x: got a line that cannot be .*remove the dir"):
        CheckpointWriter(tmp_path / "x", job=JOB, resume=True)


@pytest.mark.parametrize("content", [b"", b"0123", b"0123456789abcdef ", b"0123456789abcdef {}"])
def test_a_journal_killed_in_its_first_line_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (_made(tmp_path / "x") / "endor.journal").write_bytes(content)
    begin(tmp_path / "x", resume=True)
    assert "parts/layers.0.0/c/0" in names(tmp_path / "x")


@pytest.mark.parametrize(
    "content",
    [b"somebody's text\n", b"\0\n", b"precious data, no newline", b"0123456789abcdef0", b"beef "],
)
def test_a_file_of_that_name_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (_made(tmp_path / "x") / "endor.journal").write_bytes(content)
    with pytest.raises(DestinationExistsError, match=r"journal .*got a file that is no journal, .*remove it"):
        begin(tmp_path / "x", resume=True)
    assert (tmp_path / "x/endor.journal").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"precious data, no newline", None], ids=str)
def test_a_journal_that_is_a_link_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "precious").write_bytes(content)
    (_made(tmp_path / "x") / "endor.journal").symlink_to(tmp_path / "precious")
    for resume in (True, False):
        with pytest.raises(
            DestinationExistsError, match=r"journal .*got a link or something else that is no f"
        ):
            begin(tmp_path / "x", resume=resume)
    assert (tmp_path / "x/endor.journal").is_symlink()
    assert names(tmp_path) == (set() if content is None else {"precious", "x/endor.journal"})
    assert content is None or (tmp_path / "precious").read_bytes() == content


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_journal_that_is_no_file_is_refused(tmp_path: Path, make: Any) -> None:
    make(_made(tmp_path / "x") / "endor.journal")
    with pytest.raises(
        DestinationExistsError, match=r"journal .*got something that is no file, expected what"
    ):
        begin(tmp_path / "x", resume=True)
    assert os.listdir(tmp_path / "x") == ["endor.journal"]


def test_a_refusal_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    (_made(tmp_path / "x") / "mine").write_text("mine")
    with pytest.raises(DestinationExistsError):
        begin(tmp_path / "x", resume=True)
    assert names(tmp_path / "x") == {"mine"}


def test_without_resume_the_cure_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part, "write_shard", full)
    with pytest.raises(StorageError, match=r"got No space left.*then remove the directory and begin again"):
        endor.save(tmp_path / "x", [ARRAYS])


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"destination .*file/x: got .*expected to write a directory"):
        CheckpointWriter(tmp_path / "file/x")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("endor_jax.store.journal._content", "to read what is there"),
        ("endor_jax.store.finished.digest_bytes", r"to read parts/layers\.0\.0 back"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, expected: str
) -> None:
    begin(tmp_path / "x")
    before = names(tmp_path)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    message = rf"destination .*x: got Permission denied, expected {expected}; .*goes on where it stopped"
    with monkeypatch.context() as patch:
        patch.setattr(where, refuse)
        with pytest.raises(StorageError, match=message):
            begin(tmp_path / "x", resume=True)
    assert names(tmp_path) == before
    begin(tmp_path / "x", resume=True)
