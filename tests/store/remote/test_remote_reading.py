"""A checkpoint in an object store gives what its local twin gives, whatever the store and the network do."""

from __future__ import annotations

import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import (
    CorruptCheckpointError,
    EndorError,
    IncompleteCheckpointError,
    NotFoundError,
    OptionError,
    StorageError,
    UnsupportedError,
)
from endor_jax.location import ObjectPath, locate
from endor_jax.store.remote import objects, parts
from endor_jax.store.remote.cache import PartCache
from endor_jax.store.remote.objects import Objects
from tests.store.remote.object_server import KEY_ID, SECRET, Answer, Proxy, Request, failure, upload

NONE = PartCache(0)
SIZES = {"all cached": None, "some": 50_000, "nothing": 0}


def objects_at(url: str) -> Objects:
    place = locate(url)
    assert isinstance(place, ObjectPath)
    return Objects(place)


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_is_the_local_one(local: Path, uploaded: str, size: str) -> None:
    with endor.open(local) as here, endor.open(uploaded, cache=PartCache(SIZES[size])) as there:
        assert there.manifest == here.manifest
        fetched = []
        for _ in range(2):
            for record in here.manifest.records:
                for a, b in zip(here.read_record(record).words, there.read_record(record).words, strict=True):
                    np.testing.assert_array_equal(a, b)
            fetched.append(there.bytes_fetched)
        for name in here.manifest.kept_files:
            assert there.read_file(name) == here.read_file(name)
        assert there.bytes_read == here.bytes_read
        second, whole = fetched[1] - fetched[0], here.manifest.stored_bytes
        assert second == {"all cached": 0, "nothing": whole}.get(size, second)
        assert size != "some" or 0 < second < whole
        assert here.bytes_fetched == 0


