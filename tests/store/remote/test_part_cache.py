"""The cache on a local disk never takes more than its bound, whoever uses it and however they end."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import OptionError, StorageError
from endor_jax.store.digest import digest_chunks
from endor_jax.store.manifest import Part
from endor_jax.store.part import DATA_FILE, chunk_bytes_for, file_bytes
from endor_jax.store.remote import cache as cache_module
from endor_jax.store.remote.cache import TAG_FILE, OpenCache, PartCache, key_of
from tests.store.remote.object_server import CHUNK, SECRET, Proxy, Request, environment

ROOT = Path(__file__).parents[3]


def bytes_in(directory: Path) -> int:
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    return total


@contextmanager
def watched(directory: Path) -> Iterator[list[int]]:
    """Looks all the time at how many bytes there are; what it saw is in the list."""
    seen, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            seen.append(bytes_in(directory))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def made_up(seed: int, length: int = 20_000) -> tuple[Part, np.ndarray]:
    data = np.frombuffer(np.random.default_rng(seed).bytes(length), np.uint8)
    chunk = chunk_bytes_for(length)
    return Part(f"parts/{seed}", length, length, chunk, digest_chunks(data, chunk)), data


def keep(cache: OpenCache, *made: tuple[Part, np.ndarray]) -> None:
    for part, data in made:
        cache.keep(part, [data])


def test_the_oldest_that_nobody_uses_goes_first(tmp_path: Path) -> None:
    each = file_bytes(20_000)
    settings = PartCache(4 * each + each // 2, tmp_path / "c")
    made = [made_up(seed) for seed in range(8)]
    first = OpenCache(settings, [part for part, _ in made[:3]])
    keep(first, *made[:3])
    second = OpenCache(settings, [part for part, _ in made[3:6]])
    keep(second, *made[3:6])  # one fits beside what is in use
    assert [first.find(part) is not None for part, _ in made[:6]] == [True] * 4 + [False] * 2
    first.close()
    for i in (1, 0, 2):
        os.utime(tmp_path / "c/cached" / key_of(made[i][0]), (i, i))
    keep(second, made[4])
    assert [second.find(part) is not None for part, _ in made[:6]] == [False, True, True, True, True, False]
    keep(second, made[5])
    assert [second.find(part) is not None for part, _ in made[:6]] == [False, False, True, True, True, True]
    assert bytes_in(tmp_path / "c") <= settings.size_bytes
    second.close()


def test_a_bound_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "LEAST_BYTES", 2**20)
    with pytest.raises(OptionError, match=r"cache: got 5 bytes, expected 0, or 1,048,576 and more"):
        PartCache(5)
    assert PartCache(0).size_bytes == 0


def test_what_is_no_size_and_no_cache() -> None:
    """In a process of its own: the type checks of this one would refuse it first."""
    script = """
import endor_jax as endor
for call in (
    lambda: endor.PartCache("20GiB"),
    lambda: endor.PartCache(1e9),
    lambda: endor.open("s3://b/a", cache="x"),
):
    try:
        call()
    except endor.errors.OptionError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "cache: got size_bytes='20GiB', expected a number of bytes, an int; write 20 GiB as 20 * 2**30",
        "cache: got size_bytes=1000000000.0, expected a number of bytes, an int; write 20 GiB as 20 * 2**30",
        "cache: got 'x', expected a PartCache; write cache=PartCache(...)",
    ]


def test_a_directory_below_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves --cache-dir=~/c as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = OpenCache(PartCache(10_000, "~/c"), [])
    cache.close()
    assert cache.directory == tmp_path / "c"
    assert (tmp_path / "c" / TAG_FILE).exists()


def test_what_is_kept_is_a_data_file(local: Path, tmp_path: Path) -> None:
    with endor.open(local) as here:
        part = here.manifest.parts[0]
        data = np.empty(part.length_bytes, np.uint8)
        here.read_part(part, into=data)
    cache = OpenCache(PartCache(None, tmp_path), [part])
    keep(cache, (part, data))
    found = cache.find(part)
    assert found is not None
    assert (found / DATA_FILE).read_bytes() == (local / part.path / DATA_FILE).read_bytes()
    cache.close()
    assert cache.find(part) is None


