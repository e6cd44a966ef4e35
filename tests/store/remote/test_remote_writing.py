"""A checkpoint written to an object store is the local one, byte for byte, whatever happens on the way."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import (
    CorruptCheckpointError,
    DestinationBusyError,
    DestinationExistsError,
    NotFoundError,
    ResumeError,
    StorageError,
)
from endor_jax.store.remote import journal
from endor_jax.store.remote.destination import ObjectDestination
from endor_jax.store.remote.objects import Objects
from endor_jax.store.verify import verify
from endor_jax.store.writer import CheckpointWriter
from tests.store.remote.object_server import BUCKET, KEY_ID, SECRET, Proxy, Request, failure
from tests.store.remote.test_remote_reading import objects_at

SETTINGS: dict[str, Any] = {"dtype": "bfloat16", "prune": "magnitude", "sparsity": 0.5}


@pytest.fixture
def empty(request: pytest.FixtureRequest) -> str:
    """A place where nothing is yet."""
    return f"s3://{BUCKET}/written/{request.node.name}".replace("[", "-").replace("]", "")


@pytest.fixture(scope="session")
def source(local: Path) -> Path:
    return local.parent / "source"


def contents(store: Objects) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.names()}


def files(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }


def ill(request: Request, found: bytes) -> bytes | None:
    """The first of each kind of request fails, one way or another."""
    if request.number:
        return found
    return [failure(500), None, found[: len(found) // 2], found][len(request.path) % 4]


@pytest.mark.parametrize("faults", [False, True], ids=["well", "ill"])
def test_a_conversion_is_the_local_one(
    source: Path, local: Path, empty: str, proxy: Proxy, expected: list[int], faults: bool
) -> None:
    if faults:
        proxy.answer = ill
    conversion = endor.convert(source, empty, **SETTINGS)
    assert str(conversion.path) == empty
    proxy.answer = lambda request, found: found
    assert contents(objects_at(empty)) == files(local)
    report = verify(empty)
    twin = verify(local)
    assert (report.problems, report.notes) == ((), ())
    assert (report.files, report.records, report.bytes_checked) == (
        twin.files,
        twin.records,
        twin.bytes_checked,
    )
    with endor.load(conversion.path) as model:
        assert model.complete("Once", max_tokens=len(expected)).token_ids == expected
    with pytest.raises(DestinationExistsError, match=r"destination s3://.*got a finished checkpoint"):
        endor.convert(source, empty, **SETTINGS)


def test_parameter_trees(empty: str, tmp_path: Path) -> None:
    trees = [{"w": np.full((64, 80), i, np.float32)} for i in range(2)]
    endor.save(empty, trees)
    endor.save(tmp_path / "here", trees)
    assert contents(objects_at(empty)) == files(tmp_path / "here")


def cut_off(source: Path, url: str, proxy: Proxy, *, after: int = 2) -> None:
    """Lets the store fail for good once so many parts are written."""
    written = 0

    def answer(request: Request, found: bytes) -> bytes:
        nonlocal written
        written += request.method == "PUT" and request.path.endswith("endor.journal")
        return failure(503, "SlowDown") if written > 1 + after else found

    proxy.answer = answer
    with pytest.raises(StorageError, match=r"destination s3://.*expected to .*goes on where it stopped"):
        endor.convert(source, url, **SETTINGS)
    proxy.answer = lambda request, found: found


def test_an_interrupted_conversion_goes_on(
    source: Path, local: Path, empty: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(source, empty, proxy, after=4)
    store = objects_at(empty)
    left = contents(store)
    assert "endor.json" not in left
    assert all(secret.encode() not in data for data in left.values() for secret in (SECRET, KEY_ID))
    with pytest.raises(NotFoundError, match=r"got endor\.journal, but no endor\.json: it was not finished"):
        endor.open(empty)
    # Its process is this one, which lives: so another's would be refused too.
    with pytest.raises(DestinationBusyError, match=r"got another process, number \d+ on this host"):
        endor.convert(source, empty, **SETTINGS)
    monkeypatch.setattr(journal, "_lives", lambda owner: False)
    with pytest.raises(ResumeError, match=r"settings sparsity"):
        endor.convert(source, empty, **SETTINGS | {"sparsity": 0.6})
    with pytest.raises(DestinationExistsError, match=r"what an interrupted conversion left"):
        endor.convert(source, empty, **SETTINGS, resume=False)
    parts = sorted(name for name in left if name.endswith("/c/0"))
    store.put(parts[0], left[parts[0]][:-1] + b"?")  # damaged: written again
    store.put(f"{parts[1].removesuffix('.0/c/0')}.7/c/0", b"half")  # not in the journal: cleared away
    conversion = endor.convert(source, empty, **SETTINGS)
    assert conversion.resumed_parts >= 2
    assert contents(store) == files(local)


def test_what_lies_there_is_left_alone(source: Path, empty: str) -> None:
    store = objects_at(empty)
    store.put("mine.txt", b"mine")
    with pytest.raises(DestinationExistsError, match=r"got 'mine\.txt' and perhaps more"):
        endor.convert(source, empty, **SETTINGS)
    assert contents(store) == {"mine.txt": b"mine"}
    store.put("endor.journal", b"no journal")
    with pytest.raises(DestinationExistsError, match=r"an object that is no journal"):
        endor.convert(source, empty, **SETTINGS)


def test_a_beginning_leaves_nothing(empty: str) -> None:
    with CheckpointWriter(empty, job={"by": "test", "files": {"a.txt": "?"}}) as writer:
        writer.write_file("a.txt", b"text")
        assert objects_at(empty).names() == ["a.txt", "endor.journal"]
    assert objects_at(empty).names() == []


def test_of_two_writers_one_wins(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from endor_jax.store.save import layout_for
    from tests.store.remote.two_layers import ARRAYS, SPECS

    job = {"by": "test"}
    layout = layout_for(SPECS)
    with CheckpointWriter(empty, job=job, resume=True) as first:
        first.write_record("layers.0", layout, ARRAYS)
        with pytest.raises(DestinationBusyError, match=r"another process, number \d+ on this host"):
            CheckpointWriter(empty, job=job, resume=True)
        monkeypatch.setattr(journal, "_lives", lambda owner: False)  # as from another host
        with CheckpointWriter(empty, job=job, resume=True) as second:
            assert second.finished_parts == 1
            for index in range(2):
                second.write_record(f"layers.{index}", layout, ARRAYS)
            with pytest.raises(DestinationBusyError, match=r"has taken over what is written there"):
                first.write_record("layers.1", layout, ARRAYS)
            second.finish(made={"by": "test"})
    with endor.open(empty) as checkpoint:
        assert len(checkpoint.manifest.records) == 2
    assert "endor.journal" not in objects_at(empty).names()


def test_a_bucket_that_is_not_there(source: Path) -> None:
    with pytest.raises(NotFoundError, match=r"NoSuchBucket"):
        endor.convert(source, "s3://no-such-bucket/model", **SETTINGS)


def test_a_calibrated_conversion_keeps_its_states_on_a_disk(source: Path, empty: str, tmp_path: Path) -> None:
    calibration = endor.CalibrationText(None, 2, 32)
    settings = {"prune": "wanda", "sparsity": 0.5, "dtype": "bfloat16", "calibration": calibration}
    endor.convert(source, empty, **settings)
    endor.convert(source, tmp_path / "here", **settings)
    assert contents(objects_at(empty)) == files(tmp_path / "here")


def test_sources_are_local(uploaded: str, tmp_path: Path) -> None:
    from endor_jax.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match=r"source s3://.*got a place in an object store"):
        endor.convert(uploaded, tmp_path / "x")


def test_a_part_that_arrives_changed_when_it_is_read_back_is_read_again(
    source: Path, empty: str, proxy: Proxy, tmp_path: Path
) -> None:
    """A resumed calibrated conversion computes with finished layers: what it reads must be what is stored."""
    endor.convert(source, empty, **SETTINGS)
    store = objects_at(empty)
    name, flipped = next(each for each in store.names() if each.endswith("layers.0.0/c/0")), []

    def flip(request: Request, found: bytes) -> bytes:
        if name not in request.path or request.method != "GET" or len(flipped) == times:
            return found
        flipped.append(request)
        return found[:-1000] + bytes([found[-1000] ^ 1]) + found[-999:]

    with endor.open(empty) as opened:
        part = opened.manifest.record("layers.0").parts[0]
        words = np.empty(part.length_bytes, np.uint8)
        opened.read_part(part, into=words)
    place, got, times = ObjectDestination(store.root), np.empty(part.length_bytes, np.uint8), 1
    proxy.answer = flip
    place.read_part(part, got)
    assert len(flipped) == 1
    np.testing.assert_array_equal(got, words)
    times = 10**9
    with pytest.raises(CorruptCheckpointError, match=r"layers\.0\.0: got other bytes, twice"):
        place.read_part(part, got)


def test_a_writer_is_known_by_when_it_was_started_too() -> None:
    """In a container that is started again, whoever goes on has the number of the one that was killed."""
    own = {"host": socket.gethostname(), "pid": os.getpid()}
    assert journal._lives({**own, "started": journal._started(os.getpid())})
    assert not journal._lives({**own, "started": "1"})
    assert not journal._lives({**own, "host": "elsewhere"})
