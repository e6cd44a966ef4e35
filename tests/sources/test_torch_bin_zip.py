"""The archive of a torch file: zip64, limits, and archives that torch did not write."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from endor_jax.errors import EndorError, InvalidInputError
from endor_jax.sources import open_source, torch_bin_zip
from tests.sources.tiny_torch_bin import archive, opened, state_dict, storage, view

PLAIN = {"w": view(storage("torch.FloatStorage", "0", 6), shape=(2, 3), strides=(3, 1))}
SIX = np.arange(6, dtype=np.float32)
VALID = archive(state_dict(PLAIN), {"0": SIX.tobytes()})


def changed(content: bytes, old: bytes, new: bytes, *, last: bool = False) -> bytes:
    assert old in content
    place = content.rindex(old) if last else content.index(old)
    return content[:place] + new + content[place + len(old) :]


def test_archives_that_torch_did_not_write(tmp_path: Path) -> None:
    central = VALID.rindex(b"archive/data/0") - 46
    twice = archive(state_dict(PLAIN), {"0": SIX.tobytes()}, members={"abcd": b"", "abce": b""})
    twice = twice.replace(b"archive/abce", b"archive/abcd")
    cases = {
        "compression of type 8": archive(
            state_dict(PLAIN), {"0": SIX.tobytes()}, compression=zipfile.ZIP_DEFLATED
        ),
        "encrypted": VALID[: central + 8] + b"\x01" + VALID[central + 9 :],
        "byte order b'big'": archive(state_dict(PLAIN), {"0": SIX.tobytes()}, members={"byteorder": b"big"}),
        "TorchScript": archive(state_dict(PLAIN), {"0": SIX.tobytes()}, members={"constants.pkl": b""}),
        "2 members called data.pkl": archive(
            state_dict(PLAIN), {"0": SIX.tobytes()}, members={"x/data.pkl": b""}
        ),
        "0 members called data.pkl": VALID.replace(b"data.pkl", b"dada.pkl"),
        "two members of one name": twice,
        "before version 1.6": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        "begin with b'<html>": b"<html>404</html>",
        "0 bytes that begin": b"",
        "unreadable zip archive": VALID[: len(VALID) // 2],
        "an overlap": overlapping(),
        "a header": changed(VALID, b"PK\x03\x04", b"PK\x03\x05", last=True),
        "bytes for": VALID[: central + 20] + b"\x17" + VALID[central + 21 :],
    }
    for number_, (message, content) in enumerate(cases.items()):
        with pytest.raises(EndorError, match=message):
            opened(tmp_path / str(number_), content)


def overlapping() -> bytes:
    """A storage that lies inside another one, header and all."""
    first = archive(state_dict(PLAIN), {"1": SIX.tobytes()})
    with zipfile.ZipFile(io.BytesIO(first)) as made:
        record = first[made.getinfo("archive/data/1").header_offset : made.start_dir]
    both = archive(state_dict(PLAIN), {"0": record, "1": SIX.tobytes()})
    field = both.rindex(b"archive/data/1") - 4
    return both[:field] + both.index(record).to_bytes(4, "little") + both[field + 4 :]


def test_what_describes_the_tensors_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_bin_zip, "MAXIMUM_PICKLE_BYTES", 50)
    with pytest.raises(InvalidInputError, match=r"data\.pkl of .* bytes, expected at most 50"):
        opened(tmp_path, VALID)
    monkeypatch.setattr(torch_bin_zip, "MAXIMUM_DIRECTORY_BYTES", 50)
    with pytest.raises(InvalidInputError, match="a central directory of"):
        opened(tmp_path, VALID)


def test_archives_with_64_bit_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As zipfile and torch write them above 4 GiB; here the limit is lowered."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 20)
    content = archive(state_dict(PLAIN), {"0": SIX.tobytes()})
    assert b"PK\x06\x06" in content
    assert np.array_equal(opened(tmp_path, content).read("w"), SIX.reshape(2, 3))


def test_a_storage_behind_four_gibibytes(tmp_path: Path) -> None:
    """A file with a hole of 5 GiB, which takes no room on disk."""
    monster = io.BytesIO(VALID)
    with zipfile.ZipFile(monster) as made:
        begin = made.start_dir
    hole = 5 << 30
    path = tmp_path / "pytorch_model.bin"
    (tmp_path / "config.json").write_text("{}")
    with path.open("wb") as file:
        file.write(VALID[:begin])
        file.truncate(begin + hole)
        file.seek(begin + hole)
        with zipfile.ZipFile(io.BytesIO(VALID)) as made:
            moved = made.infolist()
        # The last storage again, behind the hole, and a directory that has it there.
        last = moved[-1]
        file.write(VALID[last.header_offset : begin])
        central, count = b"", len(moved)
        for member in moved:
            offset = member.header_offset + (begin + hole - last.header_offset if member is last else 0)
            central += directory_entry(member, offset)
        start = file.tell()
        file.write(central + end_of_directory(count, len(central), start))
    assert path.stat().st_blocks * 512 < 1 << 20
    source = open_source(tmp_path)
    assert np.array_equal(source.read("w"), SIX.reshape(2, 3))


def directory_entry(member: zipfile.ZipInfo, offset: int) -> bytes:
    extra = b"\x01\0\x08\0" + offset.to_bytes(8, "little")
    name = member.filename.encode()
    sizes = member.CRC.to_bytes(4, "little") + 2 * member.file_size.to_bytes(4, "little")
    lengths = len(name).to_bytes(2, "little") + len(extra).to_bytes(2, "little")
    head = b"PK\x01\x02\x2d\0\x2d\0" + bytes(4) + b"\0\0\x21\0" + sizes + lengths
    return head + bytes(10) + b"\xff\xff\xff\xff" + name + extra


def end_of_directory(count: int, size: int, start: int) -> bytes:
    counts = 2 * count.to_bytes(8, "little") + size.to_bytes(8, "little") + start.to_bytes(8, "little")
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + b"\x2d\0\x2d\0" + bytes(8) + counts
    locator = b"PK\x06\x07" + bytes(4) + (start + size).to_bytes(8, "little") + b"\x01\0\0\0"
    return record + locator + b"PK\x05\x06" + bytes(4) + 4 * b"\xff" + 8 * b"\xff" + bytes(2)