def test_what_is_damaged_in_the_cache_is_fetched_again(uploaded: str, local: Path, tmp_path: Path) -> None:
    settings = PartCache(None, tmp_path)
    with endor.open(uploaded, cache=settings) as checkpoint:
        record = checkpoint.manifest.records[1]
        words = checkpoint.read_record(record).words
    (file,) = (tmp_path / "cached").rglob("0")
    for damage in (lambda: file.write_bytes(b"\0" + file.read_bytes()[1:]), lambda: os.truncate(file, 5)):
        damage()
        with endor.open(uploaded, cache=settings) as checkpoint:
            np.testing.assert_array_equal(checkpoint.read_record(record).words[0], words[0])
            assert checkpoint.bytes_fetched > checkpoint.manifest.parts[1].length_bytes
        with endor.open(uploaded, cache=settings) as checkpoint:
            before = checkpoint.bytes_fetched
            checkpoint.read_record(record)
            assert checkpoint.bytes_fetched - before < 4096  # its metadata


def test_a_directory_of_somebody_else_is_left_alone(local: Path, tmp_path: Path, uploaded: str) -> None:
    before = bytes_in(local)
    with (
        pytest.raises(OptionError, match=r"got .*, in which there is .*choose another directory"),
        endor.open(uploaded, cache=PartCache(None, local)) as checkpoint,
    ):
        checkpoint.read_record(checkpoint.manifest.records[0])
    assert bytes_in(local) == before
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"cache .*file: got .*--cache-dir"),
        endor.open(uploaded, cache=PartCache(None, tmp_path / "file")) as checkpoint,
    ):
        checkpoint.read_record(checkpoint.manifest.records[0])


def test_a_disk_that_is_full_is_no_error(
    uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with endor.open(uploaded, cache=PartCache(None, tmp_path)) as checkpoint:
        monkeypatch.setattr(os, "posix_fallocate", full)
        for record in checkpoint.manifest.records:
            checkpoint.read_record(record)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {TAG_FILE, "lock"}


def test_a_disk_that_is_full_when_the_cache_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, size = [made_up(seed) for seed in range(2)], file_bytes(20_000) + 5000
    settings, write = PartCache(size, tmp_path), os.write

    def full(handle: int, data: memoryview) -> int:
        if os.fstat(handle).st_size:
            raise OSError(28, "No space left on device")
        return write(handle, data[:7])

    OpenCache(settings, []).close()
    handles = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"cache .*: got No space left on device.*--cache-dir"):
            OpenCache(settings, [made[0][0]])
    assert len(os.listdir("/proc/self/fd")) == len(handles)
    assert list((tmp_path / "users").iterdir()) == []
    with monkeypatch.context() as patch:  # a system that writes a little at a time
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
        cache = OpenCache(settings, [made[0][0]])
    keep(cache, made[0])
    other = OpenCache(settings, [made[1][0]])
    keep(other, made[1])  # no room: what is in use is known
    assert cache.find(made[0][0]) is not None
    assert other.find(made[1][0]) is None
    cache.close()
    other.close()


@pytest.mark.parametrize("text", [b"", b'["0123'])
def test_a_list_of_parts_in_use_that_was_never_written(tmp_path: Path, text: bytes) -> None:
    """As a full disk left it, of a process that lives, and of one that does not."""
    made, settings = [made_up(seed) for seed in range(2)], PartCache(file_bytes(20_000) + 5000, tmp_path)
    first = OpenCache(settings, [made[0][0]])
    keep(first, made[0])
    first.close()
    (tmp_path / "users" / "left").write_bytes(text)
    held = tmp_path / "users" / "held"
    held.write_bytes(text)
    with held.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache = OpenCache(settings, [made[1][0]])
        keep(cache, made[1])  # the other part goes: nobody is known to use it
        assert cache.find(made[1][0]) is not None
        assert cache.find(made[0][0]) is None
        cache.close()
        assert list((tmp_path / "users").iterdir()) == [held]