@pytest.mark.parametrize("size", SIZES)
def test_pieces_of_a_part(local: Path, uploaded: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PartCache(SIZES[size])
    monkeypatch.setattr(parts, "BLOCK_BYTES", 5000)  # no divisor of a chunk
    with endor.open(local) as here, endor.open(uploaded, cache=cache) as there:
        for part in here.manifest.parts[:2]:
            whole, whole_there = np.empty((2, part.length_bytes), np.uint8)
            with here.open_part(part) as read, there.open_part(part) as read_there:
                read(whole, 0)
                read_there(whole_there, 0)
                np.testing.assert_array_equal(whole, whole_there)
                for start, stop in (
                    (0, 1),
                    (4999, 5001),
                    (16380, 16390),
                    (100, 17000),
                    (part.length_bytes - 3, None),
                ):
                    piece = np.zeros_like(whole[start:stop])
                    read_there(piece, start)
                    np.testing.assert_array_equal(piece, whole[start:stop])


def test_a_layer_function_streams_it(tmp_path: Path, uploaded: str) -> None:
    saved = f"{uploaded.rsplit('/', 1)[0]}/stack"
    endor.save(tmp_path / "stack", [{"w": np.full((64, 80), i, np.float32)} for i in range(3)])
    upload(tmp_path / "stack", saved)
    with endor.stream(lambda params, x, state: (x + params["w"].sum(), state), saved, cache=NONE) as run:
        assert float(run(np.float32(0))[0]) == 64 * 80 * (0 + 1 + 2)


def answers_badly(fault: str) -> Answer:
    """What a store does that is ill now and then: to all but every third request for the same bytes; of bytes
    that flip, which is found when a chunk is there, the first of each object."""
    flipped: set[str] = set()

    def answer(request: Request, found: bytes) -> bytes | None:
        if request.number % 3 == 2 or not request.is_data():
            return found
        if fault == "503":
            return failure(503, "SlowDown", "Reduce your request rate.")
        if fault == "cut":
            return found[: len(found) - 7]
        if fault == "no answer":
            return None
        if fault == "flipped" and request.path not in flipped:
            flipped.add(request.path)
            return found[:-7] + bytes([found[-7] ^ 4]) + found[-6:]
        time.sleep(0.01 if fault == "slow" else 0)
        return found

    return answer


@pytest.mark.parametrize("fault", ["503", "cut", "no answer", "flipped", "slow"])
def test_faults_never_change_the_text(
    uploaded: str, proxy: Proxy, expected: list[int], tight: dict[str, int], fault: str
) -> None:
    cache = PartCache(100_000)  # some parts come from the network on every pass
    with endor.load(uploaded, cache=cache, **tight) as model:
        assert model.plan.read_bytes_per_pass > 0
        loaded = model.bytes_fetched
        proxy.answer = answers_badly(fault)
        assert model.complete("Once", max_tokens=len(expected)).token_ids == expected
        assert model.bytes_fetched > loaded


def always(answered: bytes | None) -> Answer:
    return lambda request, found: answered if request.is_data() else found


CASES = {
    "500": (always(failure(500)), StorageError, r"got .*We are sorry.*see whether the store can be reached"),
    "501": (always(failure(501, "NotImplemented", "No ranges.")), StorageError, r"No ranges\..*status 501"),
    "301": (
        always(failure(301, "PermanentRedirect", "Another endpoint")),
        StorageError,
        r"Another endpoint \(HTTP status 301\).*set AWS_REGION",
    ),
    "cut": (lambda r, f: f[:-1] if r.is_data() else f, StorageError, r"partial file.*reached"),
    "no answer": (always(None), StorageError, r"Empty reply.*run it again"),
    "403": (
        always(failure(403, "AccessDenied", "Access Denied")),
        StorageError,
        r"Access Denied.*credentials",
    ),
    "signature": (
        always(failure(403, "InvalidAccessKeyId", f"The key {KEY_ID} does not exist: Signature=abc")),
        StorageError,
        r"The key \*\*\* does not exist: Signature=\*\*\* \(HTTP status 403\).*credentials",
    ),
    "404": (always(failure(404, "NoSuchKey", "gone")), IncompleteCheckpointError, r"got no such object"),
    "flipped": (
        lambda r, f: f[:-1] + bytes([f[-1] ^ 1]) if r.is_data() else f,
        CorruptCheckpointError,
        r"got digest .*damaged",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_faults_that_stay_are_one_clear_error(uploaded: str, proxy: Proxy, case: str) -> None:
    answer, kind, message = CASES[case]
    with endor.open(uploaded) as checkpoint:
        proxy.answer = answer
        with pytest.raises(kind, match=message) as raised:
            checkpoint.read_record(checkpoint.manifest.records[0])
        assert type(raised.value) is kind
        assert f"{uploaded}/parts/embedding.0" in str(raised.value)
        shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + repr(checkpoint)
        assert SECRET not in shown
        assert KEY_ID not in shown


def test_a_manifest_that_is_refused(uploaded: str, proxy: Proxy) -> None:
    """Every request, so that it is the first: to read the manifest, and to list, write and delete."""
    store = objects_at(uploaded)
    cases = [
        (416, CorruptCheckpointError, lambda: endor.open(uploaded)),
        (501, StorageError, lambda: endor.open(uploaded)),
        (501, StorageError, store.names),
        (501, StorageError, lambda: store.put("a", b"")),
        (501, StorageError, lambda: store.delete("a")),
    ]
    for status, kind, call in cases:
        proxy.answer = lambda request, found, status=status: failure(status, "InvalidRange", "Not so.")
        with pytest.raises(kind, match=rf"object {uploaded}.*Not so\. \(HTTP status {status}\)") as raised:
            call()
        shown = "".join(traceback.format_exception(raised.value))
        assert SECRET not in shown
        assert KEY_ID not in shown


def test_a_store_that_hangs(uploaded: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(request: Request, found: bytes) -> bytes:
        if request.is_data() and (request.number == 0 or stays):
            over.wait(20)
        return found

    stays = False
    with endor.open(uploaded) as checkpoint:
        known = {(r.method, r.path) for r in proxy.requests}
        proxy.requests[:] = [r for r in proxy.requests if (r.method, r.path) not in known]
        monkeypatch.setattr(objects, "ANSWER_SECONDS", 1.0)
        proxy.answer = hang  # each object's first request is never answered: it is sent once more
        checkpoint.read_record(checkpoint.manifest.records[0])
        stays = True
        with pytest.raises(StorageError, match=r"no answer in time, expected to read it within 2 × 1 s"):
            checkpoint.read_record(checkpoint.manifest.records[1])
        over.set()


def test_a_store_that_fails_ends_a_generation(uploaded: str, proxy: Proxy, tight: dict[str, int]) -> None:
    with endor.load(uploaded, cache=NONE, **tight) as model:
        proxy.answer = always(failure(500))
        with pytest.raises(StorageError, match=r"object s3://models/session/model/parts/\w+.*We are sorry"):
            model.complete("Once", max_tokens=40)


def test_keys_of_a_profile(
    uploaded: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = a\n"
        "[work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = b\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    objects_at(uploaded).read("endor.json")
    monkeypatch.setenv("AWS_PROFILE", "work")
    objects_at(uploaded).read("endor.json")
    assert [request.key_id for request in proxy.requests] == ["AKIADEFAULT", "AKIAWORK"]


@pytest.mark.parametrize("fault", ["missing", "truncated", "too long", "no metadata", "other metadata"])
def test_what_is_wrong_with_an_object_is_said(mine: str, fault: str) -> None:
    store, name = objects_at(mine), "parts/layers.1.0/c/0"
    metadata = "parts/layers.1.0/zarr.json"
    data = store.read(name)
    change = {
        "missing": lambda: store.delete(name),
        "truncated": lambda: store.put(name, data[:-4096]),
        "too long": lambda: store.put(name, data + b"x"),
        "no metadata": lambda: store.delete(metadata),
        "other metadata": lambda: store.put(metadata, store.read("parts/embedding.0/zarr.json")),
    }
    change[fault]()
    kind, message = {
        "missing": (IncompleteCheckpointError, r"object s3:.*c/0: got no such object.*copy the checkpoint"),
        "truncated": (CorruptCheckpointError, r"c/0: got an object that ends early.*truncated"),
        "too long": (CorruptCheckpointError, r"c/0: got [\d,]+ bytes, expected [\d,]+; it is too long"),
        "no metadata": (IncompleteCheckpointError, r"zarr\.json: got no such object"),
        "other metadata": (CorruptCheckpointError, r"zarr\.json: got the bytes of parts/embedding"),
    }[fault]
    with pytest.raises(kind, match=message), endor.open(mine) as checkpoint:
        checkpoint.read_record(checkpoint.manifest.record("layers.1"))


def test_replaced_while_it_is_read(mine: str, tmp_path: Path) -> None:
    store = objects_at(mine)
    with endor.open(mine, cache=NONE) as checkpoint:
        record = checkpoint.manifest.records[0]
        checkpoint.read_record(record)
        for name in store.names():
            if name.endswith("/c/0"):
                data = bytearray(store.read(name))
                data[5] ^= 1
                store.put(name, bytes(data))
        with pytest.raises(CorruptCheckpointError, match=r"digest .*damaged"):
            checkpoint.read_record(record)
        store.put("endor.json", b"{}")
        with pytest.raises(CorruptCheckpointError, match=r"another checkpoint, .* replaced .*open it again"):
            checkpoint.read_record(record)


def test_a_place_without_a_checkpoint(mine: str, uploaded: str) -> None:
    store = objects_at(mine)
    with pytest.raises(NotFoundError, match=r"got no object that begins so.*check the path"):
        endor.open(mine + "-not")
    with pytest.raises(NotFoundError, match=r"got NoSuchBucket.*HTTP status 404.*check bucket and endpoint"):
        endor.open("s3://no-such-bucket/model")
    store.delete("endor.json")
    with pytest.raises(IncompleteCheckpointError, match=r"got parts, but no endor\.json"):
        endor.open(mine)
    store.put("endor.json", b"{}")
    with pytest.raises(CorruptCheckpointError, match=r"endor\.json: got something else"):
        endor.open(mine)


def test_what_makes_no_sense_is_refused(local: Path, uploaded: str) -> None:
    for reader in ("mmap", "tensorstore"):
        with pytest.raises(UnsupportedError, match=rf"reader {reader} for an object store"):
            endor.open(uploaded, reader=reader)
    with pytest.raises(OptionError, match=r"got 'fast', expected preadv"):
        endor.open(uploaded, reader="fast")
    with pytest.raises(OptionError, match=r"got a cache for local files"):
        endor.open(local, cache=PartCache())
    with endor.open(uploaded) as checkpoint:
        assert checkpoint.reader_choice.expected == {}
    with pytest.raises(EndorError, match=r"a read after close"):
        checkpoint.read_record(checkpoint.manifest.records[0])


def test_no_more_requests_at_once_than_are_allowed(uploaded: str, proxy: Proxy) -> None:
    proxy.answer = lambda request, found: (time.sleep(0.01), found)[1]
    with endor.load(uploaded, cache=NONE):
        pass
    assert 2 <= proxy.most_at_once <= 16
