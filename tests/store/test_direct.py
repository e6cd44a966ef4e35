"""The readers of a part: all give the same bytes and the same errors, into any buffer; none falls back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import endor_jax as endor
from endor_jax.errors import (
    CorruptCheckpointError,
    IncompleteCheckpointError,
    OptionError,
    UnsupportedError,
)
from endor_jax.store import direct
from endor_jax.store.direct import BOUNCE_BYTES, READERS, check_length, open_part, read_part
from endor_jax.store.part import write_part

MIB = 2**20
SIZES = [1, 4, 4095, 4096, 4097, 3 * MIB + 12, 16 * MIB, 16 * MIB + 4, 33 * MIB + 4092]


def random_bytes(count: int, seed: int = 0) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(count), np.uint8)


def buffer(length: int, misaligned: int) -> np.ndarray:
    """(length,) uint8, that many bytes behind a page boundary, between guards that no reader may touch."""
    held = np.full(length + 3 * 4096, 0xAA, np.uint8)
    start = -held.ctypes.data % 4096 + 4096 + misaligned
    return held[start : start + length]


def guards(into: np.ndarray) -> np.ndarray:
    assert into.base is not None
    start = into.ctypes.data - into.base.ctypes.data
    return np.concatenate([into.base[:start], into.base[start + into.shape[0] :]])


@pytest.fixture(scope="module", params=SIZES)
def part(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    data = random_bytes(request.param)
    directory = tmp_path_factory.mktemp("parts") / "part"
    write_part(directory, data)
    return directory, data


@pytest.mark.parametrize("misaligned", [0, 1, 512, 4095])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_the_same_bytes(
    part: tuple[Path, np.ndarray], reader: str, misaligned: int
) -> None:
    directory, data = part
    into = buffer(data.shape[0], misaligned)
    read_part(directory, into, reader=reader)
    assert np.array_equal(into, data)
    assert np.all(guards(into) == 0xAA)


@pytest.mark.parametrize("reader", READERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_any_range_can_be_read(tmp_path: Path, reader: str, data: st.DataObject) -> None:
    whole = random_bytes(2 * BOUNCE_BYTES + 5000)
    if not (tmp_path / "part").exists():
        write_part(tmp_path / "part", whole)
    start = 4096 * data.draw(st.integers(0, whole.shape[0] // 4096))
    into = buffer(data.draw(st.integers(0, whole.shape[0] - start)), data.draw(st.integers(0, 4095)))
    with open_part(tmp_path / "part", whole.shape[0], reader=reader) as read_at:
        read_at(into, start)
    assert np.array_equal(into, whole[start : start + into.shape[0]])
    assert np.all(guards(into) == 0xAA)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("left", [0, 1, 4096, 5000, 8192, 8192 + 16, 8192 + 19])
def test_truncated_file(tmp_path: Path, reader: str, left: int) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    os.truncate(tmp_path / "part/c/0", left)
    message = rf"part .*part: got {left:,} bytes in c/0, expected 8,212; the file is truncated; copy or"
    with pytest.raises(CorruptCheckpointError, match=message):
        read_part(tmp_path / "part", np.empty(5000, np.uint8), reader=reader)


@pytest.mark.parametrize("reader", READERS)
def test_file_of_another_part(tmp_path: Path, reader: str) -> None:
    write_part(tmp_path / "part", random_bytes(9000))
    with pytest.raises(
        CorruptCheckpointError, match=r"12,308 bytes in c/0, .*too long, or that of another part"
    ):
        read_part(tmp_path / "part", np.empty(5000, np.uint8), reader=reader)


@pytest.mark.parametrize("reader", READERS)
def test_missing_file(tmp_path: Path, reader: str) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    (tmp_path / "part/c/0").unlink()
    message = r"part .*part: got no file c/0, expected zarr.json and c/0; copy the checkpoint again"
    with pytest.raises(IncompleteCheckpointError, match=message):
        read_part(tmp_path / "part", np.empty(5000, np.uint8), reader=reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_something_else_than_a_file(tmp_path: Path, reader: str, make) -> None:
    (tmp_path / "part/c").mkdir(parents=True)
    make(tmp_path / "part/c/0")
    with pytest.raises(
        CorruptCheckpointError, match=r"part .*part: got .* at c/0, expected a file of at most"
    ):
        read_part(tmp_path / "part", np.empty(5000, np.uint8), reader=reader)


@pytest.mark.parametrize("reader", ["preadv", "direct"])
@pytest.mark.parametrize("left", [2 * MIB, 2 * MIB + 5])
def test_truncated_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, left: int
) -> None:
    write_part(tmp_path / "part", random_bytes(5 * MIB))
    read_once = os.preadv

    def preadv(handle: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(tmp_path / "part/c/0", left)
        return read_once(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(
        CorruptCheckpointError, match=rf"got {left:,} bytes in c/0, expected 5,242,880 and more"
    ):
        read_part(tmp_path / "part", buffer(5 * MIB, 0), reader=reader)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_bytes(100_000)
    write_part(tmp_path / "part", data)
    read_once = os.preadv
    monkeypatch.setattr(os, "preadv", lambda h, buffers, at: read_once(h, [buffers[0][:8192]], at))
    for reader in ("preadv", "direct"):
        into = buffer(100_000, 0)
        read_part(tmp_path / "part", into, reader=reader)
        assert np.array_equal(into, data)


def test_unknown_reader(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"reader: got 'odirect', expected preadv, direct, mmap, tensorstore;"
    ):
        read_part(tmp_path, np.empty(1, np.uint8), reader="odirect")


@pytest.mark.parametrize("moment", ["open", "preadv"])
def test_file_system_without_o_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    call = getattr(os, moment)

    def refuse(*arguments):
        if moment == "preadv" or arguments[1] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return call(*arguments)

    monkeypatch.setattr(os, moment, refuse)
    message = (
        r"part .*: got reader direct, and its file system refuses it, expected a file system with O_DIRECT"
    )
    with pytest.raises(UnsupportedError, match=message):
        read_part(tmp_path / "part", np.empty(5000, np.uint8), reader="direct")


def test_system_without_o_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    monkeypatch.delattr(os, "O_DIRECT")
    with pytest.raises(UnsupportedError, match=r"got reader direct, and this system has none, expected"):
        read_part(tmp_path / "part", np.empty(5000, np.uint8), reader="direct")


def test_disk_errors_are_those_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(tmp_path / "part", random_bytes(5000))

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    for reader in ("preadv", "direct"):
        with pytest.raises(OSError, match="Input/output error"):
            read_part(tmp_path / "part", np.empty(5000, np.uint8), reader=reader)


def test_direct_reads_whole_pages_only(tmp_path: Path) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    with (
        open_part(tmp_path / "part", 5000, reader="direct") as read_at,
        pytest.raises(ValueError, match=r"O_DIRECT reads pages; 100 is no multiple of 4096"),
    ):
        read_at(np.empty(10, np.uint8), 100)


def test_direct_really_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    flags, open_once = [], os.open
    monkeypatch.setattr(direct.os, "open", lambda path, how: (flags.append(how), open_once(path, how))[1])
    read_part(tmp_path / "part", np.empty(5000, np.uint8), reader="direct")
    assert [bool(how & os.O_DIRECT) for how in flags] == [False, True]
    flags.clear()
    read_part(tmp_path / "part", np.empty(5000, np.uint8), reader="preadv")
    assert not any(how & os.O_DIRECT for how in flags)


def test_no_reader_leaves_files_open(tmp_path: Path) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    code = (
        "import os, numpy as np\nfrom pathlib import Path\n"
        "from endor_jax.store.direct import READERS, read_part\n"
        f"directory, into = Path({str(tmp_path / 'part')!r}), np.empty(5000, np.uint8)\n"
        "[read_part(directory, into, reader=r) for r in READERS]\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "[read_part(directory, into, reader=r) for r in READERS for _ in range(50)]\n"
        "assert len(os.listdir('/proc/self/fd')) < before + 50\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_length_is_checked_before_a_buffer_is_made(tmp_path: Path) -> None:
    write_part(tmp_path / "part", random_bytes(5000))
    check_length(tmp_path / "part", 5000)
    with pytest.raises(CorruptCheckpointError, match=r"8,212 bytes in c/0, expected"):
        check_length(tmp_path / "part", 2**29)


@pytest.mark.parametrize("reader", READERS)
def test_checkpoint_reads_with_the_named_reader(tmp_path: Path, reader: str) -> None:
    layer = {"w": random_bytes(70_000)}
    endor.save(tmp_path / "x", [layer])
    with endor.open(tmp_path / "x", reader=reader) as checkpoint:
        assert checkpoint.reader == reader
        assert checkpoint.reader_choice.why == "it was asked for"
        assert np.array_equal(checkpoint.read_tensor("layers.0", "w"), layer["w"])
        file = tmp_path / "x/parts/layers.0.0/c/0"
        data = bytearray(file.read_bytes())
        data[999] ^= 1
        file.write_bytes(data)
    with (
        endor.open(tmp_path / "x", reader=reader) as checkpoint,
        pytest.raises(CorruptCheckpointError, match=r"got digest \w+ for bytes 0 and following"),
    ):
        checkpoint.read_tensor("layers.0", "w")


def test_named_reader_that_is_refused_raises_at_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endor.save(tmp_path / "x", [{"w": random_bytes(5000)}])
    monkeypatch.delattr(os, "O_DIRECT")
    with pytest.raises(UnsupportedError, match="reader direct"):
        endor.open(tmp_path / "x", reader="direct")
    with pytest.raises(OptionError, match="'fast'"):
        endor.open(tmp_path / "x", reader="fast")
