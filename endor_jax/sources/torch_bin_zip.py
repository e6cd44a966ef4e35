"""The zip archive that a torch file is: where its members' bytes lie.

`torch.save` writes them uncompressed, so that each is a range of the file: `PREFIX/data.pkl` says which
tensors there are, `PREFIX/data/KEY` are their storages, `PREFIX/byteorder` is "little" or "big". The central
directory is read by `zipfile`; the bytes are read by range, because `zipfile` would pass all of a member.

Source: PKWARE's APPNOTE.TXT 4.3.7 (local header); torch/csrc and caffe2/serialize/inline_container.h.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief, brief_text
from endor_jax.sources.byte_range import read_range, readable
from endor_jax.sources.safetensors_header import Location

MAXIMUM_DIRECTORY_BYTES = 8 << 20
"""Of the central directory: more than 50,000 members, each of them a storage."""
MAXIMUM_PICKLE_BYTES = 8 << 20
"""Of data.pkl, which takes about 200 bytes for a tensor."""
_START = b"PK\x03\x04"
# torch.save before 1.6 wrote five pickles, of which the first is this number.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field
_FLAGS = 0x080E  # sizes behind the data, names in UTF-8, how it was compressed; others change what bytes mean


@dataclass(frozen=True)
class TorchArchive:
    """`pickle`: the contents of data.pkl. `storages`: by key, the ranges of data/KEY; none overlap."""

    pickle: bytes
    storages: Mapping[str, Location]


class _Bounded(FileIO):
    """A file that `zipfile` cannot read a giant central directory from."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As FileIO, up to MAXIMUM_DIRECTORY_BYTES."""
        if size is not None and size > MAXIMUM_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a central directory of {size:,} bytes")
        return super().read(size) or b""


def read_archive(path: Path) -> TorchArchive:
    """The pickle of a torch file and where its storages are.

    Raises UnsupportedError for the format before torch 1.6, TorchScript, compressed or encrypted members and
    big-endian storages; InvalidInputError for what is no such archive, or a damaged one.
    """
    where = f"torch file {path}"
    with readable(path):
        size = path.stat().st_size
    start = read_range(path, offset=0, length=min(size, len(_LEGACY)), what="start").tobytes()
    if start == _LEGACY:
        raise UnsupportedError(
            where,
            got="the format that torch wrote before version 1.6",
            expected="a zip archive",
            fix="write it anew, once: with transformers' `from_pretrained` and `save_pretrained`, or "
            "`torch.save(torch.load(FILE, weights_only=True), FILE)`",
        )
    if not start.startswith(_START):
        raise _damaged(where, got=f"{size:,} bytes that begin with {brief(start)}", expected="a zip archive")
    members, end = _members(path, where=where)
    prefix = _prefix(members, where=where)
    ranges = {
        name.removeprefix(prefix): _range(path, member, end, where=where)
        for name, member in members.items()
        if name in (f"{prefix}data.pkl", f"{prefix}byteorder") or name.startswith(f"{prefix}data/")
    }
    _check_apart(ranges, where=where)
    _check_byte_order(ranges.get("byteorder"), where=where)
    pickle = ranges["data.pkl"]
    if pickle.length > MAXIMUM_PICKLE_BYTES:
        raise _damaged(
            where, got=f"data.pkl of {pickle.length:,} bytes", expected=f"at most {MAXIMUM_PICKLE_BYTES:,}"
        )
    data = read_range(path, offset=pickle.offset, length=pickle.length, what="data.pkl").tobytes()
    storages = {
        name.removeprefix("data/"): place for name, place in ranges.items() if name.startswith("data/")
    }
    return TorchArchive(data, storages)


