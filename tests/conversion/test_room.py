"""Disks that are full, or turn full, or may not be written: one error, nothing lost, the source untouched."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import endor_jax as endor
from endor_jax.conversion.pipeline import survey_conversion
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import StorageError
from endor_jax.store import local_destination, manifest, part
from tests.cases import spread
from tests.conversion.interrupting import contents
from tests.tiny_models import LLAMA, write_tiny

MODEL = LLAMA | {"vocab_size": 1500, "num_hidden_layers": 3}
GO_ON = "run the same command again: it goes on where it stopped"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("room") / "source", MODEL, tokenizer=True)


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, bytes]:
    """What a conversion leaves that nothing refuses."""
    endor.convert(source, source.parent / "whole")
    return contents(source.parent / "whole")


@contextmanager
def mounted(where: Path, options: str, kind: str = "tmpfs") -> Iterator[Path]:
    """A file system of its own at `where`; the test is skipped where that may not be done."""
    where.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", kind, "-o", options, kind, where], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def fill(directory: Path) -> Path:
    """Takes what is free on a file system."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_disk_that_is_too_small_is_found_beforehand(source, tmp_path):
    with mounted(tmp_path / "disk", "size=200k") as disk:
        for attempt in (endor.convert, dry_run):
            with pytest.raises(
                StorageError,
                match=r"destination .*dst: got [\d,]+ bytes free on its file system, expected about [\d,]+ to"
                r" write; .*nothing was written",
            ):
                attempt(source, disk / "dst")
        assert list(disk.iterdir()) == []


def dry_run(source: Path, destination: Path) -> None:
    survey_conversion(source, destination, settings=ConvertSettings())


@pytest.mark.parametrize("moment", ["encoding embedding", "encoding layers.1", "encoding final", "done"])
def test_a_disk_that_turns_full_and_then_has_room_again(source, whole, tmp_path, moment):
    with mounted(tmp_path / "disk", "size=4m") as disk:

        def progress(what: str, done: int, total: int) -> None:
            if what == moment:
                fill(disk)

        with pytest.raises(StorageError, match=rf"got No space left.*expected to write .*{GO_ON}"):
            endor.convert(source, disk / "dst", progress=progress)
        assert not (disk / "dst/endor.json").exists()
        (disk / "filler").unlink()
        endor.convert(source, disk / "dst")
        assert contents(disk / "dst") == whole


def test_what_is_there_already_needs_no_more_room(source, whole, tmp_path):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        with pytest.raises(KeyboardInterrupt):
            endor.convert(source, disk / "dst", progress=interrupt_at("encoding final"))
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - 100_000)  # far less than the whole takes
        endor.convert(source, disk / "dst")
        assert contents(disk / "dst") == whole


def interrupt_at(wanted: str) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == wanted:
            raise KeyboardInterrupt

    return progress


def test_a_file_system_that_may_not_be_written(source, tmp_path):
    with (
        mounted(tmp_path / "disk", "size=4m,ro") as disk,
        pytest.raises(StorageError, match=r"destination .*dst: got Read-only file system, expected to write"),
    ):
        endor.convert(source, disk / "dst")


def test_a_source_that_may_only_be_read(source, whole, tmp_path):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.iterdir()}
    with mounted(source, "size=4m") as shadow:
        for path, (mtime, data) in before.items():
            path.write_bytes(data)
            os.utime(path, ns=(mtime, mtime))
        subprocess.run(["mount", "-o", "remount,ro", shadow], check=True)
        endor.convert(source, tmp_path / "dst")
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.iterdir()} == before
    assert contents(tmp_path / "dst") == whole


def test_room_is_asked_of_the_file_system_that_will_be_written(source, tmp_path, monkeypatch):
    asked: list[Path] = []
    real = os.statvfs

    def little(path: Path) -> os.statvfs_result:
        asked.append(path)
        values = list(real(path))
        values[4] = 3  # blocks that are free for us
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", little)
    with pytest.raises(StorageError, match="bytes free on its file system"):
        endor.convert(source, tmp_path / "not/there/yet")
    assert asked == [tmp_path]
    assert not (tmp_path / "not").exists()


def fail_from(call: int, number: int, real: Callable) -> Callable:
    """The function, until its n-th call; then the file system refuses."""
    calls = 0

    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    return wrapped


REFUSALS = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied",
}
CALLS = [
    (part, "write_shard", 3),
    (part, "write_shard", 1),
    (manifest.os, "fsync", 12),
    (manifest.os, "fsync", 2),
    (local_destination, "write_manifest", 1),
]


@pytest.mark.parametrize(("refusal", "refused"), spread(REFUSALS.items(), CALLS, every=3))
def test_whatever_refuses_nothing_is_lost(source, whole, tmp_path, monkeypatch, refusal, refused):
    (number, said), (where, name, call) = refusal, refused
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail_from(call, number, getattr(where, name)))
        with pytest.raises(StorageError, match=rf"got {said}, expected to write .*; make room.*{GO_ON}"):
            endor.convert(source, tmp_path / "dst")
    endor.convert(source, tmp_path / "dst")
    assert contents(tmp_path / "dst") == whole
