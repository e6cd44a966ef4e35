"""The header of a GGUF file: metadata and the table of tensors, every read checked against the file's end.

Format: magic "GGUF", version, tensor count, metadata count; then metadata (key, type, value), then tensors
(name, dimensions fastest first, ggml type, offset from the start of the data); the data starts at the next
multiple of `general.alignment`.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

It is parsed here and not with the gguf package's reader because that one keeps an array per token (2 s for
a vocabulary of 49,152) and reports a truncated file as whatever NumPy stumbles over.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.errors import InvalidInputError, UnsupportedError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # version 1 counted in 32 bits; no file in the wild still does
_SCALARS = {
    0: "u1",
    1: "i1",
    2: "u2",
    3: "i2",
    4: "u4",
    5: "i4",
    6: "f4",
    7: "?",
    10: "u8",
    11: "i8",
    12: "f8",
}
_STRING, _ARRAY = 8, 9
_MAXIMUM_DIMENSIONS = 4  # ggml's own limit


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table: `shape` slowest dimension first, `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its data."""

    path: Path
    size: int
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)


def parse_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a little-endian GGUF file, version 2 or 3.

    Metadata values are int, float, bool, str or lists of them. Raises InvalidInputError if it is not a GGUF
    file or is damaged, UnsupportedError for other versions, byte orders and multi-file checkpoints.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise InvalidInputError(
                str(path), got="a file without the GGUF magic", expected="a GGUF file", fix="check the path"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _parse(path, _Cursor(mapped, path, position=4), size=size)


def _parse(path: Path, cursor: _Cursor, *, size: int) -> GgufHeader:
    version = int(cursor.scalar("u4"))
    if version not in _VERSIONS:
        raise UnsupportedError(
            str(path),
            got=f"GGUF version {version}" if version & 0xFFFF else "a big-endian GGUF file",
            expected="little-endian version 2 or 3",
            fix="convert it again with a current llama.cpp",
        )
    tensor_count, metadata_count = int(cursor.scalar("u8")), int(cursor.scalar("u8"))
    metadata = dict(cursor.metadata_entry() for _ in range(metadata_count))
    if (files := metadata.get("split.count", 1)) not in (0, 1):
        raise UnsupportedError(
            str(path),
            got=f"one of {files} files of a checkpoint",
            expected="a single file",
            fix="join them with llama.cpp's `llama-gguf-split --merge`",
        )
    rows = [cursor.tensor_entry() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise cursor.damaged(f"general.alignment {alignment!r}", expected="a positive integer")
    start = round_up(cursor.position, alignment)
    tensors = {
        name: GgufTensor(name, shape, type_id, offset=start + offset) for name, shape, type_id, offset in rows
    }
    if len(tensors) < len(rows):
        raise cursor.damaged(f"{len(rows) - len(tensors)} tensor names twice", expected="each name once")
    return GgufHeader(path=path, size=size, metadata=metadata, tensors=tensors)


class _Cursor:
    """A position in the file that never runs past its end."""

    def __init__(self, data: mmap.mmap, path: Path, *, position: int):
        self.data, self.path, self.position = data, path, position

    def damaged(self, got: str, *, expected: str) -> InvalidInputError:
        return InvalidInputError(
            f"header of {self.path} at byte {self.position:,}",
            got=got,
            expected=expected,
            fix="the file is damaged or truncated: fetch it again",
        )

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.position:
            raise self.damaged(
                f"a value of {length:,} bytes",
                expected=f"at most the {len(self.data) - self.position:,} left",
            )
        self.position += length
        return self.data[self.position - length : self.position]

    def scalar(self, code: str) -> Any:
        return np.frombuffer(self.take(np.dtype(code).itemsize), f"<{code}")[0].item()

    def string(self) -> str:
        # The inner loop over vocabularies: struct is three times as fast as NumPy here.
        (length,) = struct.unpack("<Q", self.take(8))
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"bytes that are not UTF-8 ({error})", expected="a string") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = int(self.scalar("u4")), int(self.scalar("u8"))
            if inner in _SCALARS:
                code = np.dtype(_SCALARS[inner])
                return np.frombuffer(self.take(count * code.itemsize), code.newbyteorder("<")).tolist()
            return [self.value(inner) for _ in range(count)]
        raise self.damaged(f"metadata type {kind}", expected="a type from 0 to 12")

    def metadata_entry(self) -> tuple[str, Any]:
        key = self.string()
        return key, self.value(int(self.scalar("u4")))

    def tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.string(), int(self.scalar("u4"))
        if not 1 <= dimensions <= _MAXIMUM_DIMENSIONS:
            raise self.damaged(f"{dimensions} dimensions for tensor {name!r}", expected="1 to 4")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        type_id, offset = int(self.scalar("u4")), int(self.scalar("u8"))
        return name, tuple(reversed(shape)), type_id, offset