def _members(path: Path, *, where: str) -> tuple[dict[str, zipfile.ZipInfo], int]:
    """The members by name, and where the central directory begins, behind all of them."""
    try:
        with readable(path), _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            listed, end = archive.infolist(), archive.start_dir
    # What `zipfile` raises for directories that contradict themselves depends on Python's version.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise _damaged(
            where, got=f"an unreadable zip archive ({brief_text(error)})", expected="a whole one"
        ) from error
    members = {member.filename: member for member in listed}
    if len(members) < len(listed):
        raise _damaged(where, got="two members of one name", expected="each once")
    return members, end


def _prefix(members: Mapping[str, zipfile.ZipInfo], *, where: str) -> str:
    """What stands before data.pkl, with its slash: "archive/", or the name the file had."""
    found = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise _damaged(
            where,
            got=f"{len(found)} members called data.pkl",
            expected="one, in a file that torch.save wrote",
        )
    if f"{found[0]}constants.pkl" in members:
        raise UnsupportedError(
            where,
            got="a TorchScript program",
            expected="a state dict",
            fix="save `model.state_dict()` with torch.save",
        )
    return found[0]


def _range(path: Path, member: zipfile.ZipInfo, end: int, *, where: str) -> Location:
    """Where the bytes of a member are: behind a header of its own, of a length the directory does not say."""
    where = f"member {brief(member.filename)} of {where}"
    encrypted = member.flag_bits & ~_FLAGS
    if encrypted or member.compress_type != zipfile.ZIP_STORED:
        raise UnsupportedError(
            where,
            got=f"encrypted bytes (flags 0x{member.flag_bits:04x})"
            if encrypted
            else f"compression of type {member.compress_type}",
            expected="stored bytes, as torch.save writes them",
            fix="write it anew with torch.save",
        )
    if member.file_size != member.compress_size or not 0 <= member.header_offset <= end - _LOCAL.size:
        raise _damaged(
            where,
            got=f"{member.compress_size:,} bytes for {member.file_size:,}, from {member.header_offset:,}",
            expected=f"as many, before byte {end:,}",
        )
    name = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")
    length = min(_LOCAL.size + len(name), end - member.header_offset)
    local = read_range(
        path, offset=member.header_offset, length=length, what="header of a zip member"
    ).tobytes()
    signature, name_bytes, extra_bytes = _LOCAL.unpack_from(local)
    offset = member.header_offset + _LOCAL.size + name_bytes + extra_bytes
    if (
        signature != _START
        or name_bytes != len(name)
        or local[_LOCAL.size :] != name
        or offset + member.file_size > end
    ):
        raise _damaged(
            where,
            got=f"bytes {offset:,} to {offset + member.file_size:,} behind a header {brief(local)}",
            expected=f"a header {brief(_START)} with the same name, and bytes before {end:,}",
        )
    return Location(path, offset=offset, length=member.file_size)


def _check_apart(ranges: Mapping[str, Location], *, where: str) -> None:
    """No two members share bytes: a file of some kilobytes could claim to hold terabytes."""
    reached, previous = 0, "the start"
    for name, place in sorted(ranges.items(), key=lambda item: (item[1].offset, item[1].length)):
        if place.offset < reached:
            raise _damaged(
                f"member {brief(name)} of {where}",
                got=f"begin at byte {place.offset:,} (an overlap)",
                expected=f"at {reached:,} or behind, where {previous} ends",
            )
        reached, previous = place.offset + place.length, brief(name)


def _check_byte_order(place: Location | None, *, where: str) -> None:
    """Files from before torch 2.1 do not tell; they are little-endian, as the machines were."""
    if place is None:
        return
    what = "byteorder"
    order = read_range(place.file, offset=place.offset, length=min(place.length, 16), what=what).tobytes()
    if order != b"little":
        raise UnsupportedError(
            where,
            got=f"byte order {brief(order)}",
            expected="b'little'",
            fix="load and save it with torch on an ordinary machine",
        )


def _damaged(where: str, *, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(
        where, got=got, expected=expected, fix="the file is damaged or truncated: fetch it again"
    )