def test_what_is_damaged_and_cannot_be_dropped(uploaded: str, tmp_path: Path) -> None:
    settings = PartCache(None, tmp_path)
    with endor.open(uploaded, cache=settings) as checkpoint:
        record = checkpoint.manifest.records[1]
        words = checkpoint.read_record(record).words
    (file,) = (tmp_path / "cached").rglob("0")
    for damage in (lambda: file.write_bytes(b"\0" + file.read_bytes()[1:]), file.unlink):
        with endor.open(uploaded, cache=settings) as checkpoint:
            checkpoint.read_record(checkpoint.manifest.records[0])  # opens the cache
            damage()
            (tmp_path / "lock").unlink()
            (tmp_path / "lock").mkdir()
            np.testing.assert_array_equal(checkpoint.read_record(record).words[0], words[0])
            part, piece = checkpoint.manifest.parts[1], np.empty(100, np.uint8)
            with checkpoint.open_part(part) as read:
                read(piece, 0)
            np.testing.assert_array_equal(piece, words[0].view(np.uint8).reshape(-1)[:100])
        (tmp_path / "lock").rmdir()


READER = """
import sys, os
from endor_jax.store import part
from endor_jax.store.remote import objects, cache
part.CHUNK_BYTES, objects.REQUEST_BYTES, cache.LEAST_BYTES = 16384, 15000, 1
from endor_jax.store.reader import Checkpoint
url, directory, size = sys.argv[1:]
with Checkpoint(url, cache=cache.PartCache(int(size), directory)) as checkpoint:
    for _ in range(2):
        for record in checkpoint.manifest.records:
            checkpoint.read_record(record)
print(checkpoint.bytes_fetched)
"""


def reader(uploaded: str, directory: Path, size: int, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READER, uploaded, str(directory), str(size)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("AWS")}
        | environment(port)
        | {"PYTHONPATH": str(ROOT)},
    )


def test_the_bound_holds_over_processes_and_over_a_kill(uploaded: str, proxy: Proxy, tmp_path: Path) -> None:
    directory, size = tmp_path / "c", 120_000
    begun = threading.Event()

    def hold(
        request: Request, found: bytes
    ) -> bytes:  # a few answers are late, so that the kill comes in the middle of a download
        if request.is_data() and len(proxy.requests) > 40:
            begun.set()
            time.sleep(0.2)
        return found

    with watched(directory) as seen:
        proxy.answer = hold
        killed, other = (reader(uploaded, directory, size, proxy.port) for _ in range(2))
        assert begun.wait(120)
        time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        proxy.answer = lambda request, found: found
        output, said = other.communicate(timeout=120)
        assert other.returncode == 0, said
        assert int(output) > 0
        (directory / "incoming" / "0123").write_bytes(b"what a kill in the middle of a write leaves")
        after = reader(uploaded, directory, size, proxy.port)
        output, said = after.communicate(timeout=120)
        assert after.returncode == 0, said
        assert SECRET not in said
    assert 0 < max(seen) <= size
    assert list((directory / "incoming").iterdir()) == []
    assert list((directory / "users").iterdir()) == []
    assert list((directory / "cached").iterdir()) != []


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """A process that holds a half written part is killed; before that, its bytes count in full."""
    size = file_bytes(20_000) + 5000
    script = f"""
import sys, time
from endor_jax.store import part
from endor_jax.store.remote import cache
part.CHUNK_BYTES, cache.LEAST_BYTES = {CHUNK}, 1
from tests.store.remote.test_part_cache import made_up
part, data = made_up(0)
opened = cache.OpenCache(cache.PartCache({size}, {str(tmp_path / "c")!r}), [part])
def chunks():
    yield data[:4096]
    print("half", flush=True)
    time.sleep(600)
opened.keep(part, chunks())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    mine = made_up(1)
    cache = OpenCache(PartCache(size, tmp_path / "c"), [mine[0]])
    assert file_bytes(20_000) < bytes_in(tmp_path / "c") <= size
    keep(cache, mine)  # there is no room beside the one that is being written
    assert cache.find(mine[0]) is None
    process.kill()
    process.communicate()
    cache.close()
    cache = OpenCache(PartCache(size, tmp_path / "c"), [mine[0]])
    keep(cache, mine)
    assert cache.find(mine[0]) is not None
    assert list((tmp_path / "c/incoming").iterdir()) == []
    cache.close()
